"""Opening the three kinds of places photos are in, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from tests.data.photos import SHAPES, write_photos
from tests.data.test_photo_json import SA1B_REGION, write_photo
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.shards import write_shards
from tokenize_anything.training.config import DataConfig
from tokenize_anything.training.training_data import check_region_ids, open_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    write_photos(root, count=3)
    return root


def test_coco_files_are_opened(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(
        annotation_files=(str(folder / "photos.json"),), image_folder=str(folder / "images")
    )
    data = open_data(config, tmp_path / "index")
    assert len(data.records) == 3 and data.texts.texts
    assert (data.names, data.shard_sizes, data.problems) == ((), (), ())
    assert not (tmp_path / "index").exists()


def test_shards_are_opened_with_their_texts(folder: Path, tmp_path: Path) -> None:
    records, texts = read_regions([folder / "photos.json"], folder / "images")
    write_shards(records, texts, tmp_path / "tars", names=SHAPES, images_per_shard=2)
    data = open_data(DataConfig(shards=(str(tmp_path / "tars" / "*.tar"),)), tmp_path / "index")
    assert data.shard_sizes == (2, 1) and len(data.records) == 3
    assert data.texts.texts == texts.texts and data.names == SHAPES
    assert [record.regions for record in data.records] == [r.regions for r in records]
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_a_folder_of_photos_is_opened(tmp_path: Path) -> None:
    write_photo(tmp_path / "photos", "sa_1.jpg", SA1B_REGION)
    data = open_data(DataConfig(photo_folder=str(tmp_path / "photos")), tmp_path)
    assert [record.path.name for record in data.records] == ["sa_1.jpg"]
    assert data.texts.texts == ()


def test_what_cannot_be_used_stops_or_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photo(tmp_path / "photos", "sa_1.jpg", SA1B_REGION)
    for name in ("sa_2.jpg", "sa_3.json"):
        (tmp_path / "photos" / name).write_bytes(b"")
    config = DataConfig(photo_folder=str(tmp_path / "photos"))
    message = r"data: 2 files cannot be used, the first: .*sa_2\.jpg: no JSON .*on_bad_data to skip"
    with pytest.raises(ValueError, match=message):
        open_data(config, tmp_path)
    with caplog.at_level(logging.WARNING):
        data = open_data(dataclasses.replace(config, on_bad_data="skip"), tmp_path)
    assert len(data.problems) == 2 and len(data.records) == 1
    assert "sa_3.json: no image beside the JSON (one of 2)" in caplog.text


@pytest.mark.parametrize(
    "places, message",
    [
        ({}, "expected one of .* got none"),
        ({"photo_folder": "a", "shards": ("b",)}, r"got \['photo_folder', 'shards'\]"),
        ({"annotation_files": ("a",), "photo_folder": "b"}, "got .*annotation_files.*photo_folder"),
    ],
)
def test_photos_are_in_one_place(places: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"data: .*{message}"):
        DataConfig(**places)  # type: ignore[arg-type]


def test_two_files_that_number_alike_are_refused(folder: Path) -> None:
    records, _ = read_regions([folder / "photos.json"], folder / "images")
    check_region_ids(records, ["photos.json"])
    with pytest.raises(ValueError, match=r"9 ids stand for more than one region in .*\[1, 2, 3\]"):
        check_region_ids([*records, *records], ["photos.json", "again.json"])
