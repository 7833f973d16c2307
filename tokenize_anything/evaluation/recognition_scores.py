"""From the rows of the recognition protocol to its figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tokenize_anything.evaluation.baselines import commonest
from tokenize_anything.evaluation.calibration import expected_calibration_error, reliability_bins
from tokenize_anything.evaluation.caption_scores import (
    candidate_constants,
    cider,
    score_captions,
    tokenize,
)

Row = dict[str, Any]
# COCO's sizes, 32 and 96 pixels squared, as shares of its usual photo of 640 x 480.
SIZE_LIMITS = {
    "small": (0.0, 32**2 / (640 * 480)),
    "medium": (32**2 / (640 * 480), 96**2 / (640 * 480)),
    "large": (96**2 / (640 * 480), 1.01),
}
SURE = 0.8  # a concept score above which a caption should not say anything else
_NOT_IN_A_NAME = re.compile(r"\([^)]*\)|[_-]")


def recognition_metrics(
    rows: Iterable[Row], *, java_metrics: bool = False
) -> Iterator[tuple[str, float]]:
    """Yield all figures as fractions of 1; CIDEr on the reference package's scale.

    In this order: number of regions; mean IoU per kind of prompt and per baseline; concept top-1
    and top-5 of the box prompt over the predictor's vocabulary, beside always answering the
    commonest name; CIDEr of the captions on plain words, beside the best single caption among the
    references (a name counts as a caption where a region has none); mean IoU of the box prompt by
    size of the object, see SIZE_LIMITS; share of named regions whose caption says the name, and
    of those whose first concept scores at least SURE whose caption says that concept;
    expected calibration error of `iou_scores`, against the measured IoU, and of `concept_scores`,
    against right or wrong. What nothing in the data allows is left out.

    Args:
        rows: of the protocol, in order.
        java_metrics: METEOR and CIDEr as published tables have them, too.
    """
    listed = [_without_masks(row) for row in rows]
    yield "regions", float(len(listed))
    yield from _iou_metrics(listed)
    yield from _concept_metrics(listed)
    yield from _caption_metrics(listed)
    yield from _size_metrics(listed)
    yield from _agreement(listed)
    yield from _calibration(listed)
    if java_metrics:
        yield from _java_metrics(listed)


def says_name(caption: str, name: str) -> bool:
    """Whether a caption holds a name as whole words, in singular or simple plural.

    What stands in brackets in a name is left out, as in "bow (decorative ribbons)". All words of
    the name must follow one another.
    """
    wanted = tokenize(_NOT_IN_A_NAME.sub(" ", name)).split()
    said = tokenize(caption).split()
    if not wanted:
        return False
    starts = range(len(said) - len(wanted) + 1)
    return any(
        said[start : start + len(wanted) - 1] == wanted[:-1]
        and _is_same_noun(said[start + len(wanted) - 1], wanted[-1])
        for start in starts
    )


def caption_pairs(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """Captions and their references, of regions that have both."""
    pairs = [
        (row["caption"], row["references"])
        for row in rows
        if row["references"] and row["caption"] is not None
    ]
    return [caption for caption, _ in pairs], [references for _, references in pairs]


def is_ranked(row: Row) -> bool:
    """Whether a region has a name, and the model ranked names for it."""
    return row["name"] is not None and bool(row["concepts"])


def _iou_metrics(rows: list[Row]) -> Iterator[tuple[str, float]]:
    masked = [row for row in rows if row["ious"]]
    if len(masked) < len(rows):
        yield "regions with a mask", float(len(masked))
    for key in masked[0]["ious"] if masked else ():
        yield f"{key} mean IoU", float(np.mean([row["ious"][key] for row in masked]))


def _concept_metrics(rows: list[Row]) -> Iterator[tuple[str, float]]:
    named = [row for row in rows if is_ranked(row)]
    if not named:
        return
    names = [row["name"] for row in named]
    yield "named regions", float(len(named))
    yield "concept top-1", float(np.mean([row["concepts"][0] == row["name"] for row in named]))
    yield "concept top-5", float(np.mean([row["name"] in row["concepts"] for row in named]))
    yield "commonest name", Counter(names)[commonest(names)] / len(names)


def _caption_metrics(rows: list[Row]) -> Iterator[tuple[str, float]]:
    captions, references = caption_pairs(rows)
    if not captions:
        return
    yield "described regions", float(len(captions))
    yield "caption CIDEr", cider(captions, references)
    yield (
        "best constant caption CIDEr",
        max(
            cider([constant] * len(references), references)
            for constant in candidate_constants(references)
        ),
    )


def _java_metrics(rows: list[Row]) -> Iterator[tuple[str, float]]:
    captions, references = caption_pairs(rows)
    if not captions:
        return
    for score in score_captions(captions, references):
        if score.metric in ("METEOR", "CIDEr"):
            yield f"caption {score.metric} (PTB)", score.value


def _size_metrics(rows: list[Row]) -> Iterator[tuple[str, float]]:
    for size, (low, high) in SIZE_LIMITS.items():
        ious = [
            row["ious"]["box"] for row in rows if row["ious"] and low <= row["area_share"] < high
        ]
        if ious:
            yield f"{size} objects", float(len(ious))
            yield f"box mean IoU, {size} objects", float(np.mean(ious))


def _agreement(rows: list[Row]) -> Iterator[tuple[str, float]]:
    said = [
        says_name(row["caption"], row["name"])
        for row in rows
        if row["name"] is not None and row["caption"] is not None
    ]
    if said:
        yield "caption says the name", float(np.mean(said))
    sure = [
        says_name(row["caption"], row["concepts"][0])
        for row in rows
        if row["caption"] is not None and row["concepts"] and row["concept_scores"][0] >= SURE
    ]
    if sure:
        yield "sure concepts", float(len(sure))
        yield "caption says a sure concept", float(np.mean(sure))


def _calibration(rows: list[Row]) -> Iterator[tuple[str, float]]:
    for name, scores, outcomes in calibration_pairs(rows):
        bins = reliability_bins(scores, outcomes)
        yield f"{name} calibration error", expected_calibration_error(bins)


def calibration_pairs(rows: Sequence[Row]) -> Iterator[tuple[str, list[float], list[float]]]:
    """Which scores claim what: (name, scores (R,), outcomes (R,)), none of them empty."""
    masked = [row for row in rows if row["ious"]]
    named = [row for row in rows if is_ranked(row)]
    if masked:
        outcomes = [row["ious"]["box"] for row in masked]
        yield "iou_scores", [row["iou_score"] for row in masked], outcomes
    if named:
        right = [float(row["concepts"][0] == row["name"]) for row in named]
        yield "concept_scores", [row["concept_scores"][0] for row in named], right


def _is_same_noun(said: str, wanted: str) -> bool:
    return said == wanted or said in _plurals(wanted) or wanted in _plurals(said)


def _plurals(word: str) -> set[str]:
    """The regular plurals of a word: dogs, benches, cherries, knives, shelves."""
    forms = {f"{word}s", f"{word}es"}
    for ending, plural in (("y", "ies"), ("f", "ves"), ("fe", "ves")):
        if word.endswith(ending):
            forms.add(word[: -len(ending)] + plural)
    return forms


def _without_masks(row: Row) -> Row:
    """The row without its long run-length code."""
    return {key: value for key, value in row.items() if key != "segmentation"}
