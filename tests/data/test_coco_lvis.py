"""COCO reader: what becomes a region, what is left out, what is refused and how it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.photos import SHAPES, annotate, coco, write_json, write_photos
from tokenize_anything.data.coco_lvis import category_names, read_coco_json, read_regions
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable
from tokenize_anything.geometry import decode_rle

PHOTO = {"id": 7, "file_name": "photo.jpg", "height": 11, "width": 17}
MASK = np.zeros((11, 17), bool)
MASK[2:7, 3:13] = True


def read(
    tmp_path: Path, annotations: list[Any], images: list[Any] | None = None
) -> tuple[tuple[RegionAnnotation, ...], TextTable]:
    """Regions of the one photo, and the texts."""
    content = coco([PHOTO] if images is None else images, annotations)
    records, texts = read_regions([write_json(tmp_path / "a.json", content)], tmp_path / "photos")
    assert [record.path for record in records] == [tmp_path / "photos" / "photo.jpg"]
    return records[0].regions, texts


def annotation(number: int = 5, **more: Any) -> dict[str, Any]:
    return annotate(MASK, number, 7) | {"category_id": 2} | more


def test_an_annotation_becomes_a_region(tmp_path: Path) -> None:
    (region,), texts = read(tmp_path, [annotation()])
    assert region.box_xyxy == (3.0, 2.0, 13.0, 7.0)
    assert region.rle is not None
    np.testing.assert_array_equal(decode_rle(region.rle), MASK)
    assert (texts.texts, texts.counts.tolist()) == ((SHAPES[1],), [1])
    assert (region.text_index, region.captions, region.is_whole_image) == (0, (), False)


def test_a_record_knows_the_size_of_its_image(tmp_path: Path) -> None:
    file = write_json(tmp_path / "a.json", coco([PHOTO], [annotation()]))
    (record,), _ = read_regions([file], "photos")
    assert (record.height, record.width) == (11, 17)


@pytest.mark.parametrize(
    "changes, num_kept",
    [
        ({}, 1),
        ({"iscrowd": 1}, 0),
        ({"bbox": [3, 2, 1.9, 5]}, 0),
        ({"bbox": [3, 2, 10, 1.9]}, 0),
        ({"bbox": [3, 2, 2.0, 2.0]}, 1),
        ({"segmentation": {"size": [11, 17], "counts": [187]}}, 0),  # an empty mask
        ({"segmentation": {"size": [11, 17], "counts": [5, 6, 176]}}, 1),
        ({"segmentation": None}, 1),
        ({"segmentation": []}, 1),
        ({"category_id": None}, 1),
    ],
)
def test_crowds_tiny_boxes_and_empty_masks_are_left_out(
    tmp_path: Path, changes: dict[str, Any], num_kept: int
) -> None:
    other = annotation(6, category_id=3)
    regions, texts = read(tmp_path, [annotation(5, **changes), other])
    assert len(regions) == 1 + num_kept
    is_named = num_kept and changes.get("category_id", 2)
    assert texts.texts == ((SHAPES[1], SHAPES[2]) if is_named else (SHAPES[2],))


def test_what_cannot_be_used_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = {"size": [11, 17], "counts": [11 * 17]}
    regions, _ = read(
        tmp_path,
        [
            annotation(1),
            annotation(2, iscrowd=1),
            annotation(3, segmentation=empty),
            annotation(4, bbox=[3, 4, 1, 5]),
            annotation(5, bbox=[17, 4, 5, 5]),
            annotation(6, bbox=[3, -5, 5, 5]),
            annotation(7, bbox=[-3, -5, 5, 7]),
        ],
    )
    assert [region.region_id for region in regions] == [1, 7]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("left out 4 regions that cannot be used, the first: ")
    for words in (
        "3: its mask is empty",
        "4: its box is under 2 pixels",
        "5: its box lies outside",
    ):
        assert f"annotation {words}" in line


def test_a_region_without_mask_keeps_its_box(tmp_path: Path) -> None:
    (region,), _ = read(tmp_path, [annotation(segmentation=None, bbox=[1.5, 2.25, 4, 5])])
    assert region.rle is None
    assert region.box_xyxy == (1.5, 2.25, 5.5, 7.25)


def test_the_text_is_the_name_else_the_first_caption(tmp_path: Path) -> None:
    captions = ["first caption", "second caption"]
    regions, texts = read(
        tmp_path,
        [
            annotation(1, captions=captions),
            annotation(2, category_id=None, captions=captions),
            annotation(3, category_id=None, captions=["  ", "first caption"]),
            annotation(4, category_id=None),
            annotation(5),
        ],
    )
    assert texts.texts == (SHAPES[1], "first caption")
    assert [region.text_index for region in regions] == [0, 1, 1, -1, 0]
    assert texts.counts.tolist() == [2, 2]
    assert [len(region.captions) for region in regions] == [2, 2, 1, 0, 0]


def test_polygons_become_a_mask(tmp_path: Path) -> None:
    parts = [[3, 2, 13, 2, 13, 7, 3, 7], [14.4, 8, 16.6, 8, 16.6, 10, 14.4, 10]]
    (region,), _ = read(tmp_path, [annotation(segmentation=parts)])
    expected = MASK.copy()
    expected[8:10, 14:17] = True  # the middles 14.5, 15.5 and 16.5 lie inside
    assert region.rle is not None
    np.testing.assert_array_equal(decode_rle(region.rle), expected)


def test_a_single_caption_counts_as_one(tmp_path: Path) -> None:
    regions, texts = read(
        tmp_path,
        [
            annotation(1, caption="a brick", captions=["red"]),
            annotation(2, category_id=None, caption="a ball"),
        ],
    )
    assert [region.captions for region in regions] == [("red", "a brick"), ("a ball",)]
    assert texts.texts == (SHAPES[1], "a ball")


def test_captions_without_a_box_describe_the_image(tmp_path: Path) -> None:
    """As in COCO's captions_train2017.json."""
    rows = [{"id": n, "image_id": 7, "caption": text} for n, text in enumerate("aba")]
    regions, texts = read(tmp_path, rows)
    assert [region.captions for region in regions] == [("a",), ("b",)]
    assert all(region.is_whole_image and region.rle is None for region in regions)
    assert {region.box_xyxy for region in regions} == {(0.0, 0.0, 17.0, 11.0)}
    assert texts.texts == ("a", "b")


