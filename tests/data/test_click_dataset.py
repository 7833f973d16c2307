"""Windows around clicks on single regions: what they show is what their annotations say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.data.photos import annotate, coco, write_json, write_photos
from tokenize_anything.click_windows import LARGEST_WINDOW, list_windows
from tokenize_anything.data.click_dataset import (
    HOME_SLACK,
    ClickBatch,
    ClickDataset,
    ClickSamplingConfig,
    masked_regions,
    repeat_crowded,
)
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.epoch_sampler import EpochSampler
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.geometry import decode_rle, innermost_point
from tokenize_anything.image_loading import load_image
from tokenize_anything.image_transform import pixel_padding
from tokenize_anything.modeling.click_segmenter import NUM_WINDOWS

SIDE, CLICKS = 64, 7
PLAIN = {"colour": 0.0, "flip": 0.0, "scale_range": (1.0, 1.0), "innermost_probability": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clicks") / "set"
    write_photos(root)
    return root


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo with a strip from end to end, a large square and a speck."""
    root = tmp_path_factory.mktemp("wide")
    (root / "images").mkdir()
    masks = np.zeros((3, 83, 157), bool)
    masks[0, 11:15, 1:156] = masks[1, 20:71, 40:91] = masks[2, 60:62, 120:123] = True
    photo = np.random.default_rng(0).integers(0, 256, (83, 157, 3), dtype=np.uint8)
    cv2.imwrite(str(root / "images" / "wide.png"), photo)
    rows = [annotate(mask, place + 1, 1, category_id=place + 1) for place, mask in enumerate(masks)]
    image = {"id": 1, "file_name": "wide.png", "height": 83, "width": 157}
    write_json(root / "photos.json", coco([image], rows))
    return root


def make_dataset(folder: Path, seed: int = 0, **sampling: Any) -> ClickDataset:
    records, texts = read_regions([folder / "photos.json"], folder / "images")
    values = {"clicks_per_image": CLICKS} | sampling
    return ClickDataset(records, texts, SIDE, ClickSamplingConfig(**values), seed=seed)


def masks_of(record: ImageRecord) -> list[np.ndarray]:
    return [decode_rle(region.rle).astype(bool) for region in masked_regions(record)]


def assert_same(left: ClickBatch, right: ClickBatch) -> None:
    for field in dataclasses.fields(ClickBatch):
        a, b = getattr(left, field.name), getattr(right, field.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, field.name


# --- what a sample holds ---------------------------------------------------------------------


def test_shapes_and_types(folder: Path) -> None:
    batch = make_dataset(folder)[0, 1]
    assert len(batch) == CLICKS
    assert batch.images.shape == (CLICKS, NUM_WINDOWS, SIDE, SIDE, 3)
    assert batch.masks.shape == (CLICKS, NUM_WINDOWS, SIDE, SIDE)
    assert batch.images.dtype == batch.masks.dtype == torch.uint8
    assert batch.areas.shape == (CLICKS, NUM_WINDOWS) and batch.areas.dtype == torch.float32
    assert batch.home.shape == (CLICKS,) and batch.home.dtype == torch.int64
    assert batch.names == ("1.png",) * CLICKS
    moved = batch.to(torch.device("cpu"))
    assert_same(moved, batch)


def home_of(mask: np.ndarray, click: tuple[int, int]) -> int:
    """Of the windows around a click, the smallest that holds nearly all of a mask."""
    rows, columns = np.nonzero(mask)
    x, y = click[0] + 0.5, click[1] + 0.5
    reach = max(x - columns.min(), columns.max() + 1 - x, y - rows.min(), rows.max() + 1 - y)
    half = LARGEST_WINDOW * max(mask.shape) / 2
    home = 0
    while home + 1 < NUM_WINDOWS and HOME_SLACK * reach <= half / 2 ** (home + 1):
        home += 1
    return home


def assert_is_around(
    batch: ClickBatch, row: int, photo: np.ndarray, mask: np.ndarray, click: tuple[int, int]
) -> None:
    """All of a row, from the photo and the whole mask."""
    windows = list_windows(click, mask.shape, SIDE)
    for place, window in enumerate(windows):
        shown = window.show(photo, pixel_padding(make_pixels()))
        np.testing.assert_array_equal(batch.images[row, place], shown)
        np.testing.assert_array_equal(batch.masks[row, place], window.show(mask))
        area = mask.sum() * window.scale**2
        assert float(batch.areas[row, place]) == pytest.approx(area, rel=1e-5)
    assert int(batch.home[row]) == home_of(mask, click)


def make_pixels() -> Any:
    return ClickDataset((), None, SIDE).pixels  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["shapes", "wide"])
