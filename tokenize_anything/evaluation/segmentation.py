"""Instance segmentation from boxes: mask AP on COCO and LVIS (paper section 4, table 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.evaluation.answers import PromptedPhoto, RegionModel, answer_photos
from tokenize_anything.evaluation.average_precision import average_precision
from tokenize_anything.evaluation.coco_truth import (
    TruthFile,
    load_photo,
    mask_codes,
    prompt_boxes,
    read_detections,
    read_truth,
    truth_items,
    truth_rle,
)
from tokenize_anything.evaluation.overlap_scores import iou_of
from tokenize_anything.evaluation.run_files import file_digest
from tokenize_anything.evaluation.runner import (
    Metric,
    RunnerConfig,
    WorkItem,
    model_digest,
    run_evaluation,
)
from tokenize_anything.geometry import encode_rle
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import DecodedImage


@dataclass(frozen=True, eq=False)
class _PromptedBoxes:
    """Boxes of one photo, and what is known of each besides.

    boxes_xyxy: (R,4). category_ids: R ids, None for regions without a category.
    scores: (R,) of a detector. rles: R true masks as run-length codes. One of both is None.
    """

    boxes_xyxy: np.ndarray
    category_ids: list[Any]
    scores: np.ndarray | None = None
    rles: list[dict[str, Any]] | None = None


def evaluate_segmentation(
    predictor: RegionModel,
    annotations: str | Path,
    image_folder: str | Path,
    *,
    detections: str | Path | None = None,
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Prompt every box, and score the masks of slot 0 as instances.

    Args:
        predictor: the model, or a rule.
        annotations: COCO- or LVIS-style JSON; LVIS is recognised by its verified categories.
        image_folder: of the photos; for LVIS also the folder of `train2017` and `val2017`.
        detections: COCO results of a detector. They give boxes, categories and scores, as in the
            paper; the predicted IoU is not multiplied in. Without them the annotated boxes are
            prompts, crowds left out, and the predicted IoU is the score.
        config: how to run.

    Yields:
        The metrics of `average_precision`, in percent, where the file has categories. With
        annotated boxes also "regions" and "mIoU", the mean overlap of each mask with its own
        annotation.

    Raises:
        FileNotFoundError: a file or photos that are not there.
        ImportError: the extra is missing.
        ValueError: files that are damaged or do not belong together, or an empty split.
    """
    mask_codes()  # fail before the work where the extra is missing
    truth = read_truth(annotations)
    if detections is None:
        prompted = _annotated_boxes(truth)
    else:
        prompted = _detected_boxes(truth, detections)
    settings = {
        "model": model_digest(predictor),
        "annotations": file_digest(annotations),
        "detections": None if detections is None else file_digest(detections),
    }
    task = _SegmentationTask(predictor, truth, is_detected=detections is not None)
    items = truth_items(truth, image_folder, prompted)
    yield from run_evaluation(task, items, settings, config)


class _SegmentationTask:
    """Boxes in, COCO results out."""

    name = "segmentation"

    def __init__(self, predictor: RegionModel, truth: TruthFile, *, is_detected: bool) -> None:
        self.predictor = predictor
        self.truth = truth
        self.is_detected = is_detected

    def load(self, item: WorkItem) -> PromptedPhoto | None:
        """The photo and its boxes; None where it has no boxes."""
        if item.content is None:
            return None
        prompts = PointPrompts.from_boxes(item.content.boxes_xyxy)
        return PromptedPhoto(load_photo(item.paths[0], self.truth.sizes_hw[item.key]), prompts)

    def answer(self, loaded: Sequence[PromptedPhoto | None]) -> list[DecodedImage | None]:
        """Masks of slot 0 and their predicted IoU."""
        return answer_photos(self.predictor, loaded, with_names=False)

    def to_rows(
        self, item: WorkItem, loaded: Any, answer: DecodedImage | None
    ) -> list[dict[str, Any]]:
        """COCO results; with annotated boxes also the overlap with their own annotation."""
        if answer is None:
            return []
        prompted: _PromptedBoxes = item.content
        scores = answer.iou_scores if prompted.scores is None else prompted.scores
        rows = [
            {
                "image_id": item.key,
                "category_id": category,
                "score": score,
                "segmentation": encode_rle(mask),
            }
            for category, score, mask in zip(
                prompted.category_ids, scores.tolist(), answer.masks, strict=True
            )
        ]
        for row, truth in zip(rows, prompted.rles or [], strict=False):
            row["iou"] = _overlap(row["segmentation"], truth)
        return rows

    def score(self, items: Sequence[WorkItem], rows: Iterator[dict[str, Any]]) -> Iterator[Metric]:
        """See `evaluate_segmentation`."""
        results = list(rows)
        if not self.is_detected:
            yield "regions", float(len(results))
            if results:
                yield "mIoU", 100 * float(np.mean([row["iou"] for row in results]))
        named = [row for row in results if row["category_id"] is not None]
        if self.truth.category_names and (named or self.is_detected):
            photos = [item.key for item in items]
            yield from average_precision(self.truth, named, kind="segm", image_ids=photos)


def _annotated_boxes(truth: TruthFile) -> dict[Any, _PromptedBoxes]:
    prompted = {}
    for image in truth.content["images"]:
        regions = [each for each in truth.regions(image["id"]) if each.get("segmentation")]
        if regions:
            size_hw = image["height"], image["width"]
            where = f"annotations: {truth.path}: image {image['id']}"
            boxes = prompt_boxes([region["bbox"] for region in regions], *size_hw, where=where)
            prompted[image["id"]] = _PromptedBoxes(
                boxes,
                [region.get("category_id") for region in regions],
                rles=[truth_rle(region["segmentation"], *size_hw) for region in regions],
            )
    if not prompted:
        raise ValueError(
            f"annotations: {truth.path} is an empty split: no region with a mask but crowds"
        )
    return prompted


def _detected_boxes(truth: TruthFile, path: str | Path) -> dict[Any, _PromptedBoxes]:
    prompted = {}
    for image_id, found in read_detections(path, truth).items():
        where = f"detections: {path}: image {image_id}"
        boxes = prompt_boxes(found.boxes_xywh, *truth.sizes_hw[image_id], where=where)
        prompted[image_id] = _PromptedBoxes(boxes, found.category_ids, found.scores)
    return prompted


def _overlap(rle: Mapping[str, Any], truth: Mapping[str, Any]) -> float:
    """IoU of two run-length codes; 1 where both are empty."""
    shared, union = (mask_codes().area(mask_codes().merge([rle, truth], each)) for each in (1, 0))
    return iou_of(int(shared), int(union))
