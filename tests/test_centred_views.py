"""Views with a box in their middle: what of a photo they show, and where."""

from __future__ import annotations

import numpy as np
import pytest

from tokenize_anything.centred_views import MIN_SIDE, CentredView

HEIGHT, WIDTH, SIDE = 149, 211, 64
PADDING = (123, 116, 103)
BOXES = {
    "inside": [101.0, 53.0, 124.5, 72.25],
    "corner": [0.0, 0.0, 40.0, 31.0],
    "far corner": [190.5, 101.0, 211.0, 149.0],
    "beyond": [-40.0, 20.0, 31.0, 170.0],
    "whole": [0.0, 0.0, 211.0, 149.0],
    "one pixel": [47.0, 131.0, 48.0, 132.0],
    "nothing": [60.5, 31.0, 60.5, 31.0],
    "a line": [7.0, 100.0, 200.0, 100.5],
}


def canvas_around(image: np.ndarray, view: CentredView, padding: tuple[int, ...]) -> np.ndarray:
    """What a view shows, before any resampling: the photo in the middle of much padding."""
    room = 400
    canvas = np.zeros((HEIGHT + 2 * room, WIDTH + 2 * room, *image.shape[2:]), np.float64)
    canvas[:] = padding if image.ndim == 3 else 0
    canvas[room : room + HEIGHT, room : room + WIDTH] = image
    x, y = (round(value) + room for value in view.origin_xy)
    width = round(view.side / view.scale)
    return canvas[y : y + width, x : x + width]


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("zoom", [0.2, 0.5, 0.7])
def test_the_box_is_in_the_middle_and_fills_its_share(kind: str, zoom: float) -> None:
    box = np.array(BOXES[kind])
    view = CentredView.around(box, (HEIGHT, WIDTH), SIDE, zoom)
    found = view.box_in_view(box)
    assert found.dtype == np.float32
    np.testing.assert_allclose((found[:2] + found[2:]) / 2, SIDE / 2, atol=1e-3)
    long_side = (box[2:] - box[:2]).max()
    share = zoom if long_side > MIN_SIDE * zoom else long_side / MIN_SIDE
    assert (found[2:] - found[:2]).max() == pytest.approx(share * SIDE, rel=1e-4)
    corners = found.reshape(2, 2) / view.scale + view.origin_xy  # and back
    np.testing.assert_allclose(corners.reshape(4), box, atol=1e-3)


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("zoom", [0.2, 0.7])
def test_what_is_shown_lies_where_the_box_says(kind: str, zoom: float) -> None:
    """Photos whose brightness is the column or the row, and padding where they end."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    image = np.stack([columns, rows, np.full_like(rows, 77)], axis=-1)
    view = CentredView.around(BOXES[kind], (HEIGHT, WIDTH), SIDE, zoom)
    shown = view.show(image, (1, 2, 3)).astype(float)
    places = (np.arange(SIDE) + 0.5) / view.scale - 0.5  # middles of view pixels, from the origin
    slack = max(1.0, 1 / view.scale) + 0.51  # whole pixels are cut out
    close = 0.6 if view.scale > 1 else slack  # brightness is in whole numbers
    is_shown = shown[..., 2] == 77
    for axis, limit in ((0, WIDTH), (1, HEIGHT)):
        wanted = places + view.origin_xy[axis]
        found = shown[..., axis] if axis == 0 else shown[..., axis].T
        seen = is_shown if axis == 0 else is_shown.T
        for line, parts in zip(found, seen, strict=True):
            clipped = wanted.clip(0, limit - 1)
            np.testing.assert_allclose(line[parts], clipped[parts], atol=close)
        inside = (wanted > slack) & (wanted < limit - 1 - slack)
        outside = (wanted < -slack) | (wanted > limit - 1 + slack)
        assert seen.any(axis=0)[inside].all() and not seen[:, outside].any()
    np.testing.assert_array_equal(shown[~is_shown], np.tile([1, 2, 3], ((~is_shown).sum(), 1)))


@pytest.mark.parametrize(
    "box",
    [[80.0, 46.0, 128.0, 70.0], [-24.0, 0.0, 24.0, 48.0], [172.0, 125.0, 220.0, 149.0]],
    ids=["inside", "left and above", "right and below"],
)
def test_photos_shrink_by_means(noise: np.ndarray, box: list[float]) -> None:
    """By 3, where the photo ends between pixels of the view."""
    view = CentredView.around(box, (HEIGHT, WIDTH), 32, 0.5)
    assert view.scale == pytest.approx(1 / 3)
    expected = canvas_around(noise, view, PADDING).reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    shown = view.show(noise, PADDING)
    assert shown.shape == (32, 32, 3) and shown.dtype == np.uint8
    np.testing.assert_allclose(shown, expected, atol=0.51)
    mask = noise[..., 0] > 100
    expected = canvas_around(mask, view, ()).reshape(32, 3, 32, 3).mean(axis=(1, 3))
    shown = view.show(mask)
    assert shown.shape == (32, 32) and shown.dtype == np.uint8
    np.testing.assert_allclose(shown, 255 * expected, atol=0.51)


def interpolate_plainly(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The image (h,w,3) between its pixels, whose middles are whole numbers; the ends repeat."""
    value = np.zeros(3)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            share = (1 - abs(row - y)) * (1 - abs(column - x))
            nearest = min(max(row, 0), len(image) - 1), min(max(column, 0), image.shape[1] - 1)
            value += share * image[nearest]
    return value


