"""Interactive segmentation: the COCO-Interactive protocol with four kinds of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.evaluation.answers import PromptedPhoto, RegionModel, answer_photos
from tokenize_anything.evaluation.coco_truth import (
    TruthFile,
    load_photo,
    read_truth,
    truth_items,
    truth_mask,
)
from tokenize_anything.evaluation.interactive_prompts import (
    KINDS,
    check_prompts_file,
    has_prompts,
    make_prompts_file,
    prompt_key,
    prompts_file,
)
from tokenize_anything.evaluation.overlap_scores import count_overlap, cumulative_iou, mean_iou
from tokenize_anything.evaluation.processes import ProcessShare
from tokenize_anything.evaluation.run_files import file_digest
from tokenize_anything.evaluation.runner import (
    Metric,
    RunnerConfig,
    WorkItem,
    model_digest,
    run_evaluation,
)
from tokenize_anything.geometry import decode_rle, masks_to_boxes
from tokenize_anything.prompts import NUM_SKETCH_POINTS, PointPrompts
from tokenize_anything.region_decoding import DecodedImage


def evaluate_interactive(
    predictor: RegionModel,
    annotations: str | Path,
    image_folder: str | Path,
    *,
    prompts: str | Path | None = None,
    seed: int = 0,
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Prompt every annotation four times: with points, a scribble, a box and a mask.

    What this model makes of the stored prompts, which are masks: the pixel of every piece of a
    point prompt is one foreground click of one prompt (nine of them, spread evenly, where there are
    more); of a scribble and of a mask, nine pixels spread evenly are foreground clicks; of a box
    prompt the box around all its pieces. As in the protocol, crowds are prompted too, and
    annotations without a piece of more than 5 pixels are left out.

    Args:
        predictor: the model, or a rule.
        annotations: COCO-style JSON with masks; one that holds prompts already is used as it is.
        image_folder: of the photos.
        prompts: file of the prompts, made where it does not exist; beside the annotations by
            default.
        seed: of the prompts.
        config: how to run.

    Yields:
        "regions", then "KIND mIoU" and "KIND cIoU" in percent for each kind.

    Raises:
        FileNotFoundError: a file or photos that are not there.
        PermissionError: the prompts cannot be written where they belong.
        ValueError: a damaged file, an empty split, or prompts of other annotations.
    """
    with ProcessShare.from_environment().connected():
        truth = _with_prompts(annotations, prompts, seed, config or RunnerConfig())
        task = _InteractiveTask(predictor, truth)
        settings = {
            "model": model_digest(predictor),
            "annotations": file_digest(annotations),
            "seed": seed,
        }
        items = truth_items(truth, image_folder, _prompted_regions(truth))
        yield from run_evaluation(task, items, settings, config)


class _InteractiveTask:
    """Stored prompts in, intersections and unions out."""

    name = "interactive"

    def __init__(self, predictor: RegionModel, truth: TruthFile) -> None:
        self.predictor = predictor
        self.truth = truth

    def load(self, item: WorkItem) -> PromptedPhoto | None:
        """The photo with the prompts of all regions, kind after kind."""
        if item.content is None:
            return None
        rgb = load_photo(item.paths[0], self.truth.sizes_hw[item.key])
        each = [_to_points(kind, item.content) for kind in KINDS]
        return PromptedPhoto(rgb, PointPrompts.concatenate(each))

    def answer(self, loaded: Sequence[PromptedPhoto | None]) -> list[DecodedImage | None]:
        """The routed masks."""
        return answer_photos(self.predictor, loaded, with_names=False)

    def to_rows(
        self, item: WorkItem, loaded: Any, answer: DecodedImage | None
    ) -> list[dict[str, Any]]:
        """One row per kind and region."""
        if answer is None:
            return []
        masks = iter(answer.masks)
        size_hw = self.truth.sizes_hw[item.key]
        truths = [truth_mask(region["segmentation"], *size_hw) for region in item.content]
        rows = []
        for kind in KINDS:
            for region, truth in zip(item.content, truths, strict=True):
                shared, union = count_overlap(next(masks), truth)
                row = {"image_id": item.key, "annotation_id": region["id"], "prompt": kind}
                rows.append({**row, "intersection": shared, "union": union})
        return rows

    def score(self, items: Sequence[WorkItem], rows: Iterator[dict[str, Any]]) -> Iterator[Metric]:
        """See `evaluate_interactive`."""
        overlaps: dict[str, list[tuple[int, int]]] = {kind: [] for kind in KINDS}
        for row in rows:
            overlaps[row["prompt"]].append((row["intersection"], row["union"]))
        yield "regions", float(len(overlaps["box"]))
        for kind, found in overlaps.items():
            if found:
                yield f"{kind} mIoU", mean_iou(found)
                yield f"{kind} cIoU", cumulative_iou(found)


def _prompted_regions(truth: TruthFile) -> dict[Any, list[dict[str, Any]]]:
    """Annotations with prompts of each photo that has any."""
    found = {
        image_id: regions
        for image_id, annotations in truth.by_image.items()
        if (regions := [each for each in annotations if has_prompts(each)])
    }
    if not found:
        raise ValueError(f"prompts: {truth.path} holds no prompt; no region is large enough")
    return found


def _with_prompts(
    annotations: str | Path, prompts: str | Path | None, seed: int, config: RunnerConfig
) -> TruthFile:
    """The annotations with their prompts; the first process makes them where they are missing."""
    truth = read_truth(annotations)
    if prompts is None and any(has_prompts(each) for each in truth.content["annotations"]):
        return truth
    path = prompts_file(annotations, seed) if prompts is None else Path(prompts)
    share = ProcessShare.from_environment()
    if share.is_first and not path.exists():
        make_prompts_file(annotations, path, seed=seed, show_progress=config.show_progress)
    share.wait_for_others()
    prompted = read_truth(path)
    check_prompts_file(prompted, annotations, seed)
    return prompted


def _to_points(kind: str, regions: Sequence[Mapping[str, Any]]) -> PointPrompts:
    """Stored prompts of one kind as the points this model reads, a prompt per region."""
    masks = np.stack([decode_rle(region[prompt_key(kind)]) for region in regions])
    if kind == "box":
        return PointPrompts.from_boxes(masks_to_boxes(masks))
    if kind == "point":
        return PointPrompts.concatenate([_to_clicks(mask) for mask in masks])
    return PointPrompts.from_masks(masks)


def _to_clicks(mask: np.ndarray) -> PointPrompts:
    """A click on every pixel of a mask (H,W), as long as there are few."""
    rows, columns = np.nonzero(mask)
    if len(rows) > NUM_SKETCH_POINTS:
        return PointPrompts.from_masks(mask)
    return PointPrompts.from_points(np.stack([columns, rows], axis=1)[None])
