"""Data sets as published: which photos there are, what they are called, what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.photos import annotate, coco, draw_shape, write_json
from tests.semantic_sa1b.tiny_sa1b import (
    make_document,
    make_masks,
    photo_bytes,
    write_folder,
    write_tar,
)
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.sa1b import AnnotatedPhotos, open_photos
from tokenize_anything.geometry import decode_rle, encode_rle

HEIGHT, WIDTH = 43, 59


def open_here(data: Path, **more: Any) -> AnnotatedPhotos:
    return open_photos(data, index_folder=data.parent / "index", **more)


# --- SA-1B --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "folders", "tar", "tars"])
def test_all_layouts_hold_the_same_photos(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    if kind == "folder":
        write_folder(data, range(5))
        names = [f"sa_{number}.jpg" for number in range(5)]
    elif kind == "folders":
        write_folder(data / "sa_000000", range(2))
        write_folder(data / "sa_000001", range(2, 5))
        names = [f"sa_00000{int(number > 1)}/sa_{number}.jpg" for number in range(5)]
    elif kind == "tar":
        data = write_tar(tmp_path / "sa_000000.tar", range(5))
        names = [f"sa_000000.tar/sa_{number}.jpg" for number in range(5)]
    else:
        write_tar(data / "more" / "sa_000000.tar", range(2))
        write_tar(data / "more" / "sa_000001.tar", range(2, 5))
        names = [f"more/sa_00000{int(number > 1)}.tar/sa_{number}.jpg" for number in range(5)]
    photos = open_here(data)
    assert (list(photos.names), photos.problems) == (names, ())
    for number in range(5):
        record = photos.records[number]
        assert (str(record.path).endswith(f"sa_{number}.jpg"), record.skipped) == (True, ())
        expected = [annotation["id"] for annotation in make_document(number)["annotations"]]
        assert [region.region_id for region in record.regions] == expected
        for region, mask in zip(record.regions, make_masks(number), strict=True):
            assert region.rle is not None
            np.testing.assert_array_equal(decode_rle(region.rle), mask)
        assert read_image(record).shape == (record.height, record.width, 3)


def test_what_lacks_its_partner_is_named(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", range(2))
    (data / "sa_7.jpg").write_bytes(photo_bytes(7))
    (data / "sa_8.json").write_text("{}")
    photos = open_here(data)
    assert list(photos.names) == ["sa_0.jpg", "sa_1.jpg"]
    assert [Path(line.split(":")[0]).name for line in photos.problems] == ["sa_7.jpg", "sa_8.json"]


def test_places_without_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data: nothing at .*none; expected a folder, .tar"
    ):
        open_here(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected photos with a JSON file beside each"):
        open_here(tmp_path / "empty")
    (tmp_path / "text.tar").write_text("no tar at all")
    with pytest.raises(ValueError, match=r"text.tar cannot be read .*expected an uncompressed tar"):
        open_here(tmp_path / "text.tar")
    write_tar(tmp_path / "both" / "sa_000000.tar", range(2))
    write_folder(tmp_path / "both", range(2))
    with pytest.raises(ValueError, match=r"both holds tars and photos beside them \(sa_"):
        open_here(tmp_path / "both")
    with pytest.raises(ValueError, match="is no COCO JSON, its photos lie beside"):
        open_here(tmp_path / "both", images=tmp_path)


# --- COCO ---------------------------------------------------------------------------------------

MASK = draw_shape("ball", HEIGHT, WIDTH, (20, 15))
OTHER = draw_shape("kite", HEIGHT, WIDTH, (40, 25))


def image(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH} | changes


def region(number: int, image_id: int, mask: np.ndarray = MASK, **changes: Any) -> dict[str, Any]:
    return annotate(mask, number, image_id, category_id=1) | changes


def open_coco(
    tmp_path: Path, images: list[Any], annotations: list[Any], **more: Any
) -> AnnotatedPhotos:
    file = write_json(tmp_path / "coco.json", coco(images, annotations) | more)
    return open_here(file, images=tmp_path / "photos")


def test_coco_regions_keep_their_ids_and_masks(tmp_path: Path) -> None:
    annotations = [region(70, 2), region(5, 1, OTHER), region(6, 2, OTHER)]
    photos = open_coco(tmp_path, [image(2), image(1), image(3)], annotations)
    assert list(photos.names) == ["1.png", "2.png"]  # the third has no region
    first, second = photos.records[:]
    assert (first.path, first.height, first.width) == (tmp_path / "photos" / "1.png", 43, 59)
    assert [r.region_id for r in (*first.regions, *second.regions)] == [5, 70, 6]
    assert second.regions[1].rle == encode_rle(OTHER)
    assert (first.skipped, second.skipped, photos.problems) == ((), (), ())


def test_a_region_needs_no_category(tmp_path: Path) -> None:
    """Its embedding does not depend on one; training takes such regions too."""
    without = region(5, 1)
    del without["category_id"]
    annotations = [without, region(6, 1, category_id=None), region(7, 1)]
    (record,) = open_coco(tmp_path, [image(1)], annotations).records
    assert [r.region_id for r in record.regions] == [5, 6, 7]
    assert record.skipped == ()


def test_polygons_become_masks(tmp_path: Path) -> None:
    square = [10, 5, 20, 5, 20, 12, 10, 12]
    triangle = [30, 30, 40, 30, 30, 40]
    annotations = [region(5, 1, segmentation=[square, triangle], bbox=[10, 5, 30, 35])]
    (record,) = open_coco(tmp_path, [image(1)], annotations).records
    assert record.regions[0].rle is not None
    mask = decode_rle(record.regions[0].rle)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:12, 10:20] = True
    for row in range(30, 40):
        for column in range(30, 40):
            expected[row, column] = (row - 29.5) + (column - 29.5) < 10
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"iscrowd": 1}, "1.png: region 5: a crowd, not one region"),
        ({"category_id": 9}, "1.png: region 5: category 9, which the file does not list"),
        ({"segmentation": [[1, 2, 3]]}, "1.png: region 5: polygon: expected at least 3 corners"),
        (
            {"bbox": [99, 2, 3, 4]},
            "region 5: the box [99, 2, 3, 4] lies outside the image of (59, 43",
        ),
        ({"bbox": None}, "region 5: expected bbox as 4 finite numbers"),
    ],
)
def test_a_bad_annotation_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    annotations = [region(5, 1, **changes), region(6, 1)]
    (record,) = open_coco(tmp_path, [image(1)], annotations).records
    assert [r.region_id for r in record.regions] == [6]
    (line,) = record.skipped
    assert message in line


@pytest.mark.parametrize(
    "images, annotations, message",
    [
        (
            [image(1), image(1, file_name="b.png")],
            [region(5, 1)],
            "image with its own id and file_",
        ),
        (
            [image(1), image(2, file_name="1.png")],
            [region(5, 1)],
            "image with its own id and file_",
        ),
        ([image(1), {"id": 2}], [region(5, 1)], "image with its own id and file_name: {'id': 2"),
        ([image(1), image(1, id=[3])], [region(5, 1)], "image with its own id and file_name"),
        ([image(1)], [region(5, 1), region(6, 9)], "annotation of no image of the file: {'id': 6"),
        ([image(1)], [region(5, 1), "text"], "annotation of no image of the file: 'text'"),
        ([image(1)], [region(5, 1), region(6, 1) | {"image_id": [1]}], "annotation of no image"),
    ],
)
def test_bad_entries_are_named(
    tmp_path: Path, images: list[Any], annotations: list[Any], message: str
) -> None:
    photos = open_coco(tmp_path, images, annotations)
    assert list(photos.names) == ["1.png"]
    (line,) = photos.problems
    assert message in line


def test_unusable_coco_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="category 1 has no name; expected text, got ''"):
        open_coco(tmp_path, [image(1)], [region(5, 1)], categories=[{"id": 1, "name": ""}])
    with pytest.raises(FileNotFoundError, match=r"coco.json has no image with annotations"):
        open_coco(tmp_path, [image(1)], [])
    with pytest.raises(ValueError, match="images: expected the folder of the photos of"):
        open_here(tmp_path / "coco.json")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="lacks the lists"):
        open_here(tmp_path / "list.json", images=tmp_path)


def test_an_image_without_size_is_refused_when_read(tmp_path: Path) -> None:
    photos = open_coco(tmp_path, [image(1, height=None)], [region(5, 1)])
    with pytest.raises(ValueError, match=r"1.png: expected JSON with image \(width, height\)"):
        photos.records[0]
