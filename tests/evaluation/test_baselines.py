"""Baselines against loops over pixels."""

import numpy as np
import pytest

from tokenize_anything.evaluation.baselines import (
    commonest,
    disc_at,
    ellipse_in_box,
    filled_box,
)

SHAPE = (11, 13)
BOX = (2.0, 3.0, 9.0, 8.0)


def by_pixel(rule):
    mask = np.zeros(SHAPE, dtype=bool)
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            mask[row, column] = rule(column + 0.5, row + 0.5)
    return mask


def test_filled_box_is_the_pixels_whose_centre_lies_inside():
    expected = np.zeros(SHAPE, dtype=bool)
    expected[3:8, 2:9] = True
    np.testing.assert_array_equal(filled_box(SHAPE, BOX), expected)


def test_ellipse_touches_the_sides_of_the_box():
    expected = by_pixel(lambda x, y: ((x - 5.5) / 3.5) ** 2 + ((y - 5.5) / 2.5) ** 2 <= 1)
    np.testing.assert_array_equal(ellipse_in_box(SHAPE, BOX), expected)
    assert expected[5, 2] and expected[3, 5] and not expected[3, 2]


def test_disc_is_round_and_centred_on_the_pixel():
    expected = by_pixel(lambda x, y: (x - 4.5) ** 2 + (y - 6.5) ** 2 <= 9)
    np.testing.assert_array_equal(disc_at(SHAPE, (4, 6), 3), expected)


@pytest.mark.parametrize(
    ("values", "answer"), [(["b", "a", "b"], "b"), (["b", "a"], "a"), (["z"], "z")]
)
def test_commonest(values, answer):
    assert commonest(values) == answer
