"""Training samples: repeatable draws, aligned contents, named errors; and the order of epochs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from tests.data.photos import COLOURS, SIZES_HW, write_photos
from tokenize_anything.config import PixelConfig
from tokenize_anything.data.augment import AugmentConfig, Crop
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.epoch_sampler import EpochSampler
from tokenize_anything.data.procedural_shapes import ShapeConfig, draw_ellipses
from tokenize_anything.data.region_dataset import (
    MAX_BAD_IMAGES,
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


# --- painted shapes ------------------------------------------------------------------------------


def test_shapes_take_the_last_rows_and_cut_the_masks_of_the_others(folder: Path) -> None:
    shapes = ShapeConfig(count=2, size_range=(0.2, 0.4))
    sampling = RegionSamplingConfig(regions_per_image=PER_IMAGE, shapes=shapes)
    painted = make_dataset(folder, augment=FIXED, sampling=sampling)
    plain_sampling = RegionSamplingConfig(regions_per_image=PER_IMAGE - 2)
    plain = make_dataset(folder, augment=FIXED, sampling=plain_sampling)
    num_cut = 0
    for epoch in range(6):
        sample, before = painted[epoch, 0], plain[epoch, 0]
        assert sample.masks.shape == (PER_IMAGE, SIZE // STRIDE, SIZE // STRIDE)
        np.testing.assert_array_equal(sample.text_index[:-2], before.text_index)
        assert (sample.text_index[-2:] == -1).all()
        covered = sample.masks[-2:].any(axis=0)
        np.testing.assert_array_equal(sample.masks[:-2], before.masks & ~covered)
        np.testing.assert_array_equal(sample.has_mask, sample.masks.any(axis=(1, 2)))
        num_cut += int((sample.masks[:-2] != before.masks).any())
        for box, mask in zip(sample.boxes_xyxy, sample.masks, strict=True):
            if mask.any():
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert box.tolist() == [STRIDE * value for value in expected]
        without = ~sample.has_mask[:-2]
        np.testing.assert_array_equal(sample.boxes_xyxy[:-2][without], before.boxes_xyxy[without])
        changed = (sample.image != before.image).any(axis=2)
        inside = covered.repeat(STRIDE, axis=0).repeat(STRIDE, axis=1)
        assert changed[inside].mean() > 0.9
    assert num_cut > 0


def test_ellipses_take_the_place_of_masks_only_when_asked_for(folder: Path) -> None:
    """Also for regions that have a box alone; boxes, photos and texts stay."""
    plain = make_dataset(folder)
    assert not plain.sampling.ellipse_masks
    records = [
        dataclasses.replace(
            record,
            regions=tuple(
                dataclasses.replace(region, rle=None) if position % 2 else region
                for position, region in enumerate(record.regions)
            ),
        )
        for record in plain.records
    ]
    plain = dataclasses.replace(plain, records=records)
    asked = dataclasses.replace(plain.sampling, ellipse_masks=True)
    ellipses = dataclasses.replace(plain, sampling=asked)
    num_boxes_alone = 0
    for epoch, index in itertools.product(range(3), range(len(plain))):
        left, right = plain[epoch, index], ellipses[epoch, index]
        for field in dataclasses.fields(RegionSample):
            if field.name not in ("masks", "has_mask"):
                np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name))
        assert right.has_mask.all()
        num_boxes_alone += np.count_nonzero(~left.has_mask)
        for mask, box in zip(right.masks, right.boxes_xyxy / STRIDE, strict=True):
            expected = draw_ellipses(box[None], SIZE // STRIDE)[0]
            np.testing.assert_array_equal(mask, expected)
            assert mask.sum() == pytest.approx(math.pi / 4 * np.prod(box[2:] - box[:2]), rel=0.2)
    assert num_boxes_alone > 10


def test_shapes_leave_room_for_regions() -> None:
    message = "shapes.count: expected less than regions_per_image 3, got 3"
    with pytest.raises(ValueError, match=message):
        RegionSamplingConfig(regions_per_image=3, shapes=ShapeConfig(count=3))


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
            one, two = getattr(left, field.name), getattr(right, field.name)
            assert torch.equal(one, two) if isinstance(one, Tensor) else one == two


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
        np.testing.assert_array_equal(batch.has_embedding[row].numpy(), sample.has_embedding)
    assert batch.names == ("3.png", "1.png") and batch.skipped == () and len(batch) == 2
    assert batch.embeddings is None and not batch.has_embedding.any()
    moved = batch.to(torch.device("meta"))
    values = [getattr(moved, field.name) for field in dataclasses.fields(moved)]
    assert {value.device.type for value in values if isinstance(value, Tensor)} == {"meta"}
    assert moved.names == batch.names


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


def spoil(dataset: RegionDataset, index: int, **changes: Any) -> RegionDataset:
    """The data set with another record in one place, and the rule to skip."""
    records = list(dataset.records)
    records[index] = dataclasses.replace(records[index], **changes)
    return dataclasses.replace(dataset, records=records, on_bad_data="skip")


def test_a_bad_image_is_replaced_named_and_replaced_alike_each_time(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    dataset = spoil(make_dataset(folder), 2, path=tmp_path / "broken.jpg")
    sample = dataset[5, 2]
    assert len(sample.skipped) == 1 and "broken.jpg" in sample.skipped[0]
    assert sample.index != 2 and sample.name == f"{sample.index}.png"
    assert sample.has_mask.any()
    assert_same(dataset[5, 2], sample)
    assert dataset[5, 1].skipped == ()
    assert_same(dataset[5, 1], make_dataset(folder)[5, 1])
    assert {dataset[epoch, 2].index for epoch in range(20)} == {0, 1, 3}
    batch = collate([dataset[5, 1], sample])
    assert batch.skipped == sample.skipped


def test_a_missing_image_may_be_skipped_too(folder: Path, tmp_path: Path) -> None:
    sample = spoil(make_dataset(folder), 0, path=tmp_path / "gone.png")[0, 0]
    assert "gone.png" in sample.skipped[0]


def test_too_many_bad_images_in_a_row_stop(tmp_path: Path) -> None:
    records = [record_of(tmp_path / f"{index}.png") for index in range(3)]
    texts = TextTable((), np.array([]))
    dataset = RegionDataset(records, texts, SIZE, on_bad_data="skip")
    message = rf"images: {MAX_BAD_IMAGES} in a row cannot be used, the last .*\d\.png"
    with pytest.raises(ValueError, match=message):
        dataset[0, 0]


BAD_MASKS = [
    ({"size": [47, 61], "counts": [47 * 61]}, "at least one pixel, got an empty one"),
    ({"size": [5, 7], "counts": [0, 35]}, r"image's size \(47, 61\) .*, got \(5, 7\)"),
    ({"size": [47, 61], "counts": [3, 4]}, "7"),
    ({"size": [47, 61], "counts": 3}, "counts"),
]


@pytest.mark.parametrize("rle, message", BAD_MASKS)
def test_a_region_with_a_bad_mask_is_left_out_or_stops(
    folder: Path, rle: dict[str, Any], message: str
) -> None:
    dataset = make_dataset(folder, augment=FIXED)
    good = next(region for region in dataset.records[0].regions if region.rle)
    bad = dataclasses.replace(good, rle=rle, region_id=77, text_index=0)
    changed = spoil(dataset, 0, regions=(good, bad))
    sample = changed[0, 0]
    num_bad = len(sample.skipped)
    assert 0 < num_bad < PER_IMAGE
    assert all(re.search(rf"0\.png: region 77: .*{message}", line) for line in sample.skipped)
    assert sample.has_mask.sum() == PER_IMAGE - num_bad
    assert (sample.text_index[~sample.has_mask] == -1).all()
    with pytest.raises(ValueError, match=f"region 77: .*{message}"):
        dataclasses.replace(changed, on_bad_data="stop")[0, 0]


def test_what_a_record_lacks_is_passed_on_or_stops(folder: Path) -> None:
    changed = spoil(make_dataset(folder), 1, skipped=("1.png: region 3: the box is outside",))
    assert changed[0, 1].skipped == ("1.png: region 3: the box is outside",)
    with pytest.raises(ValueError, match="region 3: the box is outside"):
        dataclasses.replace(changed, on_bad_data="stop")[0, 1]


# --- images in memory ----------------------------------------------------------------------------


def test_an_encoded_image_equals_its_file(folder: Path) -> None:
    dataset = make_dataset(folder)
    record = dataset.records[1]
    inside = dataclasses.replace(
        record, path=Path("shard.tar/1.png"), encoded=record.path.read_bytes()
    )
    np.testing.assert_array_equal(read_image(inside), read_image(record))


def test_an_encoded_image_is_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.png", exif=exif)
    record = record_of(tmp_path / "turned.png", 7, 5)
    encoded = dataclasses.replace(record, encoded=record.path.read_bytes())
    np.testing.assert_array_equal(read_image(encoded), read_image(record))


@pytest.mark.parametrize("kept", [0, 9, 150])
def test_an_encoded_image_cut_short_is_named(folder: Path, kept: int) -> None:
    record = make_dataset(folder).records[1]
    cut = dataclasses.replace(
        record, path=Path("a.tar/1.png"), encoded=record.path.read_bytes()[:kept]
    )
    with pytest.raises(ValueError, match=r"a\.tar/1\.png"):
        read_image(cut)


# --- embeddings ----------------------------------------------------------------------------------


class Vectors:
    """A store of [id, 2 id, 3 id] for the ids it was made with."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def read(self, ids: Sequence[int]) -> np.ndarray:
        if not set(ids) <= set(self.ids):
            raise KeyError(f"{set(ids) - set(self.ids)} not stored")
        return np.outer(ids, [1, 2, 3]).astype(np.float16)


