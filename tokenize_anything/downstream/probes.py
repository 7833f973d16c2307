"""Classifiers on region tokens: a linear probe, and nearest neighbours, both scikit-learn's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class TokenClassifier:
    """Names for region tokens, learnt from examples.

    names: K names, sorted.
    pipeline: the fitted scikit-learn pipeline; its classes are the positions of the names.
    """

    names: tuple[str, ...]
    pipeline: Any

    def predict(self, tokens: ArrayLike) -> list[str]:
        """The best name of each of (R,C) tokens.

        Raises:
            ValueError: tokens of another width, or that are not finite.
        """
        return [self.names[best] for best in self.scores(tokens).argmax(axis=1)]

    def scores(self, tokens: ArrayLike) -> np.ndarray:
        """(R,K) probabilities of the names, in their order, for (R,C) tokens; errors as `predict`.

        Nearest neighbours give each name's share of the votes.
        """
        rows = _checked_tokens(tokens)
        width = self.pipeline.n_features_in_
        if rows.shape[1] != width:
            raise ValueError(f"tokens: expected (R,{width}), as learnt from, got {rows.shape}")
        if not len(rows):
            return np.zeros((0, len(self.names)))
        return np.asarray(self.pipeline.predict_proba(rows))


def fit_linear_probe(
    tokens: ArrayLike, names: Sequence[str], *, strength: float = 0.03, max_steps: int = 1000
) -> TokenClassifier:
    """Multinomial logistic regression on standardised tokens.

    Args:
        tokens: (R,C), semantic tokens as a rule.
        names: R names, of at least two kinds.
        strength: inverse of the penalty on the weights; less for fewer examples.
        max_steps: of the solver.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: shapes that do not fit, values that are not finite, or a single name.
    """
    _import_sklearn()
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    return _fit([StandardScaler(), LogisticRegression(C=strength, max_iter=max_steps)],
                tokens, names)  # fmt: skip


def fit_neighbours(
    tokens: ArrayLike, names: Sequence[str], *, num_neighbours: int = 15
) -> TokenClassifier:
    """Vote of the nearest tokens by cosine, nearer ones counting more.

    Args:
        tokens: (R,C), standardised before they are compared.
        names: R names, of at least two kinds.
        num_neighbours: that vote; all, where there are fewer.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: as `fit_linear_probe`, or no neighbour.
    """
    _import_sklearn()
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import Normalizer, StandardScaler

    if num_neighbours < 1:
        raise ValueError(f"num_neighbours: expected at least 1, got {num_neighbours}")
    count = min(num_neighbours, len(names))
    # On vectors of length 1 the order by distance is that by cosine.
    vote = KNeighborsClassifier(count, weights="distance")
    return _fit([StandardScaler(), Normalizer(), vote], tokens, names)


def _fit(steps: list[Any], tokens: ArrayLike, names: Sequence[str]) -> TokenClassifier:
    from sklearn.pipeline import make_pipeline

    rows = _checked_tokens(tokens)
    if len(rows) != len(names):
        raise ValueError(f"names: expected {len(rows)}, one for each token, got {len(names)}")
    kinds = sorted(set(names))
    if len(kinds) < 2:
        raise ValueError(f"names: expected at least two different ones, got {kinds}")
    place = {name: number for number, name in enumerate(kinds)}
    pipeline = make_pipeline(*steps).fit(rows, [place[name] for name in names])
    return TokenClassifier(tuple(kinds), pipeline)


def _checked_tokens(tokens: ArrayLike) -> np.ndarray:
    rows = np.asarray(tokens, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"tokens: expected (R,C), got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("tokens: expected finite numbers, got NaN or infinity")
    return rows


def _import_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "classifiers of tokens need scikit-learn: pip install tokenize-anything[search]"
        ) from error
