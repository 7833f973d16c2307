"""Windows around a click, what they show, and masks from there back into the photo."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from tests.tiny_predictor import make_photo
from tokenize_anything.centred_views import CentredView
from tokenize_anything.click_windows import LARGEST_WINDOW, coords_in_windows, list_windows
from tokenize_anything.modeling.click_segmenter import NUM_WINDOWS

SIDE = 64
SIZES_HW = ((149, 211), (223, 97), (101, 103))


def corners_of(image_hw: tuple[int, int]) -> list[tuple[int, int]]:
    height, width = image_hw
    return [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]


def clicks_of(image_hw: tuple[int, int]) -> list[tuple[int, int]]:
    height, width = image_hw
    return [(width // 3, height // 2), *corners_of(image_hw)]


# --- windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("image_hw", [*SIZES_HW, (7, 11)])
@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_each_window_is_half_as_large_around_the_same_pixel(
    image_hw: tuple[int, int], scale: float
) -> None:
    for click in clicks_of(image_hw):
        windows = list_windows(click, image_hw, SIDE, scale)
        assert len(windows) == NUM_WINDOWS
        for place, window in enumerate(windows):
            width = scale * LARGEST_WINDOW * max(image_hw) / 2**place
            assert window.side == SIDE and SIDE / window.scale == pytest.approx(width)
            middle = np.array(window.origin_xy) + width / 2
            np.testing.assert_allclose(middle, np.array(click) + 0.5, atol=1e-9)


def test_windows_show_the_clicked_pixel_in_the_middle() -> None:
    """Brightness is the column or the row, so that neighbours of the middle tell where it is."""
    height, width = SIZES_HW[0]
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([columns, rows, rows], axis=-1)
    click = (101, 67)
    for window in list_windows(click, (height, width), SIDE):
        shown = window.show(image).astype(float)[SIDE // 2 - 1 : SIDE // 2 + 1]
        found = shown[:, SIDE // 2 - 1 : SIDE // 2 + 1, :2].mean(axis=(0, 1))
        np.testing.assert_allclose(found, click, atol=0.6 + 0.5 / window.scale)


@pytest.mark.parametrize("image_hw", SIZES_HW)
def test_windows_at_corners_show_what_there_is(image_hw: tuple[int, int]) -> None:
    """From the middle of the pixel at the corner to the end of window or photo; else padding."""
    photo = np.full((*image_hw, 3), 200, np.uint8)
    for click in corners_of(image_hw):
        for place, window in enumerate(list_windows(click, image_hw, SIDE)):
            width = LARGEST_WINDOW * max(image_hw) / 2**place
            seen = [min(length, width / 2 + 0.5) / width for length in image_hw]
            share = (window.show(photo, (1, 2, 3))[..., 0] == 200).mean()
            assert share == pytest.approx(seen[0] * seen[1], abs=0.02)


@pytest.mark.parametrize("home", range(NUM_WINDOWS))
def test_pixels_of_one_window_in_all_of_them(home: int) -> None:
    """Three prompts, each with points anywhere and its own photo and click."""
    generator = np.random.default_rng(home)
    homes = np.array([home, (home + 2) % NUM_WINDOWS, NUM_WINDOWS - 1 - home])
    asked, expected = [], []
    for image_hw, place in zip(SIZES_HW, homes, strict=True):
        points = generator.uniform(0, min(image_hw), (7, 2))
        windows = list_windows(clicks_of(image_hw)[home], image_hw, SIDE)
        asked.append(windows[place].points_in_view(points))
        expected.append([window.points_in_view(points) for window in windows])
    found = coords_in_windows(torch.from_numpy(np.array(asked)), torch.from_numpy(homes), SIDE)
    assert found.shape == (3, NUM_WINDOWS, 7, 2)
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-4, atol=2e-3)
    for row, place in enumerate(homes):
        np.testing.assert_allclose(found[row, place].numpy(), asked[row], rtol=1e-6, atol=1e-6)


def test_the_click_is_the_middle_of_all_windows() -> None:
    for image_hw in SIZES_HW:
        for click in clicks_of(image_hw):
            for window in list_windows(click, image_hw, SIDE):
                found = window.points_in_view(np.array([click], np.float32))
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, [[(SIDE - 1) / 2] * 2], atol=1e-3)


# --- points and masks of views ---------------------------------------------------------------


def test_points_lie_where_boxes_around_their_pixel_say() -> None:
    """A box of one pixel has that pixel in the middle."""
    view = CentredView.around([40.5, 31.0, 88.0, 70.0], SIZES_HW[0], SIDE, 0.7)
    points = np.array([[0.0, 0.0], [47.0, 51.0], [210.0, 148.0]], np.float32)
    found = view.points_in_view(points)
    for point, place in zip(points, found, strict=True):
        box = view.box_in_view([*point, *(point + 1)])
        np.testing.assert_allclose((box[:2] + box[2:]) / 2 - 0.5, place, atol=1e-4)


def restore_plainly(view: CentredView, logits: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """(H,W) values between the middles of the cells, whose ends repeat; NaN outside of the view."""
    count = len(logits)
    cell = view.side / view.scale / count  # original pixels
    found = np.full(image_hw, np.nan)
    x0, y0, x1, y1 = view.source_xyxy
    for y in range(y0, y1):
        for x in range(x0, x1):
            column = np.clip((x + 0.5 - view.origin_xy[0]) / cell - 0.5, 0, count - 1)
            row = np.clip((y + 0.5 - view.origin_xy[1]) / cell - 0.5, 0, count - 1)
            left, top = min(int(column), count - 2), min(int(row), count - 2)
            wide, high = column - left, row - top
            upper = logits[top, left] * (1 - wide) + logits[top, left + 1] * wide
            lower = logits[top + 1, left] * (1 - wide) + logits[top + 1, left + 1] * wide
            found[y, x] = upper * (1 - high) + lower * high
    return found


@pytest.mark.parametrize("image_hw", SIZES_HW)
@pytest.mark.parametrize("corner", [-1, 0, 3])
def test_masks_are_interpolated_logits_over_0(image_hw: tuple[int, int], corner: int) -> None:
    logits = np.random.default_rng(5).normal(size=(SIDE // 2, SIDE // 2)).astype(np.float32)
    for window in list_windows(clicks_of(image_hw)[corner + 1], image_hw, SIDE)[::2]:
        values = restore_plainly(window, logits, image_hw)
        found = window.restore_mask(logits, image_hw)
        assert found.shape == image_hw and found.dtype == np.bool_
        is_clear = np.abs(values) > 0.12  # places are rounded to 1/32 of a cell
        np.testing.assert_array_equal(found[is_clear], values[is_clear] > 0)
        assert is_clear.sum() > 0.7 * np.isfinite(values).sum()
        assert not found[np.isnan(values)].any()


def test_masks_end_with_their_view() -> None:
    """Also where everything in it is region."""
    image_hw = SIZES_HW[0]
    logits = np.ones((8, 8), np.float32)
    for click in clicks_of(image_hw):
        for window in list_windows(click, image_hw, SIDE):
            x0, y0, x1, y1 = window.source_xyxy
            expected = np.zeros(image_hw, bool)
            expected[y0:y1, x0:x1] = True
            np.testing.assert_array_equal(window.restore_mask(logits, image_hw), expected)
            assert not window.restore_mask(-logits, image_hw).any()


@pytest.mark.parametrize("image_hw", SIZES_HW)
def test_there_and_back(image_hw: tuple[int, int]) -> None:
    """An ellipse as each window that holds it shows it, brought back."""
    for click in clicks_of(image_hw):
        drawn = np.zeros(image_hw, np.uint8)
        cv2.ellipse(drawn, click, (23, 17), 31, 0, 360, 1, -1)
        mask, is_whole = drawn.astype(bool), click not in corners_of(image_hw)
        for place, window in enumerate(list_windows(click, image_hw, SIDE)):
            if SIDE / window.scale < 50:
                continue
            shown = window.show(mask).reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))
            found = window.restore_mask((shown / 255 - 0.5).astype(np.float32), image_hw)
            iou = (found & mask).sum() / (found | mask).sum()
            # in the largest window a cell is many pixels wide
            assert iou > ((0.88 if is_whole else 0.7) if place == 0 else 0.92 if is_whole else 0.8)


def test_a_photo_is_not_changed() -> None:
    photo = make_photo(*SIZES_HW[0])
    before = photo.copy()
    for window in list_windows((3, 5), SIZES_HW[0], SIDE):
        window.show(photo)
    np.testing.assert_array_equal(photo, before)
