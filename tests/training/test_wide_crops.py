"""Crops for wider views of named regions, beside those that show the regions closely."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.tiny import tiny_config, tiny_tap
from tokenize_anything.centred_views import CentredView
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable
from tokenize_anything.modeling import TAP
from tokenize_anything.training.named_views import (
    NamedViews,
    RegionCrops,
    choose_windows,
    crop_regions,
    draw_looks,
    outline_crops,
)

HEIGHT, WIDTH, PADDING = 61, 83, (123, 116, 103)
SIZE, WIDE_SIZE = 40, 56
TEXTS = TextTable(("kite", "ball"), np.array([1, 1]))
BOXES = (
    (30.0, 20.0, 38.0, 26.0),
    (0.0, 3.0, 40.0, 16.5),
    (0.0, 0.0, 83.0, 61.0),
    (70.0, 40.0, 74.0, 48.0),
    (47.0, 31.0, 48.0, 32.0),
)


@pytest.fixture(scope="module")
def model() -> TAP:
    return tiny_tap(tiny_config(view_dim=3, view_size=64))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Two photos of noise with a few regions each, one of a name that is not asked for."""
    folder, found = tmp_path_factory.mktemp("photos"), []
    for index, boxes in enumerate((BOXES[:3], BOXES[3:])):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), noise(index)[..., ::-1])
        other = RegionAnnotation((5.0, 5.0, 50.0, 60.0), text_index=0)
        regions = (other, *(RegionAnnotation(box, text_index=1) for box in boxes))
        found.append(ImageRecord(path, HEIGHT, WIDTH, regions))
    return found


@pytest.fixture(scope="module")
def views(records: list[ImageRecord], model: TAP) -> NamedViews:
    return crop_regions(records, TEXTS, ["ball"], model, SIZE, wide_size=WIDE_SIZE)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def wide_crops(views: NamedViews) -> RegionCrops:
    assert views.wide is not None
    return views.wide


def test_wider_crops_are_what_a_view_shows(views: NamedViews) -> None:
    """Seven fifths as wide as the views at inference, as the close crops are."""
    wide = wide_crops(views)
    assert len(wide) == len(views) == len(BOXES)
    assert wide.images.shape == (5, WIDE_SIZE, WIDE_SIZE, 3) and wide.images.dtype == torch.uint8
    for row, box in enumerate(BOXES):
        long_side = max(box[2] - box[0], box[3] - box[1])
        zoom = 5 / 7 * max(0.2, long_side / (1.2 * WIDTH))
        view = CentredView.around(box, (HEIGHT, WIDTH), WIDE_SIZE, zoom)
        expected = view.show(noise(int(row >= 3)), PADDING)
        np.testing.assert_array_equal(wide.images[row].numpy(), expected)
        np.testing.assert_allclose(wide.boxes_xyxy[row], view.box_in_view(box), atol=1e-4)


def test_boxes_are_in_the_middle_of_wider_crops(views: NamedViews) -> None:
    boxes = wide_crops(views).boxes_xyxy
    assert boxes.dtype == torch.float32
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(middles, torch.full((5, 2), WIDE_SIZE / 2))
    shares = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) / WIDE_SIZE
    expected = [1 / 7, 5 / 7 * 40 / 99.6, 5 / 7 / 1.2, 1 / 7, 1 / 7]
    torch.testing.assert_close(shares, torch.tensor(expected))


def test_wider_crops_are_pixels_of_the_photo_and_padding(views: NamedViews) -> None:
    """Boxes 8 wide in crops of 56: pixels as they are."""
    wide = wide_crops(views)
    for row, seed, left, top in ((0, 0, 6, -5), (3, 1, 44, 16)):
        canvas = np.empty((HEIGHT + 80, WIDTH + 80, 3), np.uint8)
        canvas[:] = PADDING
        canvas[40 : 40 + HEIGHT, 40 : 40 + WIDTH] = noise(seed)
        expected = canvas[top + 40 : top + 40 + WIDE_SIZE, left + 40 : left + 40 + WIDE_SIZE]
        np.testing.assert_array_equal(wide.images[row].numpy(), expected)
        assert (expected == PADDING).all(axis=-1).any()


@pytest.mark.parametrize("row", [0, 1, 2])
def test_windows_of_wider_crops_are_the_views_of_inference(
    views: NamedViews, model: TAP, tmp_path: Path, row: int
) -> None:
    """Drawn as the close ones are, with nothing varied; the photo is smooth."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    photo = np.stack([3 * columns, 4 * rows, columns + rows], axis=-1).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "smooth.png"), photo[..., ::-1])
    region = RegionAnnotation(BOXES[row], text_index=1)
    record = ImageRecord(tmp_path / "smooth.png", HEIGHT, WIDTH, (region,))
    crops = wide_crops(crop_regions([record], TEXTS, ["ball"], model, 32, wide_size=192))
    side, one = 64, torch.tensor([0])
    looks = draw_looks(crops, one, choose_windows(crops, torch.tensor([0.7])), side)
    share = max(0.2, (BOXES[row][2] - BOXES[row][0]) / (1.2 * WIDTH))
    view = CentredView.around(BOXES[row], (HEIGHT, WIDTH), side, share)
    expected = view.show(photo, PADDING).astype(float)
    gaps = np.abs(looks.images[0].movedim(0, -1).numpy() - expected).max(axis=-1)
    assert np.quantile(gaps, 0.9) < 6  # all but where the photo ends
    x0, y0, x1, y1 = view.box_in_view(BOXES[row])
    wanted = (y1 - y0) * (x1 - x0)
    assert float(looks.boxes[0].sum()) == pytest.approx(wanted, rel=0.02)
    assert (x1 - x0) / side == pytest.approx(share)


def test_close_crops_are_the_same_with_and_without(
    views: NamedViews, records: list[ImageRecord], model: TAP
) -> None:
    alone = crop_regions(records, TEXTS, ["ball"], model, SIZE)
    assert alone.wide is None
    for name in ("images", "boxes_xyxy", "masks", "tokens", "has_mask", "names"):
        assert torch.equal(getattr(alone, name), getattr(views, name)), name
    assert alone.photos == views.photos


def test_wider_crops_have_no_outlines(views: NamedViews, model: TAP) -> None:
    """Also where the close ones got theirs."""
    wide = wide_crops(views)
    assert wide.masks.shape == (5, WIDE_SIZE // 2, WIDE_SIZE // 2)
    assert wide.masks.dtype == torch.bool and not wide.masks.any()
    outlined = outline_crops(model, views, torch.autocast("cpu", enabled=False))
    assert outlined.wide is wide and not wide.masks.any()
