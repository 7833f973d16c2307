"""Crops: image, mask and boxes land in the same place, whatever scale, window and flip."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from tokenize_anything.config import PixelConfig
from tokenize_anything.data.augment import (
    AugmentConfig,
    Crop,
    crop_image,
    crop_mask,
    draw_crop,
    jitter_colour,
)

BGR = PixelConfig()
PADDING_RGB = (123, 116, 103)
SIZES_HW = [(1, 1), (1, 97), (97, 1), (2, 3), (37, 53), (131, 59), (211, 307)]


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def iou(left: np.ndarray, right: np.ndarray) -> float:
    return float((left & right).sum() / max(1, (left | right).sum()))


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


# --- a crop at scale 1 copies pixels -------------------------------------------------------------

# columns 3..10 and rows 5..10 of the image go to columns 4..11 and rows 7..12 of a 17 x 17 square
PLAIN = Crop((3, 5, 11, 11), (4, 7), (8, 6), is_mirrored=False)
MIRRORED = Crop((3, 5, 11, 11), (4, 7), (8, 6), is_mirrored=True)


@pytest.mark.parametrize("crop", [PLAIN, MIRRORED])
def test_a_crop_at_scale_1_copies_pixels_and_pads_with_the_mean(crop: Crop) -> None:
    image = random_image(13, 19)
    window = image[5:11, 3:11]
    expected = np.full((17, 17, 3), PADDING_RGB, np.uint8)
    expected[7:13, 4:12] = window[:, ::-1] if crop.is_mirrored else window
    np.testing.assert_array_equal(crop_image(image, crop, 17, BGR), expected)


def test_padding_follows_the_channel_order() -> None:
    pixels = PixelConfig(mean=(10.9, 20.2, 30.7), channel_order="RGB")
    square = crop_image(random_image(13, 19), PLAIN, 17, pixels)
    assert square[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("crop", [PLAIN, MIRRORED])
def test_a_mask_at_scale_1_lands_where_the_image_lands(crop: Crop) -> None:
    mask = np.random.default_rng(1).random((13, 19)) < 0.5
    window = mask[5:11, 3:11]
    expected = np.zeros((17, 17), bool)
    expected[7:13, 4:12] = window[:, ::-1] if crop.is_mirrored else window
    np.testing.assert_array_equal(crop_mask(mask, crop, 17, 17), expected)


@pytest.mark.parametrize(
    "box, plain, mirrored",
    [
        ([3, 5, 11, 11], [4, 7, 12, 13], [4, 7, 12, 13]),  # the window itself
        ([4, 6, 6, 9], [5, 8, 7, 11], [9, 8, 11, 11]),  # inside
        ([0, 0, 5, 8], [4, 7, 6, 10], [10, 7, 12, 10]),  # cut at the left and the top
        ([9, 9, 19, 13], [10, 11, 12, 13], [4, 11, 6, 13]),  # cut at the right and the bottom
        ([12, 1, 14, 3], [12, 7, 12, 7], [4, 7, 4, 7]),  # outside: no area left
    ],
)
def test_boxes_move_with_the_window(box: list[int], plain: list[int], mirrored: list[int]) -> None:
    boxes = np.array([box, [3, 5, 11, 11]], dtype=float)
    assert PLAIN.boxes_to_model(boxes)[0].tolist() == plain
    assert MIRRORED.boxes_to_model(boxes)[0].tolist() == mirrored
    assert boxes[0].tolist() == box  # inputs stay as they are


# --- other scales --------------------------------------------------------------------------------


def test_axes_have_their_own_scale() -> None:
    crop = Crop((2, 1, 12, 5), (3, 6), (30, 8))
    np.testing.assert_array_equal(crop.scale_xy, [3.0, 2.0])
    box = crop.boxes_to_model(np.array([[4.0, 2.0, 5.5, 4.5]]))
    np.testing.assert_allclose(box, [[3 + 6, 6 + 2, 3 + 10.5, 6 + 7]])


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_boxes_go_there_and_back(is_mirrored: bool) -> None:
    crop = Crop((7, 3, 60, 44), (5, 9), (97, 71), is_mirrored)
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform((7, 3), (60, 44), (23, 2, 2)), axis=1).reshape(-1, 4)
    boxes = crop.boxes_to_model(corners) - [5, 9, 5, 9]
    if is_mirrored:
        boxes[:, [0, 2]] = 97 - boxes[:, [2, 0]]
    back = boxes * np.array([53 / 97, 41 / 71] * 2) + [7, 3, 7, 3]
    np.testing.assert_allclose(back, corners, atol=1e-9)


def test_a_mask_that_shrinks_is_averaged() -> None:
    mask = np.random.default_rng(2).random((20, 35)) < 0.5  # 5 x 5 blocks have no ties
    crop = Crop((0, 0, 35, 20), (3, 1), (7, 4))
    expected = np.zeros((11, 11), bool)
    expected[1:5, 3:10] = mask.reshape(4, 5, 7, 5).mean(axis=(1, 3)) > 0.5
    np.testing.assert_array_equal(crop_mask(mask, crop, 11, 11), expected)


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_mask_that_grows_is_interpolated_as_the_image_is(is_mirrored: bool) -> None:
    mask = np.random.default_rng(4).random((13, 17)) < 0.5
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    crop = Crop((2, 1, 13, 12), (5, 8), (77, 55), is_mirrored)  # 7 times wider, 5 times higher
    grey = crop_image(image, crop, 90, BGR)[8:63, 5:82, 0].astype(int)
    inside = crop_mask(mask, crop, 90, 90)[8:63, 5:82]
    is_clear = abs(grey - 127.5) > 6  # the two interpolations round differently
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(inside[is_clear], (grey > 127)[is_clear])


def test_a_mask_that_grows_keeps_the_border_of_the_image() -> None:
    crop = Crop((0, 0, 3, 2), (4, 10), (18, 12))
    inside = crop_mask(np.ones((2, 3), bool), crop, 26, 26)
    assert box_of(inside) == [4, 10, 22, 22]
    assert inside.sum() == 18 * 12


def uncut_mask(mask: np.ndarray, crop: Crop, image_size: int, size: int) -> np.ndarray:
    """`crop_mask` by point sampling: what the photo's pixel under each cell's centre is."""
    x0, y0, x1, y1 = crop.source_xyxy
    window = mask[y0:y1, x0:x1]
    window = window[:, ::-1] if crop.is_mirrored else window
    centres = (np.arange(size) + 0.5) * (image_size / size)
    rows, columns = (
        np.floor((centres - start) * (side / length)).astype(int)
        for start, length, side in zip(
            crop.offset_xy[::-1], crop.target_wh[::-1], window.shape, strict=True
        )
    )
    inside = (rows >= 0) & (rows < window.shape[0])
    found = inside[:, None] & ((columns >= 0) & (columns < window.shape[1]))
    return (
        found & window[rows.clip(0, window.shape[0] - 1)][:, columns.clip(0, window.shape[1] - 1)]
    )


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("target_wh", [(41, 29), (97, 71), (160, 117)])  # smaller, as large, larger
def test_a_small_region_lands_where_the_whole_photo_would(
    is_mirrored: bool, target_wh: tuple[int, int]
) -> None:
    """Wherever it lies, at the borders of the window too; only what is near an edge may differ."""
    crop = Crop((13, 7, 230, 166), (5, 3), target_wh, is_mirrored)
    for x, y in [(110, 90), (13, 7), (205, 150), (100, 2), (222, 80)]:
        mask = np.zeros((173, 241), bool)
        mask[y : y + 31, x : x + 23] = True
        found, expected = crop_mask(mask, crop, 173, 173), uncut_mask(mask, crop, 173, 173)
        assert expected.any() == found.any()
        wide = cv2.dilate(expected.astype(np.uint8), np.ones((3, 3))).astype(bool)
        core = cv2.erode(
            expected.astype(np.uint8),
            np.ones((3, 3)),
            borderType=cv2.BORDER_CONSTANT,
            borderValue=1,
        ).astype(bool)
        assert not (found & ~wide).any()
        assert not (core & ~found).any()


def test_a_mask_without_pixels_in_the_window_is_empty() -> None:
    mask = np.zeros((20, 35), bool)
    mask[3, 4] = True
    assert not crop_mask(mask, Crop((10, 5, 30, 20), (0, 0), (20, 15)), 24, 24).any()


def test_half_a_mask_cell_belongs_to_the_side_of_its_centre() -> None:
    crop = Crop((0, 0, 8, 8), (1, 2), (8, 8))  # half resolution: columns 0.5 to 4.5, rows 1 to 5
    inside = crop_mask(np.ones((8, 8), bool), crop, 12, 6)
    assert box_of(inside) == [0, 1, 4, 5]


@pytest.mark.parametrize("mask_stride", [1, 2])
@pytest.mark.parametrize("scale_range", [(0.4, 0.9), (0.8, 1.2), (1.2, 3.0), (0.4, 3.0)])
def test_image_and_mask_stay_aligned(scale_range: tuple[float, float], mask_stride: int) -> None:
    size, rng = 96, np.random.default_rng(3)
    config = AugmentConfig(scale_range=scale_range)
    compared = 0
    for _ in range(60):
        height, width = rng.integers(60, 160, 2).tolist()
        x0, y0 = rng.integers(0, (width // 3, height // 3))
        x1, y1 = rng.integers((width // 2, height // 2), (width + 1, height + 1))
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = True
        image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        crop = draw_crop(rng, height, width, size, config)
        grey = crop_image(image, crop, size, BGR)[..., 0].astype(float)
        white = grey > 127  # the padding is 123
        box = crop.boxes_to_model(np.array([[x0, y0, x1, y1]], dtype=float))[0]
        if min(box[2:] - box[:2]) < 20:  # one column more or less would count too much
            continue
        compared += 1
        np.testing.assert_allclose(box, box_of(white), atol=1.01)
        inside = crop_mask(mask, crop, size, size // mask_stride)
        (left, top), (wide, high) = crop.offset_xy, crop.target_wh
        grey = np.pad(  # without the padding
            grey[top : top + high, left : left + wide],
            ((top, size - top - high), (left, size - left - wide)),
        )
        cells = grey.reshape(size // mask_stride, mask_stride, -1, mask_stride).mean(axis=(1, 3))
        assert inside[cells > 0.9 * 255].all() and not inside[cells < 0.1 * 255].any(), crop
        assert mask_stride > 1 or iou(white, inside) > 0.9, crop
    assert compared > 15


# --- drawing crops -------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", SIZES_HW)
@pytest.mark.parametrize("anchored", [False, True])
def test_crops_stay_inside_image_and_square(height: int, width: int, anchored: bool) -> None:
    size, rng = 48, np.random.default_rng(0)
    config = AugmentConfig(scale_range=(0.5, 2.5), anchored=anchored)
    for _ in range(50):
        crop = draw_crop(rng, height, width, size, config)
        x0, y0, x1, y1 = crop.source_xyxy
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        for offset, side in zip(crop.offset_xy, crop.target_wh, strict=True):
            assert 1 <= side and 0 <= offset and offset + side <= size
        assert not anchored or crop.offset_xy == (0, 0)
        square = crop_image(random_image(height, width), crop, size, BGR)
        assert square.shape == (size, size, 3)


def test_the_long_side_becomes_the_size_times_a_draw_from_the_range() -> None:
    rng = np.random.default_rng(1)
    config = AugmentConfig(scale_range=(0.5, 2.0))
    draws = []
    for _ in range(400):
        crop = draw_crop(rng, 300, 500, 256, config)
        draws.append(float(crop.scale_xy[0]) * 500 / 256)
    assert 0.49 < min(draws) < 0.53 and 1.9 < max(draws) < 2.03
    assert np.mean(np.array(draws) < 1.0) == pytest.approx(0.5, abs=0.08)  # log-uniform


def test_places_and_flips_vary() -> None:
    rng = np.random.default_rng(2)
    crops = [draw_crop(rng, 60, 80, 64, AugmentConfig(flip=0.3)) for _ in range(400)]
    assert np.mean([crop.is_mirrored for crop in crops]) == pytest.approx(0.3, abs=0.07)
    small = [crop for crop in crops if crop.target_wh[0] < 40]
    assert {min(crop.offset_xy[0] // 8, 3) for crop in small} == {0, 1, 2, 3}
    large = [crop for crop in crops if crop.source_xyxy[2] - crop.source_xyxy[0] < 50]
    assert {min(crop.source_xyxy[0] // 10, 3) for crop in large} == {0, 1, 2, 3}


def test_scale_1_anchored_is_the_frame_of_inference() -> None:
    config = AugmentConfig(scale_range=(1.0, 1.0), flip=0.0, anchored=True)
    crop = draw_crop(np.random.default_rng(0), 48, 100, 64, config)
    assert crop == Crop((0, 0, 100, 48), (0, 0), (64, 31))


def test_the_same_generator_state_draws_the_same_crop() -> None:
    draws = [draw_crop(np.random.default_rng(7), 60, 80, 64, AugmentConfig()) for _ in range(2)]
    assert draws[0] == draws[1]


# --- colour --------------------------------------------------------------------------------------


def test_colour_follows_its_formula_and_leaves_the_input() -> None:
    image = random_image(5, 7)
    before = image.copy()
    jittered = jitter_colour(image, np.random.default_rng(3), 0.4)
    rng = np.random.default_rng(3)
    gains = 1 + 0.5 * rng.uniform(-0.4, 0.4, 3)
    contrast, brightness = 1 + rng.uniform(-0.4, 0.4), 64 * rng.uniform(-0.4, 0.4)
    expected = ((image.astype(float) - 128) * contrast + 128 + brightness) * gains
    np.testing.assert_array_equal(jittered, expected.clip(0, 255).astype(np.uint8))
    np.testing.assert_array_equal(image, before)
    assert len(set(gains)) == 3


def test_no_colour_change_at_strength_0() -> None:
    image = random_image(5, 7)
    np.testing.assert_array_equal(jitter_colour(image, np.random.default_rng(3), 0.0), image)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"scale_range": (0.0, 1.0)}, r"scale_range: expected 0 < low <= high, got \(0.0, 1.0\)"),
        ({"scale_range": (2.0, 1.0)}, "scale_range: expected 0 < low <= high"),
        ({"flip": 1.5}, "flip: expected 0 to 1, got 1.5"),
        ({"colour": -0.1}, "colour: expected 0 to 1, got -0.1"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)
