"""Whether scores mean what they say: reliability bins and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tokenize_anything.geometry import to_numpy

NUM_BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions whose score lies in [low, high); the last bin holds its upper edge too.

    mean_score, mean_outcome: of its `count` predictions; None where there are none.
    """

    low: float
    high: float
    count: int
    mean_score: float | None
    mean_outcome: float | None


def reliability_bins(
    scores: ArrayLike, outcomes: ArrayLike, *, num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """Sort predictions into bins of equal width by their score.

    Args:
        scores: (R,) what was claimed; values outside [0, 1] are taken for the nearer end.
        outcomes: (R,) in [0, 1] what came: 1 or 0 for right or wrong, or a measured IoU.
        num_bins: at least 1.

    Raises:
        ValueError: lengths that differ, values that are not finite, outcomes outside [0, 1], or no
            bin.
    """
    claimed, came = (
        np.asarray(to_numpy(name, values), dtype=np.float64).reshape(-1)
        for name, values in (("scores", scores), ("outcomes", outcomes))
    )
    if len(claimed) != len(came):
        raise ValueError(
            f"outcomes: expected one for each of {len(claimed)} scores, got {len(came)}"
        )
    if not np.isfinite(claimed).all() or not ((came >= 0) & (came <= 1)).all():
        raise ValueError("scores, outcomes: expected finite scores and outcomes from 0 to 1")
    if num_bins < 1:
        raise ValueError(f"num_bins: expected at least 1, got {num_bins}")
    claimed = claimed.clip(0, 1)
    edges = np.linspace(0, 1, num_bins + 1)
    rows = np.minimum(np.searchsorted(edges, claimed, side="right") - 1, num_bins - 1)
    return [
        _bin(edges[index : index + 2], claimed[rows == index], came[rows == index])
        for index in range(num_bins)
    ]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """Mean distance of claim and outcome over all predictions (Naeini et al. 2015), in [0, 1].

    Raises:
        ValueError: the bins are empty.
    """
    total = sum(each.count for each in bins)
    if not total:
        raise ValueError("bins: expected at least one prediction, got none")
    gaps = [
        each.count * abs(each.mean_score - each.mean_outcome)
        for each in bins
        if each.mean_score is not None and each.mean_outcome is not None
    ]
    return float(sum(gaps) / total)


def _bin(edges: np.ndarray, scores: np.ndarray, outcomes: np.ndarray) -> ReliabilityBin:
    low, high = edges.tolist()
    if not len(scores):
        return ReliabilityBin(low, high, 0, None, None)
    return ReliabilityBin(low, high, len(scores), float(scores.mean()), float(outcomes.mean()))
