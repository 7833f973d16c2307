"""Masks, names and captions on anyone's COCO-style data: one prompt per region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tokenize_anything.evaluation.baselines import commonest, disc_at, ellipse_in_box, filled_box
from tokenize_anything.evaluation.caption_scores import cider
from tokenize_anything.evaluation.region_truth import (
    TrueImage,
    innermost_point,
    load_true_images,
    read_true_images,
)
from tokenize_anything.predictor import TAPPredictor
from tokenize_anything.regions import RegionPredictions

TOP_K = 5


@dataclass
class _Tally:
    """Per-region results, in the order of the annotations."""

    ious: dict[str, list[float]] = field(default_factory=dict)
    ranks: list[int | None] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    references: list[tuple[str, ...]] = field(default_factory=list)

    def add_iou(self, key: str, predicted: np.ndarray, truth: np.ndarray) -> None:
        union = np.count_nonzero(predicted | truth)
        iou = np.count_nonzero(predicted & truth) / union if union else 0.0
        self.ious.setdefault(key, []).append(iou)


def evaluate_recognition(
    predictor: TAPPredictor,
    annotations: str | Path,
    image_folder: str | Path,
    *,
    max_images: int | None = None,
) -> Iterator[tuple[str, float]]:
    """Prompt every region with its box, its innermost point and nine points of its mask.

    Yields:
        (metric, value): mean IoU per kind of prompt and per baseline; concept top-1 and top-5 of
        the box prompt over the predictor's vocabulary, beside always answering the commonest name;
        CIDEr of the captions, beside the best single caption among the references; the number of
        regions behind each.

    Raises:
        FileNotFoundError, ValueError: see `read_true_images`.
    """
    tally = _Tally()
    images = read_true_images(annotations, image_folder)[:max_images]
    for image in tqdm(load_true_images(images), total=len(images), desc="regions", mininterval=5):
        if image.regions:
            _score_image(predictor, image, tally)
    yield "regions", float(len(next(iter(tally.ious.values()))))
    for key, values in tally.ious.items():
        yield f"{key} mean IoU", float(np.mean(values))
    yield from _concept_metrics(tally)
    yield from _caption_metrics(tally)


def _score_image(predictor: TAPPredictor, image: TrueImage, tally: _Tally) -> None:
    encoded = predictor.encode_images(image.path)
    truths = [region.mask for region in image.regions]
    points = [innermost_point(mask) for mask in truths]
    boxes = [region.box_xyxy for region in image.regions]
    by_box = predictor.predict_mask_concept_caption(encoded, boxes=boxes, top_k=TOP_K)
    others = {
        "point": predictor.predict_mask_concept_caption(encoded, points=points, captions=False),
        "mask": predictor.predict_mask_concept_caption(
            encoded, masks=np.stack(truths), captions=False
        ),
    }
    for row, (truth, point) in enumerate(zip(truths, points, strict=True)):
        tally.add_iou("box", by_box.masks[row], truth)
        for key, regions in others.items():
            tally.add_iou(key, regions.masks[row], truth)
        shape = (truth.shape[0], truth.shape[1])
        tally.add_iou("filled box", filled_box(shape, boxes[row]), truth)
        tally.add_iou("ellipse in box", ellipse_in_box(shape, boxes[row]), truth)
        tally.add_iou("disc at point", disc_at(shape, point, 0.06 * max(shape)), truth)
    _tally_words(by_box, image, tally)


def _tally_words(regions: RegionPredictions, image: TrueImage, tally: _Tally) -> None:
    for row, truth in enumerate(image.regions):
        if truth.name is not None:
            ranked = regions.concepts[row]
            tally.names.append(truth.name)
            tally.ranks.append(ranked.index(truth.name) if truth.name in ranked else None)
        caption = regions.captions[row]
        if truth.references and caption is not None:
            tally.captions.append(caption)
            tally.references.append(truth.references)


def _concept_metrics(tally: _Tally) -> Iterator[tuple[str, float]]:
    if not tally.names:
        return
    yield "named regions", float(len(tally.names))
    yield "concept top-1", float(np.mean([rank == 0 for rank in tally.ranks]))
    yield "concept top-5", float(np.mean([rank is not None for rank in tally.ranks]))
    counts = Counter(tally.names)
    yield "commonest name", counts[commonest(tally.names)] / len(tally.names)


def _caption_metrics(tally: _Tally) -> Iterator[tuple[str, float]]:
    if not tally.captions:
        return
    yield "described regions", float(len(tally.captions))
    yield "caption CIDEr", cider(tally.captions, tally.references)
    yield (
        "best constant caption CIDEr",
        max(
            cider([constant] * len(tally.references), tally.references)
            for constant in _candidate_constants(tally.references)
        ),
    )


def _candidate_constants(references: Sequence[tuple[str, ...]], count: int = 20) -> list[str]:
    """The most frequent references: the best constant answer is among them or close to one."""
    counts = Counter(text for row in references for text in row)
    return [text for text, _ in counts.most_common(count)]