def test_captions_of_an_image_become_whole_image_regions(tmp_path: Path) -> None:
    image = PHOTO | {"captions": ["one view", "another view", "one view", " "]}
    regions, texts = read(tmp_path, [annotation()], [image])
    assert texts.texts == ("one view", "another view", SHAPES[1])
    assert [region.is_whole_image for region in regions] == [True, True, False]
    assert regions[1] == RegionAnnotation(
        (0.0, 0.0, 17.0, 11.0), None, 1, ("another view",), is_whole_image=True
    )


def test_files_are_merged_by_the_names_of_their_images(tmp_path: Path) -> None:
    first = coco([PHOTO], [annotation(1)])
    second = coco(
        [PHOTO | {"id": 3, "captions": ["a view"]}, PHOTO | {"id": 7, "file_name": "other.jpg"}],
        [annotation(1, image_id=3, category_id=1), annotation(2, category_id=1)],
    )
    second["categories"] = [{"id": 1, "name": "brick"}]  # ids are the file's own
    files = [write_json(tmp_path / "a.json", first), write_json(tmp_path / "b.json", second)]
    records, texts = read_regions(files, "photos")
    assert [record.path.name for record in records] == ["photo.jpg", "other.jpg"]
    assert [len(record.regions) for record in records] == [3, 1]
    assert (texts.texts, texts.counts.tolist()) == (("brick", "a view"), [3, 1])


def test_images_without_regions_are_left_out(tmp_path: Path) -> None:
    images = [PHOTO | {"id": 8, "file_name": "empty.jpg"}, PHOTO]
    read(tmp_path, [annotation(), annotation(6, image_id=8, iscrowd=1)], images)


