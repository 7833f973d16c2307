"""Masks, names and captions on anyone's COCO-style data: one prompt of each kind per region."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenize_anything.evaluation.answers import RegionModel, decode_prompts, split_rows
from tokenize_anything.evaluation.baselines import disc_at, ellipse_in_box, filled_box
from tokenize_anything.evaluation.captioning import keep_on_photo, skip_java_metrics
from tokenize_anything.evaluation.recognition_scores import recognition_metrics
from tokenize_anything.evaluation.region_truth import (
    TrueImage,
    TrueRegion,
    decode_true_image,
    list_true_images,
)
from tokenize_anything.evaluation.rule_predictor import DISC_RADIUS
from tokenize_anything.evaluation.run_files import file_digest
from tokenize_anything.evaluation.runner import (
    Metric,
    RunnerConfig,
    WorkItem,
    model_digest,
    run_evaluation,
)
from tokenize_anything.geometry import encode_rle, innermost_point
from tokenize_anything.image_transform import load_image
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import DecodedImage, EncodedImage
from tokenize_anything.text_generation import GenerationConfig

TOP_K = 5


@dataclass(frozen=True)
class RecognitionConfig:
    """What is measured beside names, masks and plain CIDEr.

    with_boxes: regions without a mask count for names and captions.
    java_metrics: METEOR, and CIDEr on PTB tokens as published tables have it; a warning says so
        where there is no Java for them.
    generation: how captions are written; greedy by default.
    """

    with_boxes: bool = False
    java_metrics: bool = False
    generation: GenerationConfig = field(default_factory=GenerationConfig)


@dataclass(frozen=True, eq=False)
class _Photo:
    """A decoded photo (H,W,3) and its true regions; no regions, no photo."""

    rgb: np.ndarray | None
    truth: TrueImage


@dataclass(frozen=True, eq=False)
class _Answer:
    """What the model says about one photo's regions.

    by_box: masks and scores of the box prompts. others: masks (R,H,W) by kind of prompt, rows of
    regions without a mask are empty. concepts: R lists, empty without a vocabulary.
    """

    by_box: DecodedImage
    others: Mapping[str, np.ndarray]
    concepts: list[list[str]]
    concept_scores: np.ndarray
    captions: list[str | None]


class RecognitionTask:
    """Prompts every region with its box, its innermost point and nine points of its mask.

    Names and captions come from the box prompt.
    """

    name = "recognition"

    def __init__(self, predictor: RegionModel, config: RecognitionConfig | None = None) -> None:
        self.predictor = predictor
        self.config = config or RecognitionConfig()

    def load(self, item: WorkItem) -> _Photo:
        """Decode the photo and its masks."""
        truth = decode_true_image(item.paths[0], item.content)
        return _Photo(load_image(str(truth.path)) if truth.regions else None, truth)

    def answer(self, loaded: Sequence[_Photo]) -> list[_Answer | None]:
        """Ask about all regions; photos without any get None."""
        asked = [photo for photo in loaded if photo.rgb is not None]
        if not asked:
            return [None] * len(loaded)
        encoded = self.predictor.encode_images([photo.rgb for photo in asked])
        by_box = [
            decode_prompts(self.predictor, features, PointPrompts.from_boxes(_boxes(photo)))
            for photo, features in zip(asked, encoded, strict=True)
        ]
        others = [
            self._other_masks(photo, features)
            for photo, features in zip(asked, encoded, strict=True)
        ]
        words = self._words(by_box)
        answers = iter([_Answer(*each) for each in zip(by_box, others, *words, strict=True)])
        return [None if photo.rgb is None else next(answers) for photo in loaded]

    def to_rows(
        self, item: WorkItem, loaded: _Photo, answer: _Answer | None
    ) -> list[dict[str, Any]]:
        """One object per region: what is true, what was said, and how well the masks fit."""
        if answer is None:
            return []
        return [
            {"image_id": item.key, **_truth_row(region), **_answer_row(answer, row)}
            | {"ious": _ious(region, row, answer) if region.mask is not None else {}}
            for row, region in enumerate(loaded.truth.regions)
        ]

    def score(self, items: Sequence[WorkItem], rows: Iterator[dict[str, Any]]) -> Iterator[Metric]:
        """See `recognition_metrics`."""
        java_metrics = self.config.java_metrics and not skip_java_metrics()
        return recognition_metrics(rows, java_metrics=java_metrics)

    def _other_masks(self, photo: _Photo, encoded: EncodedImage) -> dict[str, np.ndarray]:
        """Masks (R,H,W) of the prompts that are made from true masks."""
        regions = photo.truth.regions
        rows = [row for row, region in enumerate(regions) if region.mask is not None]
        truths = [region.mask for region in regions if region.mask is not None]
        found = {
            kind: np.zeros((len(regions), *encoded.original_hw), bool) for kind in ("point", "mask")
        }
        if not rows:
            return found
        prompts = {
            "point": PointPrompts.from_points([innermost_point(mask) for mask in truths]),
            "mask": PointPrompts.from_masks(np.stack(truths)),
        }
        for kind, masks in found.items():
            masks[rows] = decode_prompts(
                self.predictor, encoded, prompts[kind], with_names=False
            ).masks
        return found

    def _words(self, decoded: Sequence[DecodedImage]) -> tuple[list[Any], list[Any], list[Any]]:
        """Concepts, their scores and captions of all photos together, cut into one part each."""
        counts = [len(each.iou_scores) for each in decoded]
        concepts: Any = [[]] * sum(counts)
        scores = np.zeros((sum(counts), 0), np.float32)
        captions: Any = [None] * sum(counts)
        if self.predictor.concepts is not None:
            concepts, scores = self.predictor.describe_concepts(
                torch.cat([each.semantic_embeddings for each in decoded]),
                top_k=min(TOP_K, len(self.predictor.concepts)),
            )
        if getattr(self.predictor, "text_tokenizer", self.predictor) is not None:
            captions, _ = self.predictor.write_captions(
                torch.cat([each.semantic_tokens for each in decoded]),
                generation=self.config.generation,
            )
        return (
            split_rows(concepts, counts),
            split_rows(scores, counts),
            split_rows(captions, counts),
        )


def evaluate_recognition(
    predictor: RegionModel,
    annotations: str | Path,
    image_folder: str | Path,
    *,
    max_images: int | None = None,
    protocol: RecognitionConfig | None = None,
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Prompt every region with its box, its innermost point and nine points of its mask.

    Args:
        predictor: the model, or a baseline; without vocabulary or text tokenizer no names or no
            captions are scored.
        annotations: COCO-style JSON with `categories`, and `captions` where there are some.
        image_folder: where `file_name` is looked up.
        max_images: only the first photos, where `config` does not say.
        protocol: what is measured.
        config: where results go, and how the work is done.

    Yields:
        (metric, value), see `recognition_scores.recognition_metrics`.

    Raises:
        FileNotFoundError, ValueError: see `list_true_images` and `run_evaluation`.
    """
    config = config or RunnerConfig(max_items=max_images)
    task = RecognitionTask(predictor, protocol)
    items = recognition_items(annotations, image_folder, with_boxes=task.config.with_boxes)
    settings = {
        "model": model_digest(predictor),
        "data": file_digest(annotations),
        "with_boxes": task.config.with_boxes,
        "generation": repr(task.config.generation),
    }
    return run_evaluation(task, items, settings, config)


