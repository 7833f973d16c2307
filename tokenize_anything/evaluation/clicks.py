"""Interactive refinement: mean IoU after 1 to 9 clicks, each where the mask is most wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.config import PointLabel
from tokenize_anything.corrective_clicks import next_click
from tokenize_anything.evaluation.answers import RegionModel, decode_prompts
from tokenize_anything.evaluation.coco_truth import (
    TruthFile,
    load_photo,
    read_truth,
    truth_items,
    truth_mask,
)
from tokenize_anything.evaluation.overlap_scores import count_overlap, iou_of
from tokenize_anything.evaluation.run_files import file_digest
from tokenize_anything.evaluation.runner import (
    Metric,
    RunnerConfig,
    WorkItem,
    model_digest,
    run_evaluation,
)
from tokenize_anything.prompts import PointPrompts

MAX_CLICKS = 9  # what the model is trained with


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo (H,W,3) uint8 RGB and its true masks (R,H,W) bool, none of them empty."""

    rgb: np.ndarray
    truths: np.ndarray
    annotation_ids: list[Any]


def evaluate_clicks(
    predictor: RegionModel,
    annotations: str | Path,
    image_folder: str | Path,
    *,
    num_clicks: int = MAX_CLICKS,
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Click on every region, look at the answer, click on its worst mistake, and so on.

    A click falls on the innermost pixel of the largest connected piece of what is missed or too
    much; the first one on the largest piece of the region itself. All clicks so far are one
    prompt. A region whose mask has become perfect gets no more clicks and keeps it.

    Args:
        predictor: the model, or a rule.
        annotations: COCO-style JSON with masks; crowds and empty masks are left out.
        image_folder: of the photos.
        num_clicks: how many, 1 to 9.
        config: how to run.

    Yields:
        "regions", then "mIoU after N clicks" in percent.

    Raises:
        FileNotFoundError: a file or photos that are not there.
        ValueError: a damaged file, an empty split, or another number of clicks.
    """
    if not 1 <= num_clicks <= MAX_CLICKS:
        raise ValueError(f"num_clicks: expected 1 to {MAX_CLICKS}, got {num_clicks}")
    truth = read_truth(annotations)
    items = truth_items(truth, image_folder, _outlined_regions(truth))
    settings = {
        "model": model_digest(predictor),
        "annotations": file_digest(annotations),
        "num_clicks": num_clicks,
    }
    yield from run_evaluation(_ClicksTask(predictor, truth, num_clicks), items, settings, config)


class _ClicksTask:
    """Masks in, the IoU after each click out."""

    name = "clicks"

    def __init__(self, predictor: RegionModel, truth: TruthFile, num_clicks: int) -> None:
        self.predictor = predictor
        self.truth = truth
        self.num_clicks = num_clicks

    def load(self, item: WorkItem) -> _Photo | None:
        """The photo and its true masks."""
        if item.content is None:
            return None
        rgb = load_photo(item.paths[0], self.truth.sizes_hw[item.key])
        masks = {
            each["id"]: truth_mask(each["segmentation"], *rgb.shape[:2]) for each in item.content
        }
        kept = {identity: mask for identity, mask in masks.items() if mask.any()}
        if not kept:
            return None
        return _Photo(rgb, np.stack(list(kept.values())), list(kept))

    def answer(self, loaded: Sequence[_Photo | None]) -> list[np.ndarray | None]:
        """IoU of each region after each click, (R, num_clicks)."""
        return [
            None
            if photo is None
            else click_and_refine(self.predictor, photo.rgb, photo.truths, self.num_clicks)
            for photo in loaded
        ]

    def to_rows(
        self, item: WorkItem, loaded: _Photo | None, answer: np.ndarray | None
    ) -> list[dict[str, Any]]:
        """One row per region."""
        if loaded is None or answer is None:
            return []
        return [
            {"image_id": item.key, "annotation_id": identity, "ious": ious}
            for identity, ious in zip(loaded.annotation_ids, answer.tolist(), strict=True)
        ]

    def score(self, items: Sequence[WorkItem], rows: Iterator[dict[str, Any]]) -> Iterator[Metric]:
        """See `evaluate_clicks`."""
        ious = np.array([row["ious"] for row in rows]).reshape(-1, self.num_clicks)
        yield "regions", float(len(ious))
        if len(ious):
            for click, value in enumerate(ious.mean(axis=0).tolist(), start=1):
                yield f"mIoU after {click} click{'s' if click > 1 else ''}", 100 * value


def click_and_refine(
    predictor: RegionModel, rgb: np.ndarray, truths: np.ndarray, num_clicks: int
) -> np.ndarray:
    """Click `num_clicks` times on the regions of one photo, each in answer to the mask before.

    Args:
        predictor: the model, or a rule.
        rgb: (H,W,3) uint8.
        truths: (R,H,W) bool, none empty.
        num_clicks: at least 1.

    Returns:
        (R,num_clicks) IoU after each click.
    """
    encoded = predictor.encode_images(rgb)
    masks = np.zeros_like(truths)
    coords = np.zeros((len(truths), num_clicks, 2), np.float32)
    labels = np.full((len(truths), num_clicks), PointLabel.PADDING, np.int64)
    ious = np.zeros((len(truths), num_clicks))
    active = np.arange(len(truths))  # regions that are not perfect yet
    for click in range(num_clicks):
        for row in active:
            coords[row, click], labels[row, click] = next_click(masks[row], truths[row])
        if len(active):
            count = click + 1
            prompts = PointPrompts.from_points(coords[active, :count], labels[active, :count])
            masks[active] = decode_prompts(predictor, encoded, prompts, with_names=False).masks
        ious[:, click] = [
            iou_of(*count_overlap(mask, truth)) for mask, truth in zip(masks, truths, strict=True)
        ]
        active = np.flatnonzero(ious[:, click] < 1)
    return ious


def _outlined_regions(truth: TruthFile) -> dict[Any, list[dict[str, Any]]]:
    """Regions with a mask of each photo that has any."""
    found = {}
    for image in truth.content["images"]:
        outlined = [each for each in truth.regions(image["id"]) if each.get("segmentation")]
        if outlined:
            found[image["id"]] = outlined
    if not found:
        raise ValueError(f"annotations: {truth.path} has no region with a mask")
    return found
