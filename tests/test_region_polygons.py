"""Outlines of masks, and masks of outlines, as COCO tools understand them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tokenize_anything.geometry import encode_rle
from tokenize_anything.region_polygons import mask_to_polygons, polygons_to_mask

HEIGHT, WIDTH = 9, 13


def _filled(mask: np.ndarray) -> np.ndarray:
    """Everything that cannot be reached from the corner by sides."""
    outside = np.zeros_like(mask)
    outside[0, 0] = True
    while True:
        grown = outside.copy()
        grown[1:] |= outside[:-1]
        grown[:-1] |= outside[1:]
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown &= ~mask
        if (grown == outside).all():
            return ~outside
        outside = grown


@given(arrays(bool, (HEIGHT, WIDTH)))
def test_there_and_back_gives_the_mask_without_holes(mask: np.ndarray) -> None:
    polygons = mask_to_polygons(mask)
    expected = _filled(np.pad(mask, 1))[1:-1, 1:-1]
    np.testing.assert_array_equal(polygons_to_mask(polygons, HEIGHT, WIDTH), expected)


def test_outlines_run_along_the_edges_of_pixels() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:5, 3:9] = True
    mask[7, 11] = True
    first, second = mask_to_polygons(mask)
    assert {tuple(corner) for corner in first} == {(3, 2), (9, 2), (9, 5), (3, 5)}
    assert {tuple(corner) for corner in second} == {(11, 7), (12, 7), (12, 8), (11, 8)}
    assert mask_to_polygons(np.zeros((2, 3))) == []
    (whole,) = mask_to_polygons(np.ones((2, 3)))
    assert {tuple(corner) for corner in whole} == {(0, 0), (3, 0), (3, 2), (0, 2)}


def test_tolerance_saves_corners() -> None:
    y, x = np.mgrid[:60, :60]
    disc = (x - 30) ** 2 + (y - 29) ** 2 < 25**2
    exact, rough = (mask_to_polygons(disc, tolerance=t)[0] for t in (0.0, 1.0))
    assert len(rough) < len(exact) / 3
    again = polygons_to_mask([rough], 60, 60)
    assert (again & disc).sum() / (again | disc).sum() > 0.95


def test_pycocotools_fills_the_same_pixels() -> None:
    coco_mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    y, x = np.mgrid[:40, :50]
    mask = ((x - 20) ** 2 + (y - 18) ** 2 < 15**2) | ((x > 30) & (y > 25))
    polygons = [polygon.ravel().tolist() for polygon in mask_to_polygons(mask)]
    theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 50)))
    np.testing.assert_array_equal(theirs.astype(bool), mask)
    assert coco_mask.decode(encode_rle(mask)).sum() == mask.sum()


def test_polygons_of_others() -> None:
    triangle = [[0, 0], [8, 0], [0, 8]]
    mask = polygons_to_mask([triangle], 8, 8)
    y, x = np.mgrid[:8, :8] + 0.5
    inside = x + y < 8
    assert (mask[inside]).all()
    assert not mask[x + y > 8].any()
    np.testing.assert_array_equal(polygons_to_mask([np.ravel(triangle)], 8, 8), mask)
    box = [-5.0, -5, 99, -5, 99, 3.5, -5, 3.5]
    clipped = polygons_to_mask([box, [[6, 6], [8, 6], [8, 8], [6, 8]]], 8, 8)
    assert clipped[:3].all()  # the middle of row 3 lies on the edge
    assert clipped[6:, 6:].all()
    assert clipped.sum() == 3 * 8 + 4
    star = [[0, 0], [8, 8], [8, 0], [0, 8]]  # crosses itself: two triangles
    assert not polygons_to_mask([star], 8, 8)[0, 3:5].any()
    assert polygons_to_mask([], 3, 4).shape == (3, 4)


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 2, 3, 4], r"at least 3 corners as x, y, x, y, \.\.\., got int64 of shape \(4,\)"),
        ([1, 2, 3, 4, 5, 6, 7], r"of shape \(7,\)"),
        (np.zeros((4, 3)), r"of shape \(4, 3\)"),
        (["a"] * 6, r"got <U1"),
        ([0, 0, 1, np.nan, 2, 2], r"polygon: expected finite coordinates"),
    ],
)
def test_bad_polygons(polygon: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polygons_to_mask([polygon], 5, 5)


@given(st.integers(0, 2**32 - 1))
def test_any_polygon_equals_a_plain_even_odd_fill(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(-3, 15, (random.integers(3, 8), 2))
    found = polygons_to_mask([corners], HEIGHT, WIDTH)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            x, y = column + 0.5, row + 0.5
            crossings = 0
            for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
                if (y0 <= y) != (y1 <= y):
                    crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
            assert found[row, column] == (crossings % 2 == 1)