def test_drawn_photos_are_read(tmp_path: Path) -> None:
    records, texts = read_regions([write_photos(tmp_path / "set")], tmp_path / "set" / "images")
    assert [len(record.regions) for record in records] == [4, 3, 4, 3]
    assert all(record.path.is_file() for record in records)
    assert sorted(set(texts.texts) & set(SHAPES)) == sorted(SHAPES)


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", r"a\.json is not JSON"),
        (b"\xff\xfe\x00", r"a\.json is not JSON"),
        (b"[1]", r"a\.json lacks the lists \['images', 'annotations'\]; expected COCO-style JSON"),
        (b"3", r"a\.json lacks the lists"),
        (b'{"images": []}', r"a\.json lacks the lists \['annotations'\]"),
        (b'{"images": {}, "annotations": []}', r"a\.json lacks the lists \['images'\]"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_coco_json(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"annotations: no file at .*nothing\.json"):
        read_regions([tmp_path / "nothing.json"], tmp_path)


BAD_RLE = {"size": [11, 17], "counts": [5, 6]}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_id": 8}, r"a\.json: annotation 5 is of image 8, which is not among the 1 images"),
        ({"image_id": None}, r"annotation 5: expected the keys .*\['image_id'\] missing"),
        ({"bbox": None}, r"annotation 5: expected the keys .*\['bbox'\] missing"),
        ({"bbox": [1, 2, 3]}, r"annotation 5: expected bbox as 4 finite numbers .*got \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 5: expected bbox as 4 finite numbers"),
        ({"bbox": "1234"}, "annotation 5: expected bbox as 4 finite numbers"),
        ({"category_id": 9}, "annotation 5 is of category 9, which the file does not list"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            "annotation 5: segmentation: polygon: expected",
        ),
        ({"segmentation": "1,2"}, "annotation 5: .*code or a list of polygons, got a str"),
        ({"caption": ["a text"]}, "annotation 5: expected caption as a text, got"),
        ({"segmentation": BAD_RLE}, r"annotation 5: rle: expected runs that add up to 11 \* 17"),
        (
            {"segmentation": {"size": [17, 11], "counts": [5, 182]}},
            r"annotation 5: expected a mask of the image's size \(11, 17\) .*got \(17, 11\)",
        ),
        ({"captions": "a text"}, "annotation 5: expected captions as a list of texts"),
        ({"captions": [3]}, "annotation 5: expected captions as a list of texts"),
    ],
)
def test_damaged_annotations_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [annotation(4), annotation(5, **changes)])


def test_an_annotation_without_id_is_named_by_its_position(tmp_path: Path) -> None:
    nameless = {key: value for key, value in annotation(image_id=8).items() if key != "id"}
    with pytest.raises(ValueError, match="annotation at position 1 is of image 8"):
        read(tmp_path, [annotation(), nameless])


@pytest.mark.parametrize("key", ["id", "file_name", "height", "width"])
def test_an_image_without_a_key_is_refused(tmp_path: Path, key: str) -> None:
    image = {name: value for name, value in PHOTO.items() if name != key}
    with pytest.raises(ValueError, match=rf"image: expected the keys .*\['{key}'\] missing"):
        read(tmp_path, [annotation()], [image])


def test_one_image_with_two_sizes_is_refused(tmp_path: Path) -> None:
    images = [PHOTO, PHOTO | {"id": 8, "height": 12}]
    message = r"image 8: photo\.jpg is \(12, 17\) \(height, width\), but \(11, 17\) elsewhere"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [annotation()], images)


@pytest.mark.parametrize(
    "category, message",
    [
        ({"id": 4}, r"category: expected the keys \['id', 'name'\], \['name'\] missing"),
        ({"id": 4, "name": " "}, r"a\.json: category 4 has no name; expected text, got ' '"),
        ({"id": 4, "name": 3}, "category 4 has no name; expected text, got 3"),
        ({"name": "mug"}, r"\['id'\] missing"),
    ],
)
def test_a_category_without_a_name_is_refused(category: dict[str, Any], message: str) -> None:
    content = {"categories": [{"id": 1, "name": "cup"}, category]}
    with pytest.raises(ValueError, match=message):
        category_names(content, "a.json")


def test_a_file_without_categories_names_nothing(tmp_path: Path) -> None:
    assert category_names({}, "a.json") == {}
    content = {"images": [PHOTO], "annotations": [annotation()]}
    (record,), texts = read_regions([write_json(tmp_path / "a.json", content)], "photos")
    assert (texts.texts, record.regions[0].text_index) == ((), -1)


def test_data_without_usable_regions_is_refused(tmp_path: Path) -> None:
    file = write_json(tmp_path / "a.json", coco([PHOTO], [annotation(iscrowd=1)]))
    with pytest.raises(ValueError, match=r"no usable region in \['.*a\.json'\]; expected boxes"):
        read_regions([file], tmp_path)


def test_reading_opens_no_image(tmp_path: Path) -> None:
    file = write_json(tmp_path / "a.json", coco([PHOTO], [annotation()]))
    records, _ = read_regions([file], tmp_path / "no folder")
    assert isinstance(records[0], ImageRecord)
