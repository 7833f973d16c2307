"""Training samples: repeatable draws, aligned contents, named errors; and the order of epochs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.photos import COLOURS, SIZES_HW, write_photos
from tokenize_anything.config import PixelConfig
from tokenize_anything.data.augment import AugmentConfig, Crop
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_dataset import (
    EpochSampler,
    RegionDataset,
    RegionSample,
    RegionSamplingConfig,
    collate,
    read_image,
)
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable

SIZE, STRIDE, PER_IMAGE = 80, 2, 5
FIXED = AugmentConfig(scale_range=(1.0, 1.0), flip=0.0, colour=0.0, anchored=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("regions") / "set"
    write_photos(root)
    return root


def make_dataset(folder: Path, **options: Any) -> RegionDataset:
    records, texts = read_regions([folder / "photos.json"], folder / "images")
    sampling = RegionSamplingConfig(regions_per_image=PER_IMAGE, mask_stride=STRIDE)
    return RegionDataset(records, texts, SIZE, **({"sampling": sampling} | options))


def assert_same(left: RegionSample, right: RegionSample) -> None:
    for field in dataclasses.fields(RegionSample):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name))


# --- contents ------------------------------------------------------------------------------------


def test_a_sample_has_its_shapes_and_types(folder: Path) -> None:
    sample = make_dataset(folder)[0, 2]
    assert sample.image.shape == (SIZE, SIZE, 3) and sample.image.dtype == np.uint8
    assert sample.boxes_xyxy.shape == (PER_IMAGE, 4) and sample.boxes_xyxy.dtype == np.float32
    assert sample.masks.shape == (PER_IMAGE, SIZE // STRIDE, SIZE // STRIDE)
    assert sample.masks.dtype == bool and sample.has_mask.dtype == bool
    assert sample.text_index.shape == (PER_IMAGE,) and sample.text_index.dtype == np.int64
    assert sample.index == 2


def test_masks_lie_on_the_pixels_of_their_shape(folder: Path) -> None:
    dataset = make_dataset(folder, augment=AugmentConfig(colour=0.0, scale_range=(0.8, 1.5)))
    colours = np.array(list(COLOURS.values()))
    num_seen = 0
    for epoch, index in itertools.product(range(5), range(len(dataset))):
        sample = dataset[epoch, index]
        small = cv2.resize(sample.image, None, fx=1 / STRIDE, fy=1 / STRIDE).astype(int)
        for mask in sample.masks[sample.has_mask]:
            core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
            if core.sum() < 20:
                continue
            num_seen += 1
            distance = np.abs(small[core][:, None] - colours).max(axis=2)  # to each colour
            assert distance.max(axis=0).min() < 25
    assert num_seen > 30


def test_boxes_of_masks_are_tight_and_cells_wide(folder: Path) -> None:
    sample = make_dataset(folder)[1, 0]
    assert sample.has_mask.any()
    for box, mask in zip(
        sample.boxes_xyxy[sample.has_mask], sample.masks[sample.has_mask], strict=True
    ):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert box.tolist() == [STRIDE * value for value in expected]


def test_a_region_without_mask_keeps_its_annotated_box(folder: Path) -> None:
    dataset = make_dataset(folder, augment=FIXED)
    height, width = SIZES_HW[0]
    region = RegionAnnotation((5.5, 7.0, 25.75, 24.0), None, 1)
    record = dataclasses.replace(dataset.records[0], regions=(region,))
    sample = dataclasses.replace(dataset, records=[record])[0, 0]
    assert not sample.masks.any() and not sample.has_mask.any()
    assert sample.text_index.tolist() == [1] * PER_IMAGE
    x_scale, y_scale = SIZE / width, round(height * SIZE / width) / height
    expected = [5.5 * x_scale, 7 * y_scale, 25.75 * x_scale, 24 * y_scale]
    np.testing.assert_allclose(sample.boxes_xyxy, [expected] * PER_IMAGE, rtol=1e-6)


def test_the_padding_has_the_same_colour_whatever_the_jitter(folder: Path) -> None:
    augment = dataclasses.replace(FIXED, colour=0.9)
    for epoch in range(3):
        sample = make_dataset(folder, augment=augment)[epoch, 0]
        assert (sample.image[-5:] == (123, 116, 103)).all()
    assert not np.array_equal(sample.image, make_dataset(folder, augment=FIXED)[0, 0].image)


def test_channel_order_reaches_the_padding(folder: Path) -> None:
    pixels = PixelConfig(mean=(1, 2, 3), channel_order="RGB")
    assert make_dataset(folder, augment=FIXED, pixels=pixels)[0, 0].image[-1, 0].tolist() == [
        1,
        2,
        3,
    ]


def test_an_image_that_shows_no_region_gives_an_empty_sample(folder: Path) -> None:
    dataset = make_dataset(folder)
    hidden = RegionAnnotation((-50.0, -50.0, -10.0, -10.0), None, 0)
    record = dataclasses.replace(dataset.records[0], regions=(hidden,))
    sample = dataclasses.replace(dataset, records=[record])[0, 0]
    assert not sample.has_mask.any() and (sample.text_index == -1).all()
    assert (sample.boxes_xyxy == [0, 0, SIZE, SIZE]).all()


def test_whole_images_must_be_whole_and_regions_mostly_visible(folder: Path) -> None:
    dataset = make_dataset(folder)
    half = Crop((0, 0, 10, 20), (0, 0), (40, 80))
    regions = (
        RegionAnnotation((0, 0, 20, 20)),  # half inside
        RegionAnnotation((0, 0, 30, 20)),  # a third inside
        RegionAnnotation((0, 0, 20, 20), is_whole_image=True),
        RegionAnnotation((0, 0, 11, 20), is_whole_image=True),  # 10 of 11 columns
        RegionAnnotation((0, 0, 0.7, 20)),  # 2.8 model pixels wide
    )
    kept = dataset._visible_regions(regions, half)
    assert [regions.index(region) for region, _ in kept] == [0, 3]
    assert kept[0][1].tolist() == [0, 0, 40, 80]


# --- which regions -------------------------------------------------------------------------------


def chosen(regions: Sequence[RegionAnnotation], counts: list[int], **options: Any) -> np.ndarray:
    """How often each region is drawn in 3000 single draws."""
    texts = TextTable(tuple(map(str, range(len(counts)))), np.array(counts))
    sampling = RegionSamplingConfig(regions_per_image=1, **options)
    dataset = RegionDataset([], texts, SIZE, sampling=sampling)
    rng = np.random.default_rng(0)
    view = [(region, np.zeros(4, np.float32)) for region in regions]
    rows = [dataset._choose(view, rng)[0][0].text_index for _ in range(3000)]
    return np.bincount(rows, minlength=len(regions)) / 3000


def test_regions_are_drawn_by_kind_and_rarity() -> None:
    rle = {"size": [2, 2], "counts": [0, 4]}
    box = (0.0, 0.0, 9.0, 9.0)
    regions = [
        RegionAnnotation(box, rle, 0),
        RegionAnnotation(box, rle, 1),
        RegionAnnotation(box, None, 2),
        RegionAnnotation(box, None, 3, is_whole_image=True),
    ]
    shares = chosen(
        regions, [1, 16, 16, 1], rarity_power=0.5, box_only_weight=0.6, whole_image_weight=0.2
    )
    weights = np.array([1.0, 0.25, 0.6 * 0.25, 0.2])
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.03)


def test_regions_are_repeated_only_where_they_are_too_few() -> None:
    regions = [RegionAnnotation((0, 0, 9, 9), None, -1, (str(i),)) for i in range(7)]
    view = [(region, np.zeros(4, np.float32)) for region in regions]
    texts = TextTable((), np.array([]))
    for count, least in ((7, 7), (5, 5), (12, 4)):
        sampling = RegionSamplingConfig(regions_per_image=count)
        dataset = RegionDataset([], texts, SIZE, sampling=sampling)
        picks = dataset._choose(view, np.random.default_rng(0))
        assert len(picks) == count
        assert len({region.captions for region, _ in picks}) >= least
        assert count > 7 or len({region.captions for region, _ in picks}) == count


# --- repeatable ----------------------------------------------------------------------------------


def test_a_sample_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    dataset, again = make_dataset(folder, keep_images=True), make_dataset(folder)
    first = dataset[3, 1]
    dataset[0, 0], dataset[3, 2]
    assert_same(dataset[3, 1], first)
    assert_same(again[3, 1], first)
    others = [dataset[4, 1], make_dataset(folder, seed=1)[3, 1]]
    for other in others:
        assert not np.array_equal(other.image, first.image)


def test_kept_images_stay_as_they_are(folder: Path) -> None:
    dataset = make_dataset(folder, keep_images=True)
    dataset[0, 1], dataset[1, 1]
    np.testing.assert_array_equal(dataset._cache[1], read_image(dataset.records[1]))


def test_images_are_kept_only_when_asked_for(folder: Path) -> None:
    dataset = make_dataset(folder)
    assert dataset[0, 1].index == 1
    assert not dataset._cache


def test_workers_change_nothing(folder: Path) -> None:
    dataset = make_dataset(folder)
    batches = []
    for num_workers in (0, 2):
        loader = DataLoader(
            dataset, batch_size=3, sampler=EpochSampler(4, seed=5, start=2), collate_fn=collate,
            num_workers=num_workers,
        )  # fmt: skip
        batches.append(list(itertools.islice(iter(loader), 3)))
    for left, right in zip(*batches, strict=True):
        for field in dataclasses.fields(left):
            assert torch.equal(getattr(left, field.name), getattr(right, field.name))


def test_collate_stacks_in_order(folder: Path) -> None:
    dataset = make_dataset(folder)
    samples = [dataset[0, 3], dataset[0, 1]]
    batch = collate(samples)
    assert batch.indices.tolist() == [3, 1]
    assert batch.images.shape == (2, SIZE, SIZE, 3)
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.images[row].numpy(), sample.image)
        np.testing.assert_array_equal(batch.boxes_xyxy[row].numpy(), sample.boxes_xyxy)
        np.testing.assert_array_equal(batch.masks[row].numpy(), sample.masks)
        np.testing.assert_array_equal(batch.has_mask[row].numpy(), sample.has_mask)
        np.testing.assert_array_equal(batch.text_index[row].numpy(), sample.text_index)
    moved = batch.to(torch.device("meta"))
    assert {getattr(moved, field.name).device.type for field in dataclasses.fields(moved)} == {
        "meta"
    }


# --- bad data ------------------------------------------------------------------------------------


def record_of(path: Path, height: int = 5, width: int = 7) -> ImageRecord:
    return ImageRecord(path, height, width, (RegionAnnotation((0.0, 0.0, 5.0, 5.0)),))


def test_an_image_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    dataset = RegionDataset([record_of(tmp_path / "broken.jpg")], TextTable((), np.array([])), SIZE)
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        dataset[0, 0]


def test_an_image_cut_short_is_named(folder: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "cut.jpg"), image)
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        read_image(record_of(tmp_path / "cut.jpg", 50, 70))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        read_image(record_of(tmp_path / "nothing.png"))


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((7, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a\.png is \(7, 5\), its annotation says \(5, 7\)"):
        read_image(record_of(tmp_path / "a.png", 5, 7))


def test_images_are_rgb(tmp_path: Path) -> None:
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[..., 0] = 200  # blue for OpenCV
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    assert read_image(record_of(tmp_path / "a.png"))[0, 0].tolist() == [0, 0, 200]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"regions_per_image": 0}, "regions_per_image: expected at least 1, got 0"),
        ({"mask_stride": 0}, "mask_stride: expected at least 1, got 0"),
        ({"box_only_weight": 0.0}, "box_only_weight: expected more than 0, got 0.0"),
        ({"whole_image_weight": -1.0}, "whole_image_weight: expected more than 0"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionSamplingConfig(**values)


def test_a_stride_that_does_not_divide_is_refused() -> None:
    texts, sampling = TextTable((), np.array([])), RegionSamplingConfig(mask_stride=3)
    with pytest.raises(ValueError, match="mask_stride: expected a divisor of image_size 80, got 3"):
        RegionDataset([], texts, SIZE, sampling=sampling)


# --- order of epochs -----------------------------------------------------------------------------


def take(sampler: EpochSampler, count: int) -> list[tuple[int, int]]:
    return list(itertools.islice(iter(sampler), count))


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    keys = take(EpochSampler(11, seed=3), 33)
    orders = [[index for epoch, index in keys if epoch == wanted] for wanted in range(3)]
    assert [epoch for epoch, _ in keys] == [0] * 11 + [1] * 11 + [2] * 11
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert take(EpochSampler(11, seed=4), 33) != keys


@pytest.mark.parametrize("start", [0, 1, 10, 11, 12, 25])
def test_a_start_continues_where_it_stopped(start: int) -> None:
    assert (
        take(EpochSampler(11, seed=3, start=start), 9)
        == take(EpochSampler(11, seed=3), 40)[start : start + 9]
    )


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        EpochSampler(0)
