"""Classifiers of tokens: scikit-learn's answers, and those of a few plain lines."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from tokenize_anything.downstream.probes import fit_linear_probe, fit_neighbours

pytest.importorskip("sklearn", reason="needs tokenize-anything[search]")
DIM, NAMES = 5, ("tray", "cup", "spoon")


def draw_tokens(count: int, seed: int, spread: float = 0.3) -> tuple[np.ndarray, list[str]]:
    """(count,5) tokens around one centre for each name, on axes of different scale."""
    rng = np.random.default_rng(seed)
    centers = 2 * np.random.default_rng(0).normal(size=(len(NAMES), DIM))
    kinds = rng.integers(0, len(NAMES), count)
    tokens = centers[kinds] + spread * rng.normal(size=(count, DIM))
    return tokens * [1, 10, 0.1, 3, 1] + 4, [NAMES[kind] for kind in kinds]


def standardise(tokens: np.ndarray, like: np.ndarray) -> np.ndarray:
    return (tokens - like.mean(axis=0)) / like.std(axis=0)


@pytest.mark.parametrize("fit", [fit_linear_probe, fit_neighbours])
def test_what_lies_apart_is_told_apart(fit: Any) -> None:
    classifier = fit(*draw_tokens(60, 1))
    tokens, names = draw_tokens(40, 2)
    assert classifier.names == ("cup", "spoon", "tray")
    assert classifier.predict(tokens) == names
    scores = classifier.scores(tokens)
    assert scores.shape == (40, 3)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert [classifier.names[best] for best in scores.argmax(axis=1)] == names
    assert classifier.scores(tokens[:0]).shape == (0, 3)
    assert classifier.predict(tokens[:0]) == []


def test_neighbours_vote_by_cosine_nearer_ones_more() -> None:
    tokens, names = draw_tokens(30, 1, spread=2.0)
    others, _ = draw_tokens(7, 2, spread=2.0)
    found = fit_neighbours(tokens, names, num_neighbours=4).scores(others)
    unit = standardise(tokens, tokens)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for row, scaled in enumerate(standardise(others, tokens)):
        other = scaled / np.linalg.norm(scaled)
        nearest = sorted(range(30), key=lambda n: -float(unit[n] @ other))[:4]
        votes = dict.fromkeys(sorted(NAMES), 0.0)
        for place in nearest:
            votes[names[place]] += 1 / float(np.linalg.norm(unit[place] - other))
        wanted = np.array(list(votes.values())) / sum(votes.values())
        np.testing.assert_allclose(found[row], wanted, atol=1e-4)


def test_the_probe_is_at_the_minimum_of_its_loss() -> None:
    """Gradient of C * cross-entropy + |W|^2 / 2, which is 0 at logistic regression's answer."""
    tokens, names = draw_tokens(50, 1, spread=1.5)
    strength = 0.7
    classifier = fit_linear_probe(tokens, names, strength=strength)
    weights = classifier.pipeline[-1].coef_
    rows = standardise(tokens, tokens)
    truth = np.array([[name == kind for kind in classifier.names] for name in names])
    logits = rows @ weights.T + classifier.pipeline[-1].intercept_
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.scores(tokens), chances, atol=1e-5)
    gradient = strength * (chances - truth).T @ rows + weights
    assert np.abs(gradient).max() < 2e-2 * np.abs(strength * truth.T @ rows).max()


def test_more_neighbours_than_examples_are_all_of_them() -> None:
    tokens, names = draw_tokens(5, 3)
    few = fit_neighbours(tokens, names, num_neighbours=99)
    np.testing.assert_array_equal(
        few.scores(tokens), fit_neighbours(tokens, names, num_neighbours=5).scores(tokens)
    )


@pytest.mark.parametrize("fit", [fit_linear_probe, fit_neighbours])
@pytest.mark.parametrize(
    "tokens, names, message",
    [
        (np.ones(5), ["a"], r"tokens: expected \(R,C\), got shape \(5,\)"),
        (np.full((2, 5), np.nan), ["a", "b"], r"tokens: expected finite numbers, got NaN or inf"),
        (np.ones((3, 5)), ["a", "b"], r"names: expected 3, one for each token, got 2"),
        (np.ones((2, 5)), ["a", "a"], r"names: expected at least two different ones, got \['a'\]"),
        (np.ones((0, 5)), [], r"names: expected at least two different ones, got \[\]"),
    ],
)
def test_bad_examples(fit: Any, tokens: Any, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tokens, names)


def test_bad_questions() -> None:
    classifier = fit_neighbours(*draw_tokens(9, 1))
    with pytest.raises(ValueError, match=r"tokens: expected \(R,5\), as learnt from, got \(2, 4\)"):
        classifier.predict(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"num_neighbours: expected at least 1, got 0"):
        fit_neighbours(*draw_tokens(9, 1), num_neighbours=0)


@pytest.mark.parametrize("fit", [fit_linear_probe, fit_neighbours])
def test_a_missing_package_is_named(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install tokenize-anything\[search\]"):
        fit(*draw_tokens(9, 1))
