"""Regions in the formats of others, and back from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.test_regions import FIELDS, HEIGHT, WIDTH, full_values, make
from tokenize_anything.region_exports import (
    export_labels,
    label_studio_config,
    to_label_studio,
)
from tokenize_anything.region_polygons import polygons_to_mask
from tokenize_anything.regions import RegionPredictions

IDS = {"cat": 17, "ant": 90, "dog": 1}
NAMES = {number: name for name, number in IDS.items()}
LOST = ("semantic_tokens", "semantic_embeddings", "mask_tokens", "mask_index", "caption_scores")


def assert_same_but_lost(found: RegionPredictions, wanted: RegionPredictions) -> None:
    for name in FIELDS:
        if name not in LOST:
            expected = getattr(wanted, name)
            if isinstance(expected, list):
                assert getattr(found, name) == expected, name
            else:
                np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)


# --- COCO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_there_and_back(polygons: bool) -> None:
    regions = make(parent_index=[2, -1, 1])
    annotations = regions.to_coco(5, IDS, first_id=40, polygons=polygons)
    assert [one.get("parent_id") for one in annotations] == [42, None, 41]
    kind = list if polygons else dict
    assert all(isinstance(one["segmentation"], kind) for one in annotations)
    again = RegionPredictions.from_coco(json.loads(json.dumps(annotations)), HEIGHT, WIDTH)
    assert_same_but_lost(again, regions)
    none = RegionPredictions.from_coco([], 5, 7)
    assert_same_but_lost(none, RegionPredictions.empty(5, 7))


def test_annotations_of_others() -> None:
    """A category instead of concepts, polygons, captions as a list, no score, no box, no id."""
    annotation: dict[str, Any] = {
        "image_id": 3,
        "category_id": 90,
        "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3], [5, 0, 6, 0, 6, 1, 5, 1]],
        "captions": ["first", "second"],
    }
    crowd = {"id": 8, "category_id": 1, "iscrowd": 1, "parent_id": 99, "bbox": [0, 0, 7, 1]}
    crowd |= {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 1, 34]}}
    regions = RegionPredictions.from_coco([annotation, crowd], HEIGHT, WIDTH, category_names=NAMES)
    np.testing.assert_array_equal(regions.iou_scores, [1, 1])
    assert regions.concepts == [["ant"], ["dog"]]
    np.testing.assert_array_equal(regions.concept_scores, [[1], [1]])
    assert regions.captions == ["first", None]
    np.testing.assert_array_equal(regions.boxes_xyxy, [[1, 0, 6, 3], [0, 0, 7, 1]])
    assert regions.masks.sum(axis=(1, 2)).tolist() == [7, 1]
    assert regions.parent_index.tolist() == [-1, -1]  # 99 is none of these
    unnamed = RegionPredictions.from_coco([annotation], HEIGHT, WIDTH)
    assert unnamed.concepts == [[]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": None}, r"annotation 7: expected a segmentation of run lengths or poly"),
        ({"segmentation": "abc"}, r"annotation 7: expected a segmentation .* got abc"),
        ({"segmentation": [[1, 2]]}, r"annotation 7: polygon: expected at least 3 corners"),
        ({"segmentation": {"size": [2, 3], "counts": [6]}}, r"height and width \(5, 7\), got \(2"),
        ({"segmentation": {"size": [5, 7], "counts": [6]}}, r"annotation 7: rle: expected runs"),
        ({"bbox": [1, 2]}, r"annotation 7: boxes_xywh: expected 4 numbers"),
        ({"category_id": 5}, r"annotation 7: expected a category among category_names, got 5"),
        ({"category_id": None}, r"annotation 7: expected a category .* got None"),
    ],
)
def test_damaged_annotations_are_named(changes: dict[str, Any], message: str) -> None:
    annotation = {"id": 7, "category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1]]} | changes
    with pytest.raises(ValueError, match=message):
        RegionPredictions.from_coco([annotation], HEIGHT, WIDTH, category_names=NAMES)


def test_an_annotation_without_id_is_named_by_its_place() -> None:
    with pytest.raises(ValueError, match=r"annotations: annotation at position 1: expected a seg"):
        good = {"segmentation": [[0, 0, 1, 0, 1, 1]]}
        RegionPredictions.from_coco([good, {}], HEIGHT, WIDTH)


# --- Label Studio -------------------------------------------------------------------------------


def test_label_studio_task() -> None:
    masks = full_values()["masks"].copy()
    masks[0, 4, 0] = True  # a second part
    regions = make(masks=masks, parent_index=[1, -1, -1])
    task = json.loads(json.dumps(to_label_studio(regions, "/data/a.jpg", model_version="tiny")))
    assert task["data"] == {"image": "/data/a.jpg"}
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "tiny"
    polygons = [one for one in prediction["result"] if one["type"] == "polygonlabels"]
    assert [one["id"] for one in polygons] == ["region0", "region0-1", "region1"]
    assert [one["value"]["polygonlabels"] for one in polygons] == [["cat"], ["cat"], ["ant"]]
    assert [one.get("parentID") for one in polygons] == ["region1", "region1", None]
    for one in prediction["result"]:
        assert (one["original_width"], one["original_height"]) == (WIDTH, HEIGHT)
        assert one["to_name"] == "image"
        assert 0 <= np.min(one["value"]["points"]) <= np.max(one["value"]["points"]) <= 100
    corners = [np.array(one["value"]["points"]) * [WIDTH / 100, HEIGHT / 100] for one in polygons]
    found = polygons_to_mask(corners[:2], HEIGHT, WIDTH)
    np.testing.assert_array_equal(found, masks[0])
    texts = [one for one in prediction["result"] if one["type"] == "textarea"]
    assert [(one["id"], one["value"]["text"]) for one in texts] == [("region0", ['a "red" cat'])]
    assert {one["from_name"] for one in texts} == {"caption"}
    empty = to_label_studio(RegionPredictions.empty(5, 7), "b")["predictions"][0]
    assert (empty["result"], empty["score"]) == ([], 0.0)


def test_label_studio_view_has_every_name_of_the_results() -> None:
    view = ElementTree.fromstring(label_studio_config(["cat", 'a "b" & <c>', "cat"]))
    labels = view.find("PolygonLabels")
    assert labels is not None
    assert [label.get("value") for label in labels] == ["cat", 'a "b" & <c>', "region"]
    controls = {child.get("name"): child.tag for child in view}
    assert controls == {"image": "Image", "label": "PolygonLabels", "caption": "TextArea"}
    assert {child.get("toName") for child in view} == {None, "image"}


# --- YOLO and Pascal VOC ------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo one.png"
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(path)
    return path


def large_regions() -> RegionPredictions:
    y, x = np.mgrid[:60, :80]
    masks = np.stack([(x - 30) ** 2 + (y - 25) ** 2 < 15**2, (x > 50) & (y > 20) & (y < 50)])
    return RegionPredictions(
        masks=masks,
        iou_scores=[0.9, 0.8],
        concepts=[["dog"], ["cat"]],
        concept_scores=[[0.5], [0.25]],
    )


@pytest.mark.parametrize("layout", ["yolo", "voc"])
def test_label_files_there_and_back(layout: Any, photo: Path, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    names, out, regions = ["ant", "cat", "dog"], tmp_path / layout, large_regions()
    other = tmp_path / "other.png"
    other.write_bytes(photo.read_bytes())
    export_labels(photo, regions, out, names, layout=layout)
    export_labels(other, regions[[]], out, names, layout=layout)
    images = str(out / "images")
    if layout == "yolo":
        dataset = supervision.DetectionDataset.from_yolo(
            images, str(out / "labels"), str(out / "data.yaml"), force_masks=True
        )
        assert dataset.classes == names
    else:
        dataset = supervision.DetectionDataset.from_pascal_voc(
            images, str(out / "annotations"), force_masks=True
        )
    found = {Path(path).name: detections for path, _, detections in dataset}
    assert set(found) == {photo.name, other.name}
    assert len(found[other.name]) == 0
    detections = found[photo.name]
    assert [dataset.classes[index] for index in detections.class_id] == ["dog", "cat"]
    for mask, expected in zip(detections.mask, regions.masks, strict=True):
        assert (mask & expected).sum() / (mask | expected).sum() > 0.9
    assert (out / "images" / photo.name).read_bytes() == photo.read_bytes()


def test_label_files_of_bad_input(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    regions = large_regions()
    with pytest.raises(ValueError, match=r"layout: expected 'yolo' or 'voc', got 'csv'"):
        export_labels(photo, regions, tmp_path, ["cat", "dog"], layout="csv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"class_names: .* \['dog'\] are missing"):
        export_labels(photo, regions, tmp_path / "o", ["cat"], layout="yolo")
    with pytest.raises(FileNotFoundError, match=r"image_path: no file at '.*gone\.jpg'"):
        export_labels(tmp_path / "gone.jpg", regions, tmp_path, ["cat"], layout="yolo")
    assert not (tmp_path / "o").exists()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install tokenize-anything\[app\]"):
        export_labels(photo, regions, tmp_path, ["cat", "dog"], layout="yolo")


def test_annotations_go_on_to_supervision() -> None:
    """What `from_coco` reads goes on to supervision like any record."""
    pytest.importorskip("supervision", reason="supervision is not installed")
    regions = large_regions()
    again = RegionPredictions.from_coco(regions.to_coco(), 60, 80)
    theirs, ours = again.to_supervision(), regions.to_supervision()
    np.testing.assert_array_equal(theirs.mask, ours.mask)
    np.testing.assert_array_equal(theirs.class_id, ours.class_id)
    np.testing.assert_array_equal(theirs.xyxy, ours.xyxy)
