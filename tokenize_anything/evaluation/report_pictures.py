"""Pictures of the recognition report: tiles of the worst cases, and diagrams."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tokenize_anything.contact_sheets import Tile, cut_tile
from tokenize_anything.evaluation.calibration import NUM_BINS, reliability_bins
from tokenize_anything.evaluation.recognition_scores import Row, calibration_pairs, is_ranked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NAMES = 20
OTHERS = "(others)"
_TRUE_COLOR, _FOUND_COLOR = (64, 220, 110), (255, 82, 82)


def make_tile(
    rgb: np.ndarray,
    truth: np.ndarray | None,
    found: np.ndarray,
    box_xyxy: Sequence[float],
    lines: Sequence[str],
) -> Tile:
    """Cut a region out of its photo; the true outline is green, the predicted one red.

    Args:
        rgb: (H,W,3) uint8.
        truth: (H,W) bool, or None.
        found: (H,W) bool.
        box_xyxy: the annotated box, original pixels.
        lines: what is written under it.
    """
    outlined = [(truth, _TRUE_COLOR)] if truth is not None else []
    return cut_tile(rgb, [*outlined, (found, _FOUND_COLOR)], box_xyxy, lines)


def confusion_counts(
    rows: Sequence[Row], max_names: int = MAX_NAMES
) -> tuple[list[str], np.ndarray]:
    """How often each name was taken for which.

    Args:
        rows: of the recognition protocol.
        max_names: only the most frequent true names; all else is one row and column, OTHERS.

    Returns:
        n names, and (n,n) counts with a row per true and a column per predicted name.
    """
    pairs = [(row["name"], row["concepts"][0]) for row in rows if is_ranked(row)]
    counts = Counter(name for name, _ in pairs)
    names = sorted(counts, key=lambda name: (-counts[name], name))[:max_names]
    place = {name: number for number, name in enumerate(names)}
    matrix = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    for pair in pairs:
        matrix[tuple(place.get(name, len(names)) for name in pair)] += 1
    if not matrix[-1].any() and not matrix[:, -1].any():
        return names, matrix[:-1, :-1]
    return [*names, OTHERS], matrix


def draw_confusion(rows: Sequence[Row]) -> bytes:
    """PNG of `confusion_counts`, each row as shares of its true name."""
    names, counts = confusion_counts(rows)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 3.5 + 0.28 * len(names)
    figure = _figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for true, found in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[true, found] > 0.5 else "black"
        text = str(counts[true, found])
        axes.text(found, true, text, ha="center", va="center", fontsize=6, color=color)
    return _png(figure)


def draw_reliability(rows: Sequence[Row]) -> bytes:
    """PNG: for each kind of score, what came in each bin, beside what the score claimed."""
    pairs = list(calibration_pairs(rows))
    figure = _figure(4.2 * len(pairs), 4)
    for number, (name, scores, outcomes) in enumerate(pairs, start=1):
        bins = [each for each in reliability_bins(scores, outcomes) if each.count]
        axes = figure.add_subplot(1, len(pairs), number)
        axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
        axes.bar(
            [(each.low + each.high) / 2 for each in bins],
            [each.mean_outcome or 0.0 for each in bins],
            width=0.9 / NUM_BINS,
        )
        for each in bins:
            middle = (each.low + each.high) / 2
            axes.text(middle, 0.01, str(each.count), ha="center", fontsize=6, rotation=90)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel(f"{name}: what was claimed")
        axes.set_ylabel("measured IoU" if name == "iou_scores" else "share right")
    return _png(figure)


def draw_overlaps(rows: Sequence[Row]) -> bytes:
    """PNG: IoU of the box prompt against the size of the object, a dot per region."""
    masked = [row for row in rows if row["ious"]]
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    sides = [100 * row["area_share"] ** 0.5 for row in masked]
    axes.scatter(sides, [row["ious"]["box"] for row in masked], s=4, alpha=0.4)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("side of the object, percent of the photo's (root of the area)")
    axes.set_ylabel("IoU, box prompt")
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, without matplotlib's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report needs: pip install tokenize-anything[eval]") from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
