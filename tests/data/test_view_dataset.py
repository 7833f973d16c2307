"""Views around single regions: what they show is what their annotations say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.data.photos import COLOURS, write_photos
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.epoch_sampler import EpochSampler
from tokenize_anything.data.view_dataset import (
    ViewBatch,
    ViewDataset,
    ViewSamplingConfig,
)

SIDE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("views") / "set"
    write_photos(root)
    return root


def make_dataset(folder: Path, seed: int = 0, **sampling: Any) -> ViewDataset:
    records, texts = read_regions([folder / "photos.json"], folder / "images")
    values = {"views_per_image": 11, "colour": 0.0} | sampling
    return ViewDataset(records, texts, SIDE, ViewSamplingConfig(**values), seed=seed)


def assert_same(left: ViewBatch, right: ViewBatch) -> None:
    for field in dataclasses.fields(ViewBatch):
        a, b = getattr(left, field.name), getattr(right, field.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, field.name


def is_painted(image: np.ndarray) -> np.ndarray:
    """(v,v) where one of the bright colours of the shapes is."""
    distances = [np.abs(image.astype(int) - colour).sum(axis=-1) for colour in COLOURS.values()]
    return np.min(distances, axis=0) < 120


@pytest.mark.parametrize("box_probability", [0.0, 1.0])
def test_masks_lie_on_what_the_view_shows(folder: Path, box_probability: float) -> None:
    dataset = make_dataset(folder, box_probability=box_probability, click_zoom_range=(0.3, 0.9))
    inside, outside = [], []
    for index in range(4):
        batch = dataset[0, index]
        for image, mask, has_mask in zip(
            batch.images.numpy(), batch.masks.numpy(), batch.has_mask.tolist(), strict=True
        ):
            if has_mask:
                inside.append(is_painted(image)[mask].mean())
                outside.append(is_painted(image)[~mask].mean())
    assert np.mean(inside) > 0.9 and np.mean(outside) < 0.1
    assert len(inside) > 20


def test_boxes_and_clicks_belong_to_the_masks(folder: Path) -> None:
    batch = make_dataset(folder, click_zoom_range=(0.3, 0.9))[1, 2]
    seen = set()
    for row in torch.nonzero(batch.has_mask)[:, 0].tolist():
        mask = batch.masks[row].numpy()
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_array_equal(batch.boxes_xyxy[row], box)
        x, y = batch.clicks_xy[row].round().int().clip(0, SIDE - 1).tolist()
        near = mask[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        assert near.any()  # cells are not pixels
        seen.add(bool(batch.is_box[row]))
    assert seen == {True, False}


def test_a_click_is_in_the_middle_of_its_view(folder: Path) -> None:
    """Where the view is not at the border of the photo, and not moved inside."""
    batch = make_dataset(folder, box_probability=0.0, click_zoom_range=(1.1, 1.2), flip=0.0)[0, 2]
    clicks = batch.clicks_xy[batch.has_mask].numpy()
    assert len(clicks) and np.median(np.abs(clicks - SIDE / 2)) < 0.08 * SIDE


def test_areas_count_what_the_view_cuts_off(folder: Path) -> None:
    whole = make_dataset(folder, box_probability=1.0, box_zoom_range=(0.4, 0.5))
    cut = make_dataset(folder, box_probability=0.0, click_zoom_range=(1.8, 2.0))
    for dataset, low, high in ((whole, 0.95, 1.05), (cut, 0.3, 0.85)):
        batch = dataset[0, 2]  # no window is under 32 pixels, so that little is cut off
        shares = batch.masks.sum((1, 2))[batch.has_mask] / batch.areas[batch.has_mask]
        assert low < shares.min() < high


def test_box_only_regions_have_a_box_and_a_name_alone(folder: Path) -> None:
    batch = make_dataset(folder, box_only_weight=50.0)[0, 1]
    bare = ~batch.has_mask
    assert bare.any() and batch.is_box[bare].all() and (batch.text_index[bare] >= 0).all()
    assert not batch.masks[bare].any() and (batch.areas[bare] == 0).all()
    assert (batch.boxes_xyxy[bare, 2:] > batch.boxes_xyxy[bare, :2]).all()


def test_draws_follow_from_seed_epoch_and_place(folder: Path) -> None:
    one, other = make_dataset(folder, colour=0.3), make_dataset(folder, colour=0.3)
    other[0, 1]
    assert_same(one[3, 2], other[3, 2])
    images = [
        make_dataset(folder, seed)[epoch, 2].images for seed, epoch in ((0, 3), (0, 4), (1, 3))
    ]
    assert not any(torch.equal(images[0], image) for image in images[1:])


def test_workers_change_nothing(folder: Path) -> None:
    def batches(num_workers: int) -> Sequence[ViewBatch]:
        dataset = make_dataset(folder)
        loader = DataLoader(
            dataset, 3, sampler=EpochSampler(len(dataset)), collate_fn=ViewBatch.join,
            num_workers=num_workers,
        )  # fmt: skip
        return [batch for batch, _ in zip(loader, range(3), strict=False)]

    for left, right in zip(batches(0), batches(1), strict=True):
        assert len(left) == 33
        assert_same(left, right)


def test_a_damaged_mask_is_named(folder: Path) -> None:
    dataset = make_dataset(folder)
    record = dataset.records[1]
    broken = [
        dataclasses.replace(region, rle={"size": [3, 3], "counts": "9"})
        for region in record.regions
    ]
    dataset.records = [dataclasses.replace(record, regions=tuple(broken))]
    with pytest.raises(ValueError, match=rf"{record.path}: region \d+: expected a mask"):
        dataset[0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views_per_image": 0}, "views_per_image: expected at least 1, got 0"),
        ({"box_probability": 1.1}, "box_probability: expected 0 to 1, got 1.1"),
        ({"innermost_probability": -1}, "innermost_probability: expected 0 to 1, got -1"),
        ({"click_zoom_range": (0.0, 1.0)}, "click_zoom_range: expected 0 < low <= high"),
        ({"box_zoom_range": (0.5, 1.2)}, "zoom_range: expected at most 1"),
        ({"box_only_weight": 0}, "box_only_weight: expected more than 0, got 0"),
    ],
)
def test_bad_sampling(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewSamplingConfig(**values)
