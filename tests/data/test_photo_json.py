"""Photos with a JSON each: what is read, what is left out and named, what stops."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tokenize_anything.data.photo_json import PhotoFolder, pair_names, parse_record
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.geometry import encode_rle

HEIGHT, WIDTH = 11, 17
RLE = encode_rle(np.eye(HEIGHT, WIDTH, dtype=bool))
SA1B_REGION = {
    "id": 41, "bbox": [1.0, 2.0, 5.0, 7.0], "area": 11, "segmentation": RLE,
    "predicted_iou": 0.9, "point_coords": [[3.0, 4.0]], "crop_box": [0, 0, 17, 11],
    "stability_score": 0.97,
}  # fmt: skip


def document(*regions: Any) -> bytes:
    image = {"image_id": 3, "width": WIDTH, "height": HEIGHT, "file_name": "sa_3.jpg"}
    return json.dumps({"image": image, "annotations": regions}).encode()


def write_photo(folder: Path, name: str, *regions: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).with_suffix(".json").write_bytes(document(*regions))
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert cv2.imwrite(str(folder / name), pixels)


# --- one record -----------------------------------------------------------------------------------


def test_a_region_of_sa1b_is_read() -> None:
    record = parse_record(document(SA1B_REGION), Path("sa_3.jpg"))
    assert (record.path, record.height, record.width) == (Path("sa_3.jpg"), HEIGHT, WIDTH)
    (region,) = record.regions
    assert region.box_xyxy == (1.0, 2.0, 6.0, 9.0)
    assert region.rle == RLE and region.region_id == 41
    assert (region.text_index, region.captions, region.is_whole_image) == (-1, (), False)
    assert record.encoded is None and record.skipped == ()


def test_texts_are_read_where_there_are_some() -> None:
    words = {"text_index": 5, "captions": ["a mug"], "is_whole_image": True, "segmentation": None}
    (region,) = parse_record(document({**SA1B_REGION, **words}), Path("a.jpg")).regions
    assert (region.text_index, region.captions, region.is_whole_image) == (5, ("a mug",), True)
    assert region.rle is None


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"bbox": [20.0, 2.0, 5.0, 5.0]},
            r"region 41: the box .* lies outside the image of \(17, 11\)",
        ),
        ({"bbox": [1.0, -9.0, 5.0, 5.0]}, "region 41: the box .* lies outside the image"),
        ({"bbox": [1.0, 2.0, 5.0]}, "region 41: expected bbox as 4 finite numbers"),
        ({"bbox": [1.0, 2.0, 5.0, float("nan")]}, "expected bbox as 4 finite numbers"),
        ({"bbox": None}, "expected bbox as 4 finite numbers x, y, w, h, got None"),
        ({"bbox": [1.0, 2.0, 1.0, 5.0]}, "expected a box of at least 2 pixels a side"),
        ({"segmentation": [[1, 2, 3, 4]]}, "expected a run-length mask, got a list"),
        ({"id": None, "bbox": 3}, "region at position 1: expected bbox"),
    ],
)
def test_a_region_that_cannot_be_used_is_named_and_left_out(
    change: dict[str, Any], message: str
) -> None:
    record = parse_record(document(SA1B_REGION, {**SA1B_REGION, **change}), Path("x/sa_3.jpg"))
    assert len(record.regions) == 1
    (line,) = record.skipped
    assert line.startswith("x/sa_3.jpg: region ")
    assert re.search(message, line)


def test_a_region_that_is_no_mapping_is_named() -> None:
    record = parse_record(document(3, SA1B_REGION), Path("a.jpg"))
    assert record.skipped == ("a.jpg: region at position 0: expected keys and values, got 3",)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b'{"image": {"width": 3}}', b'{"image": {"width": 3, "height": 4}}',
     b'{"image": {"width": "x", "height": 4}, "annotations": []}', b"\xff\xfe"],
)  # fmt: skip
def test_other_json_is_refused_with_its_image(content: bytes) -> None:
    with pytest.raises(
        ValueError, match=r"y/sa_9\.jpg: expected JSON with image \(width, height\)"
    ):
        parse_record(content, Path("y/sa_9.jpg"))


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_and_those_in_it_are_read_lazily(tmp_path: Path) -> None:
    write_photo(tmp_path / "b", "sa_2.png", SA1B_REGION)
    write_photo(tmp_path, "sa_9.jpg")
    write_photo(tmp_path / "a", "sa_5.jpg", SA1B_REGION, SA1B_REGION)
    records = PhotoFolder(tmp_path)
    assert len(records) == 3 and records.problems == []
    assert [record.path.name for record in records] == ["sa_5.jpg", "sa_2.png", "sa_9.jpg"]
    assert [len(record.regions) for record in records] == [2, 1, 0]
    assert [record.path.name for record in records[1:]] == ["sa_2.png", "sa_9.jpg"]
    assert records[-1].path.name == "sa_9.jpg"
    assert read_image(records[0]).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(IndexError):
        records[3]
    (tmp_path / "sa_9.json").write_text("[")
    with pytest.raises(ValueError, match=r"sa_9\.jpg"):
        records[2]


def test_files_without_their_other_half_are_named(tmp_path: Path) -> None:
    write_photo(tmp_path, "sa_1.jpg", SA1B_REGION)
    (tmp_path / "alone.jpg").write_bytes(b"")
    (tmp_path / "widow.json").write_bytes(b"")
    (tmp_path / "readme.txt").write_bytes(b"")
    records = PhotoFolder(tmp_path)
    assert len(records) == 1
    assert [line.removeprefix(f"{tmp_path}/") for line in records.problems] == [
        "alone.jpg: no JSON beside the image",
        "widow.json: no image beside the JSON",
    ]


def test_names_are_paired_by_their_stem() -> None:
    names = ["c.jpg", "a.png", "c.json", "a.json", "d.e.JPG", "d.e.json", "notes.md"]
    assert pair_names(names) == (["a.png", "c.jpg", "d.e.JPG"], [])


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected photos with a JSON file beside each in"):
        PhotoFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"photo_folder: no folder at .*nowhere"):
        PhotoFolder(tmp_path / "nowhere")
