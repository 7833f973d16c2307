"""Bare recognition: the names of boxes that are given, as box AP (paper section 4, table 2)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenize_anything.evaluation.answers import (
    PromptedPhoto,
    RegionModel,
    answer_photos,
    split_rows,
)
from tokenize_anything.evaluation.average_precision import average_precision
from tokenize_anything.evaluation.coco_truth import (
    TruthFile,
    load_photo,
    mask_codes,
    prompt_boxes,
    read_truth,
    truth_items,
)
from tokenize_anything.evaluation.run_files import file_digest
from tokenize_anything.evaluation.runner import (
    Metric,
    RunnerConfig,
    WorkItem,
    model_digest,
    run_evaluation,
)
from tokenize_anything.prompts import PointPrompts

PROBABILITY_FLOOR = 0.001
SUPPRESSION_IOU = 0.5
MAX_RESULTS = 300  # per photo


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Annotated boxes of one photo: (R,4) as prompts and (R,4) as written in the file."""

    boxes_xyxy: np.ndarray
    boxes_xywh: np.ndarray


@dataclass(frozen=True, eq=False)
class _Named:
    """What the model says of R boxes: probabilities (R,K) and predicted IoU (R,)."""

    probabilities: np.ndarray
    iou_scores: np.ndarray


def evaluate_classification(
    predictor: RegionModel,
    annotations: str | Path,
    image_folder: str | Path,
    *,
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Prompt every annotated box, name what is in it, and score the names as detections.

    Every class with a probability over 0.001 is a result of its box, scored sqrt(p * IoU) with the
    predicted IoU cut to 0..1. Of boxes with the same class that overlap by more than 0.5 the best
    stays. The best 300 results of a photo count, more where the last ones are equal.

    Args:
        predictor: a model whose `concepts` are the categories of the file, by name or in order.
        annotations: COCO- or LVIS-style JSON with categories; crowds are left out.
        image_folder: of the photos; see `evaluate_segmentation`.
        config: how to run.

    Yields:
        The metrics of `average_precision` on boxes, in percent.

    Raises:
        FileNotFoundError: a file or photos that are not there.
        ImportError: the extra is missing.
        ValueError: a damaged file, an empty split, a predictor without concepts, or concepts that
            are not the file's categories.
    """
    mask_codes()  # fail before the work where the extra is missing
    truth = read_truth(annotations)
    columns = match_categories(predictor, truth)
    items = truth_items(truth, image_folder, _annotated_boxes(truth))
    settings = {"model": model_digest(predictor), "annotations": file_digest(annotations)}
    task = _ClassificationTask(predictor, truth, columns)
    yield from run_evaluation(task, items, settings, config)


class _ClassificationTask:
    """Boxes in, COCO results with the same boxes and names out."""

    name = "classification"

    def __init__(
        self, predictor: RegionModel, truth: TruthFile, columns: Mapping[Any, int]
    ) -> None:
        self.predictor = predictor
        self.truth = truth
        self.category_ids = list(columns)
        self.columns = np.array(list(columns.values()))

    def load(self, item: WorkItem) -> PromptedPhoto | None:
        """The photo and its boxes; None where it has no boxes."""
        if item.content is None:
            return None
        prompts = PointPrompts.from_boxes(item.content.boxes_xyxy)
        return PromptedPhoto(load_photo(item.paths[0], self.truth.sizes_hw[item.key]), prompts)

    def answer(self, loaded: Sequence[PromptedPhoto | None]) -> list[_Named | None]:
        """Name the boxes of all photos together."""
        answers = answer_photos(self.predictor, loaded, with_masks=False)
        present = [answer for answer in answers if answer is not None]
        if not present:
            return [None] * len(answers)
        assert self.predictor.concepts is not None
        embeddings = torch.cat([answer.semantic_embeddings for answer in present])
        chances = self.predictor.concepts.log_probs(embeddings).exp().cpu().numpy()
        parts = split_rows(chances, [len(answer.iou_scores) for answer in present])
        named = (
            _Named(part, answer.iou_scores.cpu().numpy())
            for part, answer in zip(parts, present, strict=True)
        )
        return [None if answer is None else next(named) for answer in answers]

    def to_rows(self, item: WorkItem, loaded: Any, answer: _Named | None) -> list[dict[str, Any]]:
        """COCO results, best first."""
        if answer is None:
            return []
        boxes = item.content.boxes_xywh
        chances = answer.probabilities[:, self.columns]
        return [
            {
                "image_id": item.key,
                "category_id": self.category_ids[column],
                "bbox": boxes[row].tolist(),
                "score": score,
            }
            for row, column, score in recognition_results(chances, answer.iou_scores, boxes)
        ]

    def score(self, items: Sequence[WorkItem], rows: Iterator[dict[str, Any]]) -> Iterator[Metric]:
        """See `evaluate_classification`."""
        photos = [item.key for item in items]
        yield from average_precision(
            self.truth, list(rows), kind="bbox", image_ids=photos, max_detections=MAX_RESULTS
        )


def recognition_results(
    probabilities: np.ndarray, iou_scores: np.ndarray, boxes_xywh: np.ndarray
) -> Iterator[tuple[int, int, float]]:
    """The results of one photo: (row of the box, column of the class, score), best first.

    Args:
        probabilities: (R,K) of the classes.
        iou_scores: (R,) predicted, cut to 0..1 here.
        boxes_xywh: (R,4).
    """
    quality = np.clip(iou_scores, 0, 1)[:, None]
    scores = np.sqrt(probabilities.astype(np.float64) * quality)
    is_result = _keep_best_of_overlapping(scores, probabilities > PROBABILITY_FLOOR, boxes_xywh)
    rows, columns = np.nonzero(is_result)
    found = scores[rows, columns]
    if len(found) > MAX_RESULTS:
        floor = np.partition(found, -MAX_RESULTS)[-MAX_RESULTS]
        rows, columns, found = rows[found >= floor], columns[found >= floor], found[found >= floor]
    for index in np.argsort(-found, kind="stable"):
        yield int(rows[index]), int(columns[index]), float(found[index])


def _keep_best_of_overlapping(
    scores: np.ndarray, is_candidate: np.ndarray, boxes_xywh: np.ndarray
) -> np.ndarray:
    """Non-maximum suppression of every class at once: (R,K) scores and flags to (R,K) flags."""
    overlaps = box_iou(boxes_xywh, boxes_xywh) > SUPPRESSION_IOU  # (R,R)
    order = np.argsort(np.where(is_candidate, -scores, np.inf), axis=0, kind="stable")  # (R,K)
    classes = np.arange(scores.shape[1])
    kept = np.zeros_like(is_candidate)
    is_open = is_candidate.copy()
    for rows in order:  # the best box of each class, then the second best, and so on
        is_kept = is_open[rows, classes]
        kept[rows, classes] = is_kept
        is_open &= ~(overlaps[rows].T & is_kept)
    return kept


def box_iou(boxes_xywh: np.ndarray, others_xywh: np.ndarray) -> np.ndarray:
    """(R,4) and (Q,4) boxes to (R,Q) intersections over unions; 0 where both have no area."""
    low = np.maximum(boxes_xywh[:, None, :2], others_xywh[None, :, :2])
    high = np.minimum(
        boxes_xywh[:, None, :2] + boxes_xywh[:, None, 2:],
        others_xywh[None, :, :2] + others_xywh[None, :, 2:],
    )
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = boxes_xywh[:, 2:].prod(axis=-1)[:, None] + others_xywh[:, 2:].prod(axis=-1)[None]
    return shared / np.maximum(areas - shared, np.finfo(np.float64).tiny)


def match_categories(predictor: RegionModel, truth: TruthFile) -> dict[Any, int]:
    """Category ids of a file to columns of the predictor's concepts.

    By name, where "_" and "-" count as blanks and case does not count. A vocabulary of as many
    names as there are categories, of which most stand at the same place, is matched by order: so
    are the published ones, whose spelling differs here and there.

    Raises:
        ValueError: no concepts, no categories, or no name in common.
    """
    if predictor.concepts is None:
        raise ValueError("concepts: the predictor has no vocabulary; pass concepts (--concepts)")
    if not truth.category_names:
        raise ValueError(f"annotations: {truth.path} lists no categories to choose among")
    names = [_plain(name) for name in predictor.concepts.names]
    wanted = {identity: _plain(name) for identity, name in truth.category_names.items()}
    agreeing = sum(name == other for name, other in zip(names, wanted.values(), strict=False))
    if len(names) == len(wanted) and 2 * agreeing > len(names):
        return {identity: column for column, identity in enumerate(wanted)}
    column_of = {name: column for column, name in enumerate(names)}
    columns = {identity: column_of[name] for identity, name in wanted.items() if name in column_of}
    used = {each.get("category_id") for each in truth.content["annotations"]} - {None}
    lost = [truth.category_names[identity] for identity in used if identity not in columns]
    if not columns or len(lost) == len(used):
        raise ValueError(
            f"concepts: none of the {len(used)} categories of {truth.path.name}, such as "
            f"{lost[:3]}, is among the {len(names)} concepts; pass the vocabulary of this data set"
        )
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(used)} categories of {truth.path.name} are no concepts of the "
            f"model and can never be right, such as {sorted(lost)[:3]}",
            stacklevel=3,
        )
    return columns


def _plain(name: str) -> str:
    return re.sub(r"[_\-\s]+", " ", name).strip().lower()


def _annotated_boxes(truth: TruthFile) -> dict[Any, _Boxes]:
    boxes = {}
    for image in truth.content["images"]:
        named = [each for each in truth.regions(image["id"]) if each.get("category_id") is not None]
        if named:
            written = np.array([each["bbox"] for each in named], np.float64)
            where = f"annotations: {truth.path}: image {image['id']}"
            prompts = prompt_boxes(written, image["height"], image["width"], where=where)
            boxes[image["id"]] = _Boxes(prompts, written)
    if not boxes:
        raise ValueError(
            f"annotations: {truth.path} is an empty split: no region with a category but crowds"
        )
    return boxes