def test_windows_around_the_innermost_pixel(folder: Path, wide_folder: Path, kind: str) -> None:
    """Which region a row is of shows in its masks."""
    dataset = make_dataset(folder if kind == "shapes" else wide_folder, **PLAIN, rarity_power=0.0)
    seen = set()
    for index, record in enumerate(dataset.records):
        photo, masks = load_image(record.path), masks_of(record)
        batch = dataset[0, index]
        for row in range(len(batch)):
            gaps = [
                np.abs(batch.masks[row, 0].numpy().astype(int) - shown).sum()
                for shown in (
                    list_windows(innermost_point(mask), mask.shape, SIDE)[0].show(mask)
                    for mask in masks
                )
            ]
            which = int(np.argmin(gaps))
            seen.add((index, which))
            assert_is_around(batch, row, photo, masks[which], innermost_point(masks[which]))
    assert len(seen) == sum(len(masks_of(record)) for record in dataset.records)


def test_the_home_of_regions(wide_folder: Path) -> None:
    """A strip in the largest window, a square where it does not quite fit, a speck far in."""
    masks = masks_of(make_dataset(wide_folder).records[0])
    found = [home_of(mask, innermost_point(mask)) for mask in masks]
    assert found == [0, 2, NUM_WINDOWS - 1]


def test_a_region_larger_than_all_windows_is_at_home_in_the_largest(wide_folder: Path) -> None:
    """Clicked at its end, a strip reaches beyond; its area does not end with the window."""
    dataset = make_dataset(
        wide_folder, **(PLAIN | {"innermost_probability": 0.0}), clicks_per_image=40
    )
    strip = masks_of(dataset.records[0])[0]
    batch, cut = dataset[0, 0], []
    scale = SIDE / (LARGEST_WINDOW * 157)
    for row in range(len(batch)):
        if float(batch.areas[row, 0]) == pytest.approx(strip.sum() * scale**2, rel=1e-4):
            assert int(batch.home[row]) == 0
            cut.append(float(batch.masks[row, 0].sum() / 255 / batch.areas[row, 0]))
    assert min(cut) < 0.95 and max(cut) > 0.98  # some clicks lie at an end of it, some do not