def recognition_items(
    annotations: str | Path, image_folder: str | Path, *, with_boxes: bool = False
) -> list[WorkItem]:
    """What the runner works through: a photo each, with its raw annotations."""
    images = list_true_images(annotations, image_folder, with_boxes=with_boxes)
    return [WorkItem(regions[0]["image_id"], (path,), regions) for path, regions in images]


def _boxes(photo: _Photo) -> list[tuple[float, float, float, float]]:
    assert photo.rgb is not None
    height, width = photo.rgb.shape[:2]
    return [keep_on_photo(region.box_xyxy, height, width) for region in photo.truth.regions]


def _truth_row(region: TrueRegion) -> dict[str, Any]:
    area = None if region.mask is None else float(region.mask.mean())
    return {
        "annotation_id": region.annotation_id,
        "box_xyxy": list(region.box_xyxy),
        "name": region.name,
        "references": list(region.references),
        "area_share": area,
    }


def _answer_row(answer: _Answer, row: int) -> dict[str, Any]:
    return {
        "segmentation": encode_rle(answer.by_box.masks[row]),
        "iou_score": float(answer.by_box.iou_scores[row]),
        "concepts": list(answer.concepts[row]),
        "concept_scores": [float(score) for score in answer.concept_scores[row]],
        "caption": answer.captions[row],
    }


def _ious(region: TrueRegion, row: int, answer: _Answer) -> dict[str, float]:
    """Overlap of one region's true mask with the answers, and with what needs no model."""
    truth = region.mask
    assert truth is not None
    shape = (truth.shape[0], truth.shape[1])
    masks = {
        "box": answer.by_box.masks[row],
        **{kind: masks[row] for kind, masks in answer.others.items()},
        "filled box": filled_box(shape, region.box_xyxy),
        "ellipse in box": ellipse_in_box(shape, region.box_xyxy),
        "disc at point": disc_at(shape, innermost_point(truth), DISC_RADIUS * max(shape)),
    }
    return {key: _iou(mask, truth) for key, mask in masks.items()}


def _iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 0.0
