"""Names that were found beside the true ones, and a few examples of each; for eval_downstream."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Row = tuple[str, str, float]  # subject, metric, value


def few_rows(names: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows of each name, drawn with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(names))
    return np.concatenate([order[names[order] == name][:count] for name in np.unique(names)])


def accuracies(subject: str, found: list[str], names: np.ndarray) -> Iterator[Row]:
    is_right = np.array(found) == names
    yield subject, "top-1", is_right.mean()
    yield (
        subject,
        "mean of names' top-1",
        np.mean([is_right[names == n].mean() for n in set(names)]),
    )
