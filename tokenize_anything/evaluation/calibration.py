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


def fit_temperature(log_probs: ArrayLike, true_index: ArrayLike) -> float:
    """The factor on log-probabilities with which the highest one says how often it is right.

    It has the least squared error of the likeliest class's probability from 1, where that class is
    true, and from 0 elsewhere (Brier 1950). A single factor for all is that of Guo et al. 2017.

    Args:
        log_probs: (R,K) of K classes; any constant for each row may be added.
        true_index: (R,) whole numbers from 0 to K - 1; -1 where none of the classes is true.

    Returns:
        A factor from 1/20 to 20, to multiply logits with: under 1 for a model that is too sure.

    Raises:
        ValueError: other shapes, no rows, or values that are not finite.
    """
    values = np.asarray(to_numpy("log_probs", log_probs), dtype=np.float64)
    rows = np.asarray(to_numpy("true_index", true_index)).reshape(-1)
    if values.ndim != 2 or len(values) != len(rows) or not len(rows):
        raise ValueError(
            f"log_probs: expected (R,K) with R = {len(rows)} rows, at least one, got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("log_probs: expected finite numbers")

    below_top = values - values.max(axis=1, keepdims=True)
    is_right = values.argmax(axis=1) == rows

    def mean_loss(logarithm: float) -> float:
        top_probs = 1 / np.exp(below_top * np.exp(logarithm)).sum(axis=1)
        return float(((top_probs - is_right) ** 2).mean())

    low, high = -np.log(20), np.log(20)
    for _ in range(4):  # each time finer, around the best
        tried = np.linspace(low, high, 41)
        best = int(np.argmin([mean_loss(each) for each in tried]))
        low, high = tried[max(best - 1, 0)], tried[min(best + 1, 40)]
    return float(np.exp(tried[best]))


def fit_line(scores: ArrayLike, outcomes: ArrayLike) -> tuple[float, float]:
    """Slope and intercept of the least-squares line from scores (R,) to outcomes (R,).

    Raises:
        ValueError: lengths that differ, fewer than two different scores, or a line that falls, so
            that better scores would mean worse outcomes.
    """
    x, y = (
        np.asarray(to_numpy(name, values), dtype=np.float64).reshape(-1)
        for name, values in (("scores", scores), ("outcomes", outcomes))
    )
    if len(x) != len(y) or len(np.unique(x)) < 2:
        raise ValueError(
            f"scores: expected at least two different ones and as many outcomes, got {len(x)} "
            f"scores and {len(y)} outcomes"
        )
    slope, intercept = np.polyfit(x, y, 1).tolist()
    if slope <= 0:
        raise ValueError(f"scores: expected better ones to mean better outcomes, got slope {slope}")
    return slope, intercept