def numbered(folder: Path, *ids: int | None, **options: Any) -> RegionDataset:
    """Regions of the first image that carry these ids."""
    dataset = make_dataset(folder, augment=FIXED, embedding_dim=3, **options)
    region = dataclasses.replace(dataset.records[0].regions[1])
    regions = tuple(dataclasses.replace(region, region_id=one) for one in ids)
    record = dataclasses.replace(dataset.records[0], regions=regions)
    return dataclasses.replace(dataset, records=[record])


def test_samples_carry_the_vectors_of_their_regions(folder: Path) -> None:
    sample = numbered(folder, 7, 11, None, embeddings=Vectors(7, 11))[0, 0]
    assert sample.embeddings is not None and sample.embeddings.dtype == np.float32
    assert sample.embeddings.shape == (PER_IMAGE, 3)
    assert 0 < sample.has_embedding.sum() < PER_IMAGE
    for vector, is_there in zip(sample.embeddings, sample.has_embedding, strict=True):
        expected = [[7, 14, 21], [11, 22, 33]] if is_there else [[0, 0, 0]]
        assert vector.tolist() in expected
    batch = collate([sample, sample])
    assert batch.embeddings is not None and batch.embeddings.shape == (2, PER_IMAGE, 3)
    assert torch.equal(batch.has_embedding[1], torch.from_numpy(sample.has_embedding))


def test_a_missing_vector_is_left_out_or_stops(folder: Path) -> None:
    dataset = numbered(folder, 7, 11, embeddings=Vectors(11), on_bad_data="skip")
    sample = dataset[0, 0]
    assert len(sample.skipped) == 1
    assert re.search(r"0\.png: region 7: no embedding is stored", sample.skipped[0])
    assert sample.embeddings is not None
    found = sample.embeddings[sample.has_embedding]
    assert 0 < len(found) < PER_IMAGE and (found == [11, 22, 33]).all()
    with pytest.raises(ValueError, match="region 7: no embedding is stored"):
        dataclasses.replace(dataset, on_bad_data="stop")[0, 0]


# --- settings ------------------------------------------------------------------------------------


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
