"""Reliability bins and their error, by hand and against loops."""

import numpy as np
import pytest

from tokenize_anything.evaluation.calibration import (
    expected_calibration_error,
    fit_line,
    fit_temperature,
    reliability_bins,
)


def test_bins_by_hand():
    bins = reliability_bins([0.05, 0.15, 0.25, 1.0, -0.5], [0, 1, 0, 1, 1], num_bins=5)
    assert [each.count for each in bins] == [3, 1, 0, 0, 1]
    first, second, empty, _, last = bins
    assert (first.low, first.high) == (0.0, pytest.approx(0.2))
    assert first.mean_score == pytest.approx((0.05 + 0.15 + 0) / 3)  # -0.5 counts as 0
    assert first.mean_outcome == pytest.approx(2 / 3)
    assert (second.mean_outcome, last.mean_score, last.mean_outcome) == (0.0, 1.0, 1.0)
    assert empty.mean_score is None and empty.mean_outcome is None
    gaps = 3 * abs(0.2 / 3 - 2 / 3) + 0.25 + 0
    assert expected_calibration_error(bins) == pytest.approx(gaps / 5)


def test_equals_a_loop():
    rng = np.random.default_rng(0)
    scores, outcomes = rng.random(401), rng.random(401)
    total = 0.0
    for index in range(7):
        is_last = index == 6
        rows = [
            row
            for row, score in enumerate(scores)
            if index / 7 <= score and (score < (index + 1) / 7 or is_last)
        ]
        total += abs(sum(scores[row] - outcomes[row] for row in rows))
    bins = reliability_bins(scores, outcomes, num_bins=7)
    assert expected_calibration_error(bins) == pytest.approx(total / 401)


def test_scores_that_mean_what_they_say_have_no_error_and_boasting_has():
    rng = np.random.default_rng(1)
    scores = rng.random(20_000)
    came = (rng.random(20_000) < scores).astype(float)
    assert expected_calibration_error(reliability_bins(scores, came)) < 0.02
    boast = reliability_bins(np.ones(100), np.zeros(100))
    assert expected_calibration_error(boast) == 1.0


@pytest.mark.parametrize(
    ("scores", "outcomes", "options", "message"),
    [
        ([0.5], [1, 0], {}, "one for each of 1 scores, got 2"),
        ([np.nan], [1], {}, "finite scores"),
        ([0.5], [1.5], {}, "outcomes from 0 to 1"),
        ([0.5], [1], {"num_bins": 0}, "num_bins: expected at least 1, got 0"),
    ],
)
def test_bad_input(scores, outcomes, options, message):
    with pytest.raises(ValueError, match=message):
        reliability_bins(scores, outcomes, **options)


def test_no_prediction_has_no_error():
    with pytest.raises(ValueError, match="at least one prediction, got none"):
        expected_calibration_error(reliability_bins([], []))


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.7])
def test_temperature_is_found_again(factor):
    """For classes drawn from softmax(factor * logits), the best factor is that one."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_011, 7)) * 2
    probs = np.exp(factor * logits)
    probs /= probs.sum(axis=1, keepdims=True)
    drawn = (rng.random(len(probs))[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    found = fit_temperature(logits - 5.0, drawn)
    assert found == pytest.approx(factor, rel=0.04)

    def loss(scale, truth):
        probs = np.exp(scale * logits) / np.exp(scale * logits).sum(axis=1, keepdims=True)
        return ((probs.max(axis=1) - (probs.argmax(axis=1) == truth)) ** 2).mean()

    assert loss(found, drawn) <= min(loss(found * 1.01, drawn), loss(found / 1.01, drawn))
    others = np.where(np.arange(len(drawn)) % 4 == 0, -1, drawn)  # a quarter is none of the classes
    lower = fit_temperature(logits, others)
    assert lower < 0.9 * found
    assert loss(lower, others) <= min(loss(lower * 1.01, others), loss(lower / 1.01, others))


def test_line_equals_the_normal_equations():
    rng = np.random.default_rng(2)
    x = rng.random(53)
    y = 0.4 * x + 0.1 + 0.05 * rng.normal(size=53)
    slope, intercept = fit_line(x, y)
    expected = np.linalg.lstsq(np.stack([x, np.ones(53)], axis=1), y, rcond=None)[0]
    assert (slope, intercept) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_temperature(np.zeros((0, 3)), []), "log_probs: expected .R,K."),
        (lambda: fit_temperature(np.zeros((2, 3)), [1]), "log_probs: expected .R,K. with R = 1"),
        (lambda: fit_temperature([[np.inf, 0]], [1]), "log_probs: expected finite numbers"),
        (lambda: fit_line([1, 1], [0, 1]), "scores: expected at least two different ones"),
        (lambda: fit_line([1, 2], [1]), "scores: expected at least two different ones"),
        (lambda: fit_line([0, 1], [1, 0]), "scores: expected better ones to mean better"),
    ],
)
def test_bad_fits(call, message):
    with pytest.raises(ValueError, match=message):
        call()
