"""Training views around one region."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.data.photos import write_photos
from tokenize_anything.data.augment import MAX_ZOOM_SHIFT, AugmentConfig, draw_zoom
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_dataset import RegionDataset, RegionSamplingConfig

IMAGE_HW = (431, 613)
CONFIG = AugmentConfig(zoom_probability=1.0, zoom_range=(0.3, 0.6), flip=0.5)


@pytest.mark.parametrize("box", [(301, 203, 342, 219), (0, 0, 37, 53), (580, 400, 613, 431)])
def test_the_region_fills_its_share_and_is_whole(box):
    rng = np.random.default_rng(3)
    box = np.array(box, float)
    shares, is_mirrored = [], set()
    for _ in range(200):
        crop = draw_zoom(rng, box, IMAGE_HW, 96, CONFIG)
        x0, y0, x1, y1 = crop.source_xyxy
        assert 0 <= x0 <= box[0] and box[2] <= x1 <= IMAGE_HW[1]
        assert 0 <= y0 <= box[1] and box[3] <= y1 <= IMAGE_HW[0]
        assert crop.target_wh == (96, 96)
        placed = crop.boxes_to_model(box[None])[0]
        shares.append(max(placed[2:] - placed[:2]) / 96)
        is_mirrored.add(crop.is_mirrored)
    assert 0.29 < min(shares) < 0.32 and 0.57 < max(shares) < 0.61
    assert is_mirrored == {True, False}


def test_its_place_in_the_view_varies():
    rng = np.random.default_rng(0)
    box = np.array([301.0, 203, 342, 219])
    middles = np.array(
        [
            (placed[:2] + placed[2:]) / 2 / 96
            for placed in (
                draw_zoom(rng, box, IMAGE_HW, 96, CONFIG).boxes_to_model(box[None])[0]
                for _ in range(300)
            )
        ]
    )
    assert np.abs(middles - 0.5).max() < MAX_ZOOM_SHIFT + 0.02
    assert (np.ptp(middles, axis=0) > 1.8 * MAX_ZOOM_SHIFT).all()


def test_a_region_larger_than_its_share_shows_the_whole_image():
    crop = draw_zoom(np.random.default_rng(0), np.array([1.0, 2, 600, 420]), IMAGE_HW, 96, CONFIG)
    assert crop.source_xyxy == (0, 0, 613, 431)
    assert crop.target_wh == (96, round(96 * 431 / 613))


def make_dataset(tmp_path, augment: AugmentConfig) -> RegionDataset:
    annotations = write_photos(tmp_path)
    records, texts = read_regions([annotations], tmp_path / "images")
    sampling = RegionSamplingConfig(regions_per_image=3, mask_stride=1)
    return RegionDataset(records, texts, 48, augment, sampling)


def test_samples_are_views_of_their_regions(tmp_path):
    around = make_dataset(tmp_path, dataclasses.replace(CONFIG, colour=0.0))
    for index, record in enumerate(around.records):
        if not any(region.rle for region in record.regions):
            continue
        sample = around[0, index]
        assert sample.has_mask.any()
        sides = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2])[sample.has_mask].max(axis=1)
        assert sides.max() > 0.2 * 48


def test_without_zoom_nothing_changes(tmp_path):
    plain = make_dataset(tmp_path / "a", AugmentConfig())
    other = make_dataset(tmp_path / "b", AugmentConfig(zoom_range=(0.1, 0.2)))
    for name in ("image", "boxes_xyxy", "masks", "text_index"):
        np.testing.assert_array_equal(getattr(plain[1, 0], name), getattr(other[1, 0], name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zoom_range": (0.5, 0.4)}, "zoom_range: expected 0 < low <= high, got"),
        ({"zoom_range": (0.5, 1.4)}, "zoom_range: expected at most 1, got"),
        ({"zoom_probability": 1.2}, "zoom_probability: expected 0 to 1, got 1.2"),
    ],
)
def test_bad_configuration(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)