def test_any_pixel_of_the_region_is_clicked(folder: Path) -> None:
    """The middle of each window lies on the region, and not always on the same pixel."""
    dataset = make_dataset(folder, **(PLAIN | {"innermost_probability": 0.0}), clicks_per_image=30)
    batch = dataset[0, 2]
    middle = slice(SIDE // 2 - 1, SIDE // 2 + 1)
    assert (batch.masks[:, -1, middle, middle] > 200).all()
    assert len({batch.masks[row, 2].numpy().tobytes() for row in range(30)}) > 20
    inner = make_dataset(folder, **PLAIN, clicks_per_image=30)[0, 2]
    assert len({inner.masks[row, 2].numpy().tobytes() for row in range(30)}) == 2


def test_scales_change_all_windows_alike(folder: Path) -> None:
    dataset = make_dataset(folder, **(PLAIN | {"scale_range": (0.75, 1.35)}))
    batch = dataset[0, 0]
    ratios = (batch.areas[:, 1:] / batch.areas[:, :-1]).numpy()
    np.testing.assert_allclose(ratios[:, :3], 4.0, rtol=1e-4)
    areas = np.array([mask.sum() for mask in masks_of(dataset.records[0])])
    sides = SIDE / np.sqrt(batch.areas[:, 0].numpy()[:, None] / areas) / (LARGEST_WINDOW * 61)
    is_drawn = (sides > 0.749) & (sides < 1.351)
    assert is_drawn.any(axis=1).all() and np.ptp(sides[:, 0]) > 0.1


def test_flips_turn_photos_and_masks(folder: Path) -> None:
    plain, flipped = (make_dataset(folder, **(PLAIN | {"flip": flip}))[1, 3] for flip in (0.0, 1.0))
    assert torch.equal(flipped.images, plain.images.flip(3))
    assert torch.equal(flipped.masks, plain.masks.flip(3))
    assert not torch.equal(flipped.masks, plain.masks)
    assert torch.equal(flipped.areas, plain.areas) and torch.equal(flipped.home, plain.home)


def test_colours_change_photos_alone(folder: Path) -> None:
    """All windows of a click alike: a pixel of one colour keeps one colour."""
    plain, varied = (make_dataset(folder, **(PLAIN | {"colour": c}))[0, 0] for c in (0.0, 0.5))
    assert not torch.equal(varied.images, plain.images)
    assert torch.equal(varied.masks, plain.masks)
    for row in range(2):
        for channel in range(3):
            before = plain.images[row, ..., channel].flatten().long()
            after = varied.images[row, ..., channel].flatten()
            table = torch.zeros(256, dtype=torch.uint8).scatter(0, before, after)
            assert torch.equal(table[before], after)


# --- draws -----------------------------------------------------------------------------------


def test_draws_follow_from_seed_epoch_and_place(folder: Path) -> None:
    one, other = make_dataset(folder), make_dataset(folder)
    other[0, 1]
    assert_same(one[3, 2], other[3, 2])
    assert_same(one[3, 2], one[3, 2])  # what is kept in memory changes nothing
    images = [
        make_dataset(folder, seed)[epoch, 2].images for seed, epoch in ((0, 3), (0, 4), (1, 3))
    ]
    assert not any(torch.equal(images[0], image) for image in images[1:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_photo_alone_equals_a_photo_in_a_batch(folder: Path, num_workers: int) -> None:
    dataset = make_dataset(folder)
    sampler = EpochSampler(len(dataset))
    keys = [key for key, _ in zip(sampler, range(9), strict=False)]
    loader = DataLoader(
        dataset, 3, sampler=sampler, collate_fn=ClickBatch.join, num_workers=num_workers
    )
    batches: Sequence[ClickBatch] = [batch for batch, _ in zip(loader, range(3), strict=False)]
    for step, batch in enumerate(batches):
        assert len(batch) == 3 * CLICKS
        some = keys[3 * step : 3 * step + 3]
        assert_same(batch, ClickBatch.join([make_dataset(folder)[key] for key in some]))


def test_rare_texts_are_clicked_more_often(folder: Path) -> None:
    """Names that occur often are drawn as often as others only without a power."""
    counts = {}
    for power in (0.0, 30.0):
        dataset = make_dataset(folder, **PLAIN, clicks_per_image=60, rarity_power=power)
        areas = dataset[0, uneven_photo(dataset)].areas[:, 0].numpy()
        counts[power] = len(np.unique(areas.round(3)))
    assert counts == {0.0: 2, 30.0: 1}


def uneven_photo(dataset: ClickDataset) -> int:
    """The first whose regions have texts that occur differently often."""
    for place, record in enumerate(dataset.records):
        counts = {int(dataset.texts.counts[r.text_index]) for r in masked_regions(record)}
        if len(counts) == 2:
            return place
    raise AssertionError("expected such a photo")


# --- photos ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("clicks", "times"), [(1, 2), (2, 1), (3, 1)])
def test_crowded_photos_come_more_often(folder: Path, clicks: int, times: int) -> None:
    records = make_dataset(folder).records
    found = repeat_crowded(records, clicks)
    assert found == [record for record in records for _ in range(times)]


def test_photos_without_masks_do_not_come_at_all(folder: Path) -> None:
    record = make_dataset(folder).records[0]
    assert len(masked_regions(record)) == 2 and len(record.regions) > 2
    boxes = [region for region in record.regions if region.rle is None]
    bare = dataclasses.replace(record, regions=tuple(boxes))
    five = dataclasses.replace(record, regions=tuple(masked_regions(record) * 2)[:3])
    assert repeat_crowded([bare, five], 2) == [five, five]
    whole = [dataclasses.replace(r, is_whole_image=True) for r in masked_regions(record)]
    assert masked_regions(dataclasses.replace(record, regions=tuple(whole))) == []


def test_a_missing_photo_is_named(folder: Path) -> None:
    dataset = make_dataset(folder)
    gone = dataclasses.replace(dataset.records[0], path=folder / "images" / "gone.png")
    dataset.records = [gone]
    with pytest.raises(FileNotFoundError, match=re.escape(str(gone.path))):
        dataset[0, 0]


def test_a_photo_of_another_size_is_named(folder: Path) -> None:
    dataset = make_dataset(folder)
    other = dataclasses.replace(dataset.records[0], height=13)
    dataset.records = [other]
    with pytest.raises(ValueError, match=rf"{other.path} is \(47, 61\), its annotation says \(13,"):
        dataset[0, 0]


def test_a_damaged_mask_is_named(folder: Path) -> None:
    dataset = make_dataset(folder)
    record = dataset.records[1]
    broken = [
        dataclasses.replace(region, rle={"size": [3, 3], "counts": "9"})
        for region in masked_regions(record)
    ]
    dataset.records = [dataclasses.replace(record, regions=tuple(broken))]
    with pytest.raises(ValueError, match=rf"{record.path}: region \d+: expected a mask"):
        dataset[0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clicks_per_image": 0}, "clicks_per_image: expected at least 1, got 0"),
        ({"scale_range": (0.0, 1.0)}, "scale_range: expected 0 < low <= high, got (0.0, 1.0)"),
        ({"scale_range": (1.3, 0.8)}, "scale_range: expected 0 < low <= high, got (1.3, 0.8)"),
        ({"innermost_probability": -1}, "innermost_probability: expected 0 to 1, got -1"),
        ({"colour": 1.1}, "colour: expected 0 to 1, got 1.1"),
        ({"flip": 2}, "flip: expected 0 to 1, got 2"),
    ],
)
def test_bad_sampling(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ClickSamplingConfig(**values)
