"""Which answer counts: every term by hand, and that each can turn the choice."""

from __future__ import annotations

import numpy as np
import pytest

from tokenize_anything import PointPrompts
from tokenize_anything.answer_choice import (
    AGREEMENT_WEIGHT,
    CLICKS_WEIGHT,
    EXTENT_MARGIN,
    EXTENT_WEIGHT,
    choose_answer,
    obedience,
    shows_extent,
)


def test_score_merit_and_agreement_count():
    masks = np.zeros((3, 2, 4, 5), bool)
    masks[0, 0, :2] = masks[1, 0, :3] = masks[1, 1, :2] = masks[2, 1] = True  # 10, 15, 10, 20
    masks[0, 1, 3, :2] = masks[2, 0, 3, :2] = True  # 2 pixels that the first 15 do not have
    scores = np.array([[0.5, 0.4]] * 3)  # the first slot of each view is its best
    beside = np.array([[10 / 15, 0], [(10 / 15 + 0) / 2, (1 + 0) / 2], [0, 15 / 20]])
    totals = scores + AGREEMENT_WEIGHT * beside
    for place in np.ndindex(3, 2):
        others = np.delete(totals.ravel(), np.ravel_multi_index(place, (3, 2)))
        for extra, is_chosen in ((0.01, True), (-0.01, False)):
            merits = np.zeros((3, 2))
            merits[place] = others.max() - totals[place] + extra
            assert (choose_answer(scores, merits, masks) == place) == is_chosen
    masks[2] = False  # what is empty agrees with nothing, and may still be the best
    assert choose_answer(np.add(scores, [[0], [0], [0.6]]), np.zeros((3, 2)), masks) == (2, 0)


def test_one_view_has_no_neighbours():
    masks = np.ones((1, 2, 4, 5), bool)
    assert choose_answer(np.array([[0.3, 0.4]]), np.zeros((1, 2)), masks) == (0, 1)


def test_clicks_on_the_right_side():
    masks = np.zeros((3, 7, 11), bool)
    masks[0, 2:5, 3:8] = True
    masks[1] = True
    clicks = [[3.0, 2.0], [7.9, 4.9], [8.0, 4.0], [10.999, 6.999]]  # in, in, out, out of the first
    prompt = PointPrompts.from_points([clicks], [[1, 1, 0, 0]])
    expected = CLICKS_WEIGHT * np.array([1, 0.5, 0.5])
    np.testing.assert_allclose(obedience(masks, prompt), expected)


def test_many_clicks_say_how_large_their_region_is():
    masks = np.zeros((2, 50, 60), bool)
    masks[0, 10:31, 20:41] = masks[1, 10:31, 20:31] = True
    corners = [[20, 10], [40, 10], [20, 30], [40, 30], [30, 20]]
    prompt = PointPrompts.from_points([corners], [[1] * 5])
    low, high = 20 - 20 * EXTENT_MARGIN, 40 + 20 * EXTENT_MARGIN  # along x; along y 10 less
    area = (high - low) ** 2
    shared = (41 - 20) ** 2, (31 - 20) * (41 - 20)
    wanted = [
        CLICKS_WEIGHT * share + EXTENT_WEIGHT * common / (area + size - common)
        for share, common, size in zip((1, 0.6), shared, (21 * 21, 11 * 21), strict=True)
    ]
    np.testing.assert_allclose(obedience(masks, prompt), wanted, rtol=1e-6)
    without = PointPrompts.from_points([[*corners, [58, 3]]], [[1] * 5 + [0]])  # says nothing of it
    more = CLICKS_WEIGHT * np.array([0, 4 / 6 - 3 / 5])  # now 6 of 6 and 4 of 6 are right
    np.testing.assert_allclose(obedience(masks, without), np.add(wanted, more), rtol=1e-6)
    fewer = PointPrompts.from_points([corners[:4]], [[1] * 4])
    np.testing.assert_allclose(obedience(masks, fewer), [CLICKS_WEIGHT, CLICKS_WEIGHT / 2])


def test_no_mask_at_all_is_worth_nothing():
    prompt = PointPrompts.from_points([[[3, 4]] * 5], [[1] * 5])
    assert obedience(np.zeros((1, 9, 9), bool), prompt) == pytest.approx([0])


def test_five_clicks_inside_show_the_extent_and_four_do_not():
    points = [[40, 20], [45, 30], [60, 25], [52, 41], [48, 22]]
    for labels, expected in (([1, 1, 1, 1, 1], True), ([1, 1, 1, 1, 0], False)):
        assert shows_extent(PointPrompts.from_points([points], [labels])).tolist() == [expected]
