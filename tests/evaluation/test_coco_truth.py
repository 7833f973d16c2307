"""Annotation and detection files: what is read, and what is refused with which words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.data.photos import draw_shape, write_json
from tests.evaluation.tiny_truth import EMPTY_PHOTO, edit, write_truth
from tokenize_anything.evaluation.coco_truth import (
    load_photo,
    photo_path,
    prompt_boxes,
    read_detections,
    read_truth,
    truth_items,
    truth_mask,
)
from tokenize_anything.geometry import encode_rle


def test_photos_without_regions_and_crowds_are_there(tmp_path):
    truth = read_truth(write_truth(tmp_path))
    assert list(truth.by_image) == [10, 11, 12, 13, 14]
    assert truth.by_image[10 + EMPTY_PHOTO] == []
    assert [len(truth.regions(10, with_crowds=flag)) for flag in (True, False)] == [3, 2]
    assert truth.sizes_hw[11] == (53, 43)
    assert truth.category_names == {1: "ball", 2: "brick", 3: "kite"}
    assert not truth.is_lvis
    assert read_truth(write_truth(tmp_path / "lvis", is_lvis=True)).is_lvis


MASK = draw_shape("kite", 41, 53, (20, 18))
RUNS = [0, 2 * 41, 41 * 51]


@pytest.mark.parametrize(
    ("segmentation", "wanted"),
    [
        (encode_rle(MASK), MASK),
        ({"size": [41, 53], "counts": encode_rle(MASK)["counts"].encode()}, MASK),
        ({"size": [41, 53], "counts": RUNS}, np.broadcast_to(np.arange(53) < 2, (41, 53))),
    ],
)
def test_every_kind_of_code_is_decoded(segmentation, wanted):
    np.testing.assert_array_equal(truth_mask(segmentation, 41, 53), wanted)


def test_polygons_are_filled_and_joined():
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    squares = [[2, 3, 7, 3, 7, 9, 2, 9], [20, 10, 30, 10, 30, 14, 20, 14]]
    wanted = np.zeros((17, 41), bool)
    wanted[3:9, 2:7] = wanted[10:14, 20:30] = True
    np.testing.assert_array_equal(truth_mask(squares, 17, 41), wanted)


def test_a_mask_of_another_size_is_refused():
    message = r"segmentation: expected .* height 41 and width 50, got \[41, 53\]"
    with pytest.raises(ValueError, match=message):
        truth_mask(encode_rle(MASK), 41, 50)


def test_lvis_photos_lie_in_two_folders(tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "5.jpg").touch()
    image = {"id": 5, "coco_url": "http://images.cocodataset.org/train2017/5.jpg"}
    assert photo_path(image, tmp_path) == tmp_path / "train2017" / "5.jpg"
    assert photo_path(image, tmp_path / "train2017") == tmp_path / "train2017" / "5.jpg"
    assert photo_path({"id": 5, "file_name": "a/5.jpg"}, tmp_path) == tmp_path / "a" / "5.jpg"
    with pytest.raises(ValueError, match="image 5 has neither file_name nor coco_url"):
        photo_path({"id": 5}, tmp_path)


def test_items_without_content_need_no_photo(tmp_path):
    truth = read_truth(write_truth(tmp_path))
    items = truth_items(truth, tmp_path / "images", {11: "boxes"})
    assert [item.key for item in items] == [10, 11, 12, 13, 14]
    assert [item.content for item in items] == [None, "boxes", None, None, None]
    assert [item.paths for item in items if item.paths] == [(tmp_path / "images" / "1.png",)]


def test_a_photo_of_another_size_is_refused(tmp_path):
    write_truth(tmp_path)
    path = tmp_path / "images" / "1.png"
    assert load_photo(path, (53, 43)).shape == (53, 43, 3)
    message = (
        r"images: .*1\.png has height and width \(53, 43\), its annotations are for \(43, 53\)"
    )
    with pytest.raises(ValueError, match=message):
        load_photo(path, (43, 53))


def drop(content, key):
    content["annotations"][1].pop(key)


BAD_FILES = {
    "empty split": (lambda c: c.update(annotations=[]), r"is an empty split: no region"),
    "no size": (lambda c: c["images"][1].pop("height"), r"image 1: .*\['height'\] missing"),
    "no box": (lambda c: drop(c, "bbox"), r"annotation 1: .*\['bbox'\] missing"),
    "no id": (lambda c: drop(c, "id"), r"annotation 1: .*\['id'\] missing"),
    "other photo": (
        lambda c: c["annotations"][1].update(image_id=99),
        r"annotation 1 is of image 99, which is not among the 5 images",
    ),
    "other category": (
        lambda c: c["annotations"][1].update(category_id=9),
        r"annotation 1 is of category 9, which the file does not list",
    ),
    "half a box": (
        lambda c: c["annotations"][1].update(bbox=[1, 2]),
        r"annotation 1: expected bbox as 4 finite numbers x, y, w, h, got \[1, 2\]",
    ),
    "no lists": (lambda c: c.pop("images"), r"lacks the lists \['images'\]"),
}


@pytest.mark.parametrize(("change", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_annotation_files_are_refused(tmp_path, change, message):
    path = edit(write_truth(tmp_path), change)
    with pytest.raises(ValueError, match=r"annotations: .*" + message):
        read_truth(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations: no file at .*gone\.json"):
        read_truth(tmp_path / "gone.json")


# --- boxes and detections -------------------------------------------------------------------------


def test_boxes_become_prompts_with_area_that_touch_the_photo():
    boxes = [[2, 3, 5, 7], [10, 4, 0, 0], [39.5, 10, 0, 3], [-3, -2, 6, 6], [40, 16.5, 0, 0]]
    wanted = [[2, 3, 7, 10], [10, 4, 11, 5], [39, 10, 40, 13], [-3, -2, 3, 4], [39, 16, 40, 17]]
    found = prompt_boxes(boxes, 17, 40, where="")
    np.testing.assert_allclose(found[[0, 1, 3, 4]], np.array(wanted, float)[[0, 1, 3, 4]])
    assert (found[:, 2:] > found[:, :2]).all()
    assert prompt_boxes([], 17, 40, where="").shape == (0, 4)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([41.5, 3, 5, 7], r"here: expected boxes on a photo of width 40 and height 17, got \[41.5"),
        ([3, -9, 5, 7], "another data set, or to photos of another size"),
        ([3, np.nan, 5, 7], "here: expected finite numbers in bbox"),
    ],
)
def test_boxes_elsewhere_are_refused(box, message):
    with pytest.raises(ValueError, match=message):
        prompt_boxes([box], 17, 40, where="here")


def detection(**changes):
    return {"image_id": 11, "category_id": 2, "bbox": [1.5, 2, 3, 4], "score": 0.5} | changes


def test_detections_are_grouped_in_their_order(tmp_path):
    truth = read_truth(write_truth(tmp_path))
    entries = [detection(score=0.1), detection(image_id=13), detection(category_id=3)]
    found = read_detections(write_json(tmp_path / "found.json", entries), truth)
    assert list(found) == [11, 13]
    assert found[11].category_ids == [2, 3] and found[11].scores.tolist() == [0.1, 0.5]
    assert found[13].boxes_xywh.tolist() == [[1.5, 2, 3, 4]]


BAD_DETECTIONS = {
    "another data set": (
        [detection(), detection(image_id=99), detection(image_id=98)],
        r"2 of 3 detections are of photos that truth\.json does not have, .* \[98, 99\]",
    ),
    "other categories": (
        [detection(category_id=90)],
        r"1 of 1 detections are of categories .* category_id \[90\]; give the detections of this",
    ),
    "no score": (
        [{"image_id": 11, "category_id": 2, "bbox": [0, 0, 1, 1]}],
        r"\['score'\] missing",
    ),
    "half a box": ([detection(bbox=[1, 2])], r"expected bbox as 4 finite numbers"),
    "no number": ([detection(score=float("nan"))], r"expected finite scores"),
    "nothing": ([], r"holds no detection"),
    "annotations": ({"images": []}, r"holds a dict; expected a list of results with image_id"),
}


@pytest.mark.parametrize(("content", "message"), BAD_DETECTIONS.values(), ids=BAD_DETECTIONS)
def test_bad_detections_are_refused(tmp_path, content, message):
    truth = read_truth(write_truth(tmp_path))
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"detections: .*found\.json.*" + message):
        read_detections(path, truth)


def test_detections_that_are_no_file_or_no_json(tmp_path):
    truth = read_truth(write_truth(tmp_path))
    with pytest.raises(FileNotFoundError, match="detections: no file at"):
        read_detections(tmp_path / "gone.json", truth)
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(ValueError, match=r"detections: .*bad\.json is not JSON"):
        read_detections(tmp_path / "bad.json", truth)
