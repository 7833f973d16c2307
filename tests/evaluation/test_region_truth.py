"""Reading ground truth, and the points that prompt it."""

import json

import cv2
import numpy as np
import pytest

from tests.tiny_predictor import tiny_predictor
from tokenize_anything.evaluation.recognition import evaluate_recognition
from tokenize_anything.evaluation.region_truth import (
    load_true_images,
    read_true_images,
)
from tokenize_anything.geometry import encode_rle, innermost_point

HEIGHT, WIDTH = 29, 41


def write_dataset(folder, *, with_photo=True):
    """One photo: a named rectangle, a captioned one, a crowd, and one without a mask."""
    first = np.zeros((HEIGHT, WIDTH), dtype=bool)
    first[3:13, 5:25] = True
    second = np.zeros((HEIGHT, WIDTH), dtype=bool)
    second[15:28, 30:40] = True
    regions = [
        {"bbox": [5, 3, 20, 10], "segmentation": encode_rle(first), "category_id": 7},
        {"bbox": [30, 15, 10, 13], "segmentation": encode_rle(second), "captions": ["a blue box"]},
        {"bbox": [0, 0, 9, 9], "segmentation": encode_rle(first), "category_id": 7, "iscrowd": 1},
        {"bbox": [0, 0, 9, 9], "category_id": 7},
    ]
    content = {
        "images": [{"id": 1, "file_name": "photo.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": i, "image_id": 1, **region} for i, region in enumerate(regions)],
        "categories": [{"id": 7, "name": "orange"}],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    if with_photo:
        photo = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3))
        cv2.imwrite(str(folder / "photo.png"), photo.astype(np.uint8))
    return path


def test_regions_are_read_with_names_captions_and_boxes(tmp_path):
    (image,) = load_true_images(read_true_images(write_dataset(tmp_path), tmp_path))
    named, captioned = image.regions
    assert (named.name, named.references) == ("orange", ("an orange",))
    assert (captioned.name, captioned.references) == (None, ("a blue box",))
    assert named.box_xyxy == (5, 3, 25, 13)
    assert named.mask.sum() == 200 and named.mask[3, 5] and not named.mask[2, 5]


def test_missing_photos_are_listed(tmp_path):
    path = write_dataset(tmp_path, with_photo=False)
    with pytest.raises(FileNotFoundError, match=r"1 of 1 photos are missing, first .*photo\.png"):
        read_true_images(path, tmp_path)


def test_a_file_without_masks_is_refused(tmp_path):
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(ValueError, match="has no region with a mask"):
        read_true_images(path, tmp_path)


def test_innermost_point_is_the_middle_of_a_rectangle_at_the_border():
    mask = np.zeros((20, 31), dtype=bool)
    mask[0:7, 10:31] = True  # touches three sides of the image
    x, y = innermost_point(mask)
    assert y == 3 and 13 <= x <= 27


def test_every_metric_comes_out_and_baselines_are_exact(tmp_path):
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    metrics = dict(evaluate_recognition(tiny_predictor(), write_dataset(tmp_path), tmp_path))
    assert metrics["regions"] == 2
    assert metrics["filled box mean IoU"] == 1.0
    assert 0.7 < metrics["ellipse in box mean IoU"] < 0.85  # pi / 4 of a rectangle
    assert metrics["named regions"] == 1 and metrics["described regions"] == 2
    assert metrics["commonest name"] == 1.0
    for name in ("box", "point", "mask"):
        assert 0 <= metrics[f"{name} mean IoU"] <= 1
    assert metrics["best constant caption CIDEr"] > 0