@pytest.mark.parametrize("box", [[80.0, 50.0, 94.0, 58.0], [197.0, 0.0, 211.0, 6.0]])
def test_photos_grow_by_interpolation(noise: np.ndarray, box: list[float]) -> None:
    """By 2, with the last pixels repeated at the ends of what is shown, and padding behind."""
    view = CentredView.around(box, (HEIGHT, WIDTH), 56, 0.5)
    assert view.scale == pytest.approx(2)
    x, y = (round(value) for value in view.origin_xy)
    window = noise[max(y, 0) : y + 28, max(x, 0) : x + 28]
    left, top = 2 * max(-x, 0), 2 * max(-y, 0)
    expected = np.empty((56, 56, 3))
    expected[:] = PADDING
    for row in range(2 * len(window)):
        for column in range(2 * window.shape[1]):
            value = interpolate_plainly(window, column / 2 - 0.25, row / 2 - 0.25)
            expected[top + row, left + column] = value
    np.testing.assert_allclose(view.show(noise, PADDING), expected, atol=0.76)


def test_the_same_size_is_a_copy(noise: np.ndarray) -> None:
    view = CentredView.around([3.0, 60.0, 35.0, 90.0], (HEIGHT, WIDTH), SIDE, 0.5)
    expected = canvas_around(noise, view, (9, 8, 7))
    assert view.scale == 1 and (expected == [9, 8, 7]).all(axis=-1).any()
    np.testing.assert_array_equal(view.show(noise, (9, 8, 7)), expected)


def test_small_boxes_show_some_pixels_around_them(noise: np.ndarray) -> None:
    view = CentredView.around([50.5, 40.5, 51.5, 41.5], (HEIGHT, WIDTH), SIDE, 0.7)
    assert SIDE / view.scale == pytest.approx(MIN_SIDE)
    assert view.source_xyxy == (49, 39, 53, 43) and view.target_xyxy == (0, 0, SIDE, SIDE)
    assert view.show(noise).std() > 10


@pytest.mark.parametrize("box", [[-90.0, -70.0, -50.0, -60.0], [300.0, 20.0, 340.0, 40.0]])
def test_boxes_out_of_sight_show_a_little_of_the_photo(noise: np.ndarray, box: list[float]) -> None:
    """Nothing is promised but padding and at least one pixel."""
    shown = CentredView.around(box, (HEIGHT, WIDTH), SIDE, 0.5).show(noise, PADDING)
    assert 0 < (shown != PADDING).any(axis=-1).mean() < 0.5


def test_photos_of_one_pixel() -> None:
    view = CentredView.around([0.0, 0.0, 1.0, 1.0], (1, 1), 32, 0.5)
    shown = view.show(np.full((1, 1, 3), 201, np.uint8), PADDING)
    assert view.source_xyxy == (0, 0, 1, 1)
    is_photo = (shown == 201).all(axis=-1)
    assert is_photo.sum() == 8 * 8 and (shown[~is_photo] == PADDING).all()
