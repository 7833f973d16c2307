"""Painted shapes: exact masks, what they hide, and what they leave alone."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest

from tokenize_anything.data.procedural_shapes import (
    MAX_HIDDEN,
    ShapeConfig,
    blend,
    draw_ellipses,
    draw_outline,
    draw_texture,
    paint_shapes,
)

SIZE, MASK = 96, 48


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photo(seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def some_masks() -> np.ndarray:
    masks = np.zeros((3, MASK, MASK), dtype=bool)
    masks[0, 5:30, 8:20] = True
    masks[1, 20:45, 15:47] = True
    return masks  # the last is empty


# --- outlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_an_outline_has_the_size_it_was_given(seed: int) -> None:
    alpha = draw_outline(rng(seed), SIZE, (0.25, 0.25))
    assert alpha.shape == (SIZE, SIZE) and alpha.dtype == np.float32
    assert alpha.min() == 0 and alpha.max() <= 1
    rows, columns = np.nonzero(alpha)
    if not len(rows):  # all of it beyond the border
        return
    touches = {0, SIZE - 1} & {*rows.tolist(), *columns.tolist()}
    long_side = max(np.ptp(rows), np.ptp(columns)) + 1
    assert long_side <= 0.25 * SIZE + 5  # edges are soft
    assert touches or long_side >= 0.25 * SIZE - 2


def test_outlines_are_of_many_sizes_and_kinds() -> None:
    areas = [draw_outline(rng(seed), SIZE, (0.05, 0.6)).sum() for seed in range(60)]
    assert min(areas) < 20 and max(areas) > 500
    fills = []
    for seed in range(60):
        alpha = draw_outline(rng(seed), SIZE, (0.4, 0.4)) > 0.5
        rows, columns = np.nonzero(alpha)
        fills.append(alpha.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1)))
    assert min(fills) < 0.45 and max(fills) > 0.75  # bars at an angle; boxes and discs


# --- textures ------------------------------------------------------------------------------------


def test_textures_stay_in_range_and_differ() -> None:
    image = photo()
    textures = [draw_texture(rng(seed), image, 11, 17) for seed in range(12)]
    for texture in textures:
        assert texture.shape == (11, 17, 3) and texture.dtype == np.float32
        assert texture.min() >= 0 and texture.max() <= 255
    assert len({texture.tobytes() for texture in textures}) == 12


def test_a_shape_is_painted_as_far_as_it_is_opaque() -> None:
    alpha = np.zeros((SIZE, SIZE), dtype=np.float32)
    alpha[10:20, 30:50], alpha[20, 30:50] = 1.0, 0.5
    before = photo()
    image = before.copy()
    blend(image, alpha, rng(1))
    texture = draw_texture(rng(1), before, 11, 20)
    expected = before.astype(np.float64)
    opacity = alpha[10:21, 30:50, None]
    expected[10:21, 30:50] = expected[10:21, 30:50] * (1 - opacity) + texture * opacity
    np.testing.assert_allclose(image, expected, atol=0.51)
    untouched = alpha == 0
    np.testing.assert_array_equal(image[untouched], before[untouched])


# --- shapes over a photo -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_masks_are_what_is_visible_in_the_end(seed: int) -> None:
    """Replayed outline by outline: later shapes hide earlier ones, a mask is what is left."""
    config = ShapeConfig(count=4, size_range=(0.1, 0.4))
    before, masks = photo(seed), some_masks()
    image, visible, shapes = paint_shapes(before, masks, rng(seed), config)
    assert visible.shape == masks.shape and shapes.shape == (4, MASK, MASK)
    everything = np.concatenate([visible, shapes])
    painted = shapes.any(axis=0)
    assert (shapes.sum(axis=0) <= 1).all()  # no cell belongs to two shapes
    np.testing.assert_array_equal(visible, masks & ~painted)
    changed = (image != before).any(axis=2)
    cells = changed.reshape(MASK, 2, MASK, 2).mean(axis=(1, 3))
    assert (cells[painted] > 0).mean() > 0.97  # a texture may equal the photo by chance
    assert not cells[~cv2.dilate(painted.astype(np.uint8), np.ones((3, 3))).astype(bool)].any()
    for before_area, after in zip(
        masks.sum(axis=(1, 2)), everything.sum(axis=(1, 2)), strict=False
    ):
        assert after >= (1 - MAX_HIDDEN) * before_area
    assert not visible[2].any()


def test_shapes_together_hide_no_more_than_the_rule_allows() -> None:
    masks = np.ones((1, MASK, MASK), dtype=bool)
    config = ShapeConfig(count=14, size_range=(0.3, 0.5))
    for seed in range(3):
        _, visible, shapes = paint_shapes(photo(), masks, rng(seed), config)
        assert visible.sum() >= (1 - MAX_HIDDEN) * masks.sum()
        found = shapes.any(axis=(1, 2))
        assert found.any() and not found.all()  # some found no place


def test_the_draws_follow_the_seed_and_inputs_stay() -> None:
    image, masks = photo(), some_masks()
    config = ShapeConfig(count=3)
    first = paint_shapes(image, masks, rng(3), config)
    again = paint_shapes(image, masks, rng(3), config)
    other = paint_shapes(image, masks, rng(4), config)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])
    np.testing.assert_array_equal(image, photo())
    np.testing.assert_array_equal(masks, some_masks())


def test_without_shapes_nothing_changes() -> None:
    image, visible, shapes = paint_shapes(photo(), some_masks(), rng(), ShapeConfig())
    np.testing.assert_array_equal(image, photo())
    np.testing.assert_array_equal(visible, some_masks())
    assert shapes.shape == (0, MASK, MASK)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"count": -1}, "count: expected at least 0, got -1"),
        (
            {"size_range": (0.0, 0.5)},
            r"size_range: expected 0 < low <= high <= 1, got \(0\.0, 0\.5\)",
        ),
        ({"size_range": (0.5, 0.4)}, "size_range: expected 0 < low <= high <= 1"),
        ({"size_range": (0.5, 1.5)}, "size_range: expected 0 < low <= high <= 1"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapeConfig(**values)


# --- ellipses ------------------------------------------------------------------------------------


def plain_ellipse(box: list[float], size: int) -> np.ndarray:
    """Pixel by pixel: is the centre nearer to the middle than the radius in its direction?"""
    x0, y0, x1, y1 = box
    mask = np.zeros((size, size), dtype=bool)
    for row in range(size):
        for column in range(size):
            dx, dy = column + 0.5 - (x0 + x1) / 2, row + 0.5 - (y0 + y1) / 2
            angle = math.atan2(dy * (x1 - x0), dx * (y1 - y0))
            radius = math.hypot((x1 - x0) / 2 * math.cos(angle), (y1 - y0) / 2 * math.sin(angle))
            mask[row, column] = math.hypot(dx, dy) <= radius
    return mask


BOXES = [
    [3.0, 5.0, 20.0, 12.0],  # wide
    [8.1, 1.3, 11.9, 22.7],  # high, between the pixels
    [-6.0, 10.2, 9.4, 31.0],  # partly outside
    [7.2, 7.2, 7.9, 7.9],  # within a pixel, around its centre
    [7.6, 7.6, 8.4, 8.4],  # between the centres of four
    [0.0, 0.0, 23.0, 23.0],  # all of it
]


def test_ellipses_equal_plain_loops() -> None:
    boxes = np.array(BOXES, dtype=np.float32)
    before = boxes.copy()
    masks = draw_ellipses(boxes, 23)
    assert masks.shape == (len(BOXES), 23, 23) and masks.dtype == bool
    for mask, box in zip(masks, BOXES, strict=True):
        np.testing.assert_array_equal(mask, plain_ellipse(box, 23))
    assert np.array_equal(boxes, before)
    for mask, box in zip(masks, before, strict=True):  # alone as beside others
        np.testing.assert_array_equal(draw_ellipses(box[None], 23)[0], mask)


def test_an_ellipse_touches_its_box_and_fills_pi_quarters_of_it() -> None:
    (mask,) = draw_ellipses(np.array([[12.0, 30.0, 152.0, 190.0]]), 211)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (12, 30, 152, 190)
    assert mask.sum() / (140 * 160) == pytest.approx(math.pi / 4, rel=2e-3)


def test_a_box_without_area_has_no_ellipse() -> None:
    assert not draw_ellipses(np.array([[5.0, 5.0, 5.0, 9.0], [4.0, 4.0, 4.0, 4.0]]), 11).any()
    assert draw_ellipses(np.zeros((0, 4)), 11).shape == (0, 11, 11)
