"""Region similarity J and boundary accuracy F of video object segmentation, as DAVIS scores them.

The definitions are those of Perazzi et al. 2016, "A Benchmark Dataset and Evaluation Methodology
for Video Object Segmentation", with the details of the DAVIS 2017 toolkit: which pixels are the
boundary, how far it may lie off, what empty masks are worth, which frames count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BOUNDARY_TOLERANCE = 0.008  # of the image diagonal
RECALL_THRESHOLD = 0.5
_NUM_QUARTERS = 4


@dataclass(frozen=True)
class FrameScores:
    """J and F of one object of one clip, frame by frame, first and last frame left out."""

    clip: str
    object_id: int
    j: tuple[float, ...]
    f: tuple[float, ...]


@dataclass(frozen=True)
class SequenceStatistics:
    """Mean, share of frames over RECALL_THRESHOLD, and first minus last quarter."""

    mean: float
    recall: float
    decay: float


def region_similarity(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """J, the intersection over union of two masks (H,W) bool; 1 where both are empty.

    Raises:
        ValueError: masks of other sizes.
    """
    _check_pair(truth, predicted)
    union = np.count_nonzero(truth | predicted)
    return np.count_nonzero(truth & predicted) / union if union else 1.0


def boundary_similarity(
    truth: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    *,
    tolerance: float = BOUNDARY_TOLERANCE,
) -> float:
    """F, the harmonic mean of precision and recall of the boundary pixels.

    A boundary pixel is right when the other mask has a boundary pixel within a disc of
    ceil(tolerance * diagonal) pixels. Two masks without boundary agree; one without scores 0.

    Args:
        truth: (H,W) bool.
        predicted: (H,W) bool.
        tolerance: share of the diagonal.

    Raises:
        ValueError: masks of other sizes.
    """
    _check_pair(truth, predicted)
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    wanted, found = boundary_pixels(truth), boundary_pixels(predicted)
    num_wanted, num_found = np.count_nonzero(wanted), np.count_nonzero(found)
    if not num_wanted and not num_found:
        return 1.0
    if not num_wanted or not num_found:
        return 0.0
    precision = np.count_nonzero(found & _grow(wanted, radius)) / num_found
    recall = np.count_nonzero(wanted & _grow(found, radius)) / num_wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_pixels(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (H,W) that differ from their right, lower or lower right neighbour in the picture."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")  # beyond the border nothing differs
    right, lower, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ lower) | (mask ^ diagonal)


def score_clip(
    clip: str, truth: Sequence[NDArray[np.uint8]], predicted: Sequence[NDArray[np.uint8]]
) -> list[FrameScores]:
    """J and F of every object of a clip in the semi-supervised protocol.

    The objects are 1 to the highest number of the first true frame; 255 counts as background. The
    first frame is given and the last is left out by the benchmark's rule.

    Args:
        clip: its name.
        truth: T label maps (H,W) each, 0 background.
        predicted: the same; an object that is not in it has an empty mask.

    Raises:
        ValueError: under three frames, numbers of frames or sizes that differ, or predicted objects
            that the first true frame does not have.
    """
    if len(truth) != len(predicted) or len(truth) < 3:
        raise ValueError(
            f"{clip}: expected at least 3 frames and as many predicted, got {len(truth)} and "
            f"{len(predicted)}"
        )
    num_objects = count_objects(truth[0])
    extra = max(count_objects(labels) for labels in predicted)
    if extra > num_objects:
        raise ValueError(
            f"{clip}: expected objects 1..{num_objects}, as in the first true frame, got {extra}"
        )
    scores = []
    for number in range(1, num_objects + 1):
        pairs = [
            (wanted == number, found == number)
            for wanted, found in zip(truth[1:-1], predicted[1:-1], strict=True)
        ]
        j = tuple(region_similarity(*pair) for pair in pairs)
        f = tuple(boundary_similarity(*pair) for pair in pairs)
        scores.append(FrameScores(clip, number, j, f))
    return scores


def count_objects(labels: NDArray[np.uint8]) -> int:
    """The highest object number of a label map (H,W); 255 is no object."""
    return int(labels.max(initial=0, where=labels != 255))


def sequence_statistics(values: Sequence[float]) -> SequenceStatistics:
    """Mean, recall and decay of one object's frames.

    Raises:
        ValueError: no frame.
    """
    if not len(values):
        raise ValueError("values: expected at least one frame, got none")
    array = np.asarray(values, dtype=np.float64)
    # Quarters share their border frames; halves are rounded up.
    bounds = np.linspace(1, len(array), _NUM_QUARTERS + 1)
    first_end, last_start = (int(np.round(bounds[index] + 1e-10)) - 1 for index in (1, -2))
    decay = array[: first_end + 1].mean() - array[last_start:].mean()
    return SequenceStatistics(
        float(array.mean()), float((array > RECALL_THRESHOLD).mean()), float(decay)
    )


def summarize(scores: Sequence[FrameScores]) -> Iterator[tuple[str, float]]:
    """Yield the benchmark's figures, in percent: means over objects, each the mean of its frames.

    Raises:
        ValueError: no object.
    """
    if not scores:
        raise ValueError("scores: expected at least one object, got none")
    by_metric = {
        "J": [sequence_statistics(each.j) for each in scores],
        "F": [sequence_statistics(each.f) for each in scores],
    }
    means = {name: np.mean([each.mean for each in rows]) for name, rows in by_metric.items()}
    yield "J&F", 100 * float(np.mean(list(means.values())))
    for name, rows in by_metric.items():
        yield name, 100 * float(means[name])
        yield f"{name} recall", 100 * float(np.mean([each.recall for each in rows]))
        yield f"{name} decay", 100 * float(np.mean([each.decay for each in rows]))


def _grow(pixels: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """All pixels within a disc of a set one."""
    steps = np.arange(-radius, radius + 1)
    disc = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)
    return cv2.dilate(pixels.astype(np.uint8), disc).astype(bool)


def _check_pair(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> None:
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise ValueError(
            f"masks: expected two of one size (H,W), got {truth.shape} and {predicted.shape}; "
            "resize without smoothing"
        )
