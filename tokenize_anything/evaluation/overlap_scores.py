"""Mean and cumulative IoU of masks, from the pixels that two masks share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def count_overlap(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Pixels of the intersection and of the union of two (H,W) bool masks."""
    return int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth))


def mean_iou(overlaps: Sequence[tuple[int, int]]) -> float:
    """Mean of intersection / union over regions, in percent; two empty masks count as equal."""
    return 100 * float(np.mean([iou_of(shared, union) for shared, union in overlaps]))


def cumulative_iou(overlaps: Sequence[tuple[int, int]]) -> float:
    """All intersections over all unions, in percent: large regions weigh more."""
    shared, union = np.sum(np.asarray(overlaps, np.int64).reshape(-1, 2), axis=0).tolist()
    return 100 * iou_of(shared, union)


def iou_of(shared: int, union: int) -> float:
    """Intersection over union in [0, 1]; 1 where both masks are empty."""
    return shared / union if union else 1.0
