"""Masked crops against Pillow's resampling and by hand; regions through a small image tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_clip import (
    MEAN,
    SIDE,
    STD,
    embed_plainly,
    make_tiny_clip,
    needs_open_clip,
    write_tiny_clip,
)
from tests.tiny_predictor import make_photo
from tokenize_anything.open_clip_files import import_open_clip
from tokenize_anything.semantic_sa1b.clip_teacher import ClipTeacher, CropSettings, crop_region

HEIGHT, WIDTH = 43, 59


def make_mask(kind: str) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if kind == "tall":
        mask[2:40, 11:24] = 3
        mask[10:20, 11:15] = 0
    elif kind == "wide":
        mask[30:37, 4:58] = 1
        mask[30, 4:20] = 0
    elif kind == "parts":
        mask[0:3, 0:4] = 1
        mask[20:43, 50:59] = 1
    elif kind == "dot":
        mask[17, 31] = 1
    elif kind == "all":
        mask[:] = 255
    return mask


def crop_plainly(rgb: np.ndarray, mask: np.ndarray, settings: CropSettings) -> np.ndarray:
    """(3,S,S): Pillow resizes the blanked planes, one by one, in floating point."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = mask[box] != 0
    longest = max(inside.shape)
    height, width = (max(1, round(side * settings.size / longest)) for side in inside.shape)
    top, left = (settings.size - height) // 2, (settings.size - width) // 2
    square = np.zeros((3, settings.size, settings.size))
    for channel in range(3):
        plane = np.where(
            inside,
            (rgb[box][..., channel] / 255.0 - settings.mean[channel]) / settings.std[channel],
            0.0,
        )
        resized = Image.fromarray(plane.astype(np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        square[channel, top : top + height, left : left + width] = np.asarray(resized)
    return square


# --- crops --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [17, 101])  # smaller and larger than the regions
@pytest.mark.parametrize("kind", ["tall", "wide", "parts", "dot", "all"])
def test_crops_are_pillows(kind: str, size: int) -> None:
    rgb, mask, settings = make_photo(HEIGHT, WIDTH), make_mask(kind), CropSettings(size, MEAN, STD)
    found = crop_region(rgb, mask, settings)
    assert (found.dtype, found.shape) == (torch.float32, (3, size, size))
    np.testing.assert_allclose(found, crop_plainly(rgb, mask, settings), rtol=0, atol=2e-5)


def test_a_crop_of_its_own_size_is_the_pixels_themselves() -> None:
    rgb = make_photo(HEIGHT, WIDTH)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:12, 8:10] = True  # 7 high, 2 wide: blank columns 0, 1 and 4, 5, 6
    mask[6, 9] = False
    found = crop_region(rgb, mask, CropSettings(7, MEAN, STD))
    wanted = torch.zeros(3, 7, 7)
    values = (rgb[5:12, 8:10] / 255 - np.array(MEAN)) / np.array(STD)
    wanted[:, :, 2:4] = torch.tensor(values).permute(2, 0, 1)
    wanted[:, 1, 3] = 0
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert (found[:, :, [0, 1, 4, 5, 6]] == 0).all()


def test_what_lies_outside_the_mask_does_not_matter() -> None:
    rgb, mask = make_photo(HEIGHT, WIDTH), make_mask("tall")
    other = np.where(mask[..., None] != 0, rgb, 255 - rgb)
    before = rgb.copy(), mask.copy()
    assert torch.equal(crop_region(rgb, mask), crop_region(other, mask != 0))
    assert (rgb == before[0]).all()
    assert (mask == before[1]).all()


@needs_open_clip
def test_a_whole_square_photo_is_what_clip_itself_sees() -> None:
    """Up to Pillow's rounding to whole numbers, twice."""
    rgb = make_photo(61, 61)
    transform = import_open_clip().image_transform(224, is_train=False)
    wanted = transform(Image.fromarray(rgb))
    found = crop_region(rgb, np.ones((61, 61)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1.5 / 255 / 0.26)


@pytest.mark.parametrize(
    ("rgb", "mask", "kind", "words"),
    [
        (make_photo(5, 7), np.zeros((5, 7)), ValueError, r"mask: expected at least one pixel ins"),
        (make_photo(5, 7), np.ones((7, 5)), ValueError, r"photo's \(5, 7\), got \(7, 5\)"),
        (make_photo(5, 7)[..., 0], np.ones((5, 7)), ValueError, r"rgb: expected \(H,W,3\), got"),
        (make_photo(5, 7) / 255, np.ones((5, 7)), TypeError, r"rgb: expected a uint8 .* float64"),
        ("photo.jpg", np.ones((5, 7)), TypeError, r"rgb: expected a uint8 array .* got str"),
    ],
)
def test_regions_that_cannot_be(rgb: Any, mask: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        crop_region(rgb, mask)


# --- teacher ------------------------------------------------------------------------------------


@needs_open_clip
def test_regions_are_embedded_crops(tmp_path: Path) -> None:
    model = make_tiny_clip(seed=3)
    teacher = ClipTeacher(str(write_tiny_clip(tmp_path, model)), towers="image", device="cpu")
    assert teacher.crop_settings == CropSettings(SIDE, MEAN, STD)
    rgb = make_photo(HEIGHT, WIDTH)
    masks = np.stack([make_mask(kind) for kind in ("tall", "wide", "parts", "dot", "all")])
    found = teacher.embed_regions(rgb, masks, batch_size=2)
    crops = [crop_plainly(rgb, mask, teacher.crop_settings) for mask in masks]
    wanted = embed_plainly(model, torch.tensor(np.stack(crops), dtype=torch.float32))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert (found[:1] - found[1:]).abs().max() > 0.01
    alone = teacher.embed_regions(rgb, list(masks[2:3]))
    torch.testing.assert_close(alone, found[2:3], atol=1e-5, rtol=0)
    assert teacher.embed_regions(rgb, masks[:0]).shape == (0, teacher.dim)
