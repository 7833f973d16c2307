"""Segmentation from boxes: an oracle, chance, shapes measured by hand, and a model's rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.data.photos import write_json
from tests.evaluation.tiny_truth import Oracle, coin_flips, edit, write_truth
from tests.tiny_predictor import tiny_predictor
from tokenize_anything.evaluation.coco_truth import read_truth, truth_mask
from tokenize_anything.evaluation.rule_predictor import MASK_RULES, RulePredictor
from tokenize_anything.evaluation.runner import RunnerConfig
from tokenize_anything.evaluation.segmentation import evaluate_segmentation
from tokenize_anything.geometry import decode_rle

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")

QUIET = RunnerConfig(show_progress=False)


def evaluate(predictor, path, **options):
    config = options.pop("config", QUIET)
    images = path.parent / "images"
    return dict(evaluate_segmentation(predictor, path, images, config=config, **options))


def true_regions(path):
    """(box, mask) of all regions but crowds."""
    truth = read_truth(path)
    for image_id in truth.by_image:
        for region in truth.regions(image_id):
            yield region["bbox"], truth_mask(region["segmentation"], *truth.sizes_hw[image_id])


def write_detections(path, **changes):
    """The true boxes as a detector's results, with scores that differ."""
    regions = [each for each in json.loads(path.read_text())["annotations"] if not each["iscrowd"]]
    results = [
        {key: each[key] for key in ("image_id", "category_id", "bbox")}
        | {"score": 0.9 - 0.01 * index}
        | changes
        for index, each in enumerate(regions)
    ]
    return write_json(path.with_name("found.json"), results)


def test_an_oracle_scores_100_with_crowds_polygons_and_an_empty_photo(tmp_path):
    path = write_truth(tmp_path)
    metrics = evaluate(Oracle(path, tmp_path / "images"), path)
    assert metrics.pop("regions") == 8
    assert metrics == pytest.approx(dict.fromkeys(("mIoU", "AP", "AP50", "AP75", "APs"), 100))


def test_an_oracle_scores_100_on_detections_in_lvis_style(tmp_path):
    path = write_truth(tmp_path, is_lvis=True)
    oracle = Oracle(path, tmp_path / "images")
    metrics = evaluate(oracle, path, detections=write_detections(path))
    frequencies = ("AP rare", "AP common", "AP frequent")
    assert metrics == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75", "APs", *frequencies), 100))


def test_chance_scores_what_chance_gives(tmp_path):
    path = write_truth(tmp_path, count=12)
    metrics = evaluate(coin_flips(), path)
    # Half of the mask is hit, and half of all pixels outside are in the union.
    wanted = [mask.sum() / 2 / (mask.sum() / 2 + mask.size / 2) for _, mask in true_regions(path)]
    assert metrics["mIoU"] == pytest.approx(100 * np.mean(wanted), abs=1.0)
    assert metrics["AP"] == 0


def test_filled_boxes_score_the_share_of_their_box(tmp_path):
    path = write_truth(tmp_path)
    metrics = evaluate(RulePredictor("box", MASK_RULES["filled_box"]), path)
    wanted = [mask.sum() / (box[2] * box[3]) for box, mask in true_regions(path)]
    assert metrics["mIoU"] == pytest.approx(100 * np.mean(wanted), abs=1e-6)
    assert 0 < metrics["AP"] < 100


def test_scores_and_categories_are_those_of_the_detector(tmp_path):
    path = write_truth(tmp_path)
    oracle = Oracle(path, tmp_path / "images")
    right = evaluate(oracle, path, detections=write_detections(path))
    wrong = evaluate(oracle, path, detections=write_detections(path, category_id=3))
    assert right["AP"] == pytest.approx(100) and wrong["AP"] < 60
    assert "mIoU" not in right
    out = tmp_path / "run"
    evaluate(
        oracle,
        path,
        detections=write_detections(path),
        config=RunnerConfig(out=out, show_progress=False),
    )
    rows = json.loads((out / "results.json").read_text())
    assert [row["score"] for row in rows] == pytest.approx([0.9 - 0.01 * i for i in range(8)])
    assert rows[0].keys() == {"image_id", "category_id", "score", "segmentation"}


def test_rows_are_what_the_predictor_says(tmp_path):
    path, out, predictor = write_truth(tmp_path), tmp_path / "run", tiny_predictor()
    evaluate(predictor, path, config=RunnerConfig(out=out, group_size=2, show_progress=False))
    rows = iter(json.loads((out / "results.json").read_text()))
    truth = read_truth(path)
    for image in truth.content["images"]:
        regions = truth.regions(image["id"])
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in regions)]
        if not regions:
            continue
        photo = tmp_path / "images" / image["file_name"]
        wanted = predictor.predict_mask_concept_caption(photo, boxes=boxes, captions=False)
        for index, region in enumerate(regions):
            row, mask = next(rows), wanted.masks[index]
            assert (row["image_id"], row["category_id"]) == (image["id"], region["category_id"])
            np.testing.assert_array_equal(decode_rle(row["segmentation"]), mask)
            assert row["score"] == pytest.approx(float(wanted.iou_scores[index]))
            true = truth_mask(region["segmentation"], *mask.shape)
            overlap = (mask & true).sum() / (mask | true).sum()
            assert row["iou"] == pytest.approx(float(overlap))
    assert next(rows, None) is None


def test_regions_without_a_category_count_for_miou_only(tmp_path):
    path = edit(write_truth(tmp_path), lambda c: c["annotations"][0].pop("category_id"))
    metrics = evaluate(RulePredictor("ellipse", MASK_RULES["ellipse"]), path)
    assert metrics["regions"] == 8 and metrics["AP"] >= 0
    path = edit(path, lambda c: [each.pop("category_id", None) for each in c["annotations"]])
    metrics = evaluate(RulePredictor("ellipse", MASK_RULES["ellipse"]), path)
    assert metrics.keys() == {"regions", "mIoU"}


def test_a_split_of_crowds_is_empty(tmp_path):
    path = edit(write_truth(tmp_path), lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    with pytest.raises(ValueError, match="is an empty split: no region with a mask but crowds"):
        evaluate(coin_flips(), path)


def test_detections_of_a_larger_data_set_photo_are_refused(tmp_path):
    path = write_truth(tmp_path)
    found = write_detections(path, bbox=[300, 300, 20, 20])
    with pytest.raises(
        ValueError, match=r"detections: .*image 10: expected boxes on a photo of wid"
    ):
        evaluate(coin_flips(), path, detections=found)


def test_grabcut_gives_the_same_twice_and_stays_in_the_box():
    rng = np.random.default_rng(0)
    rgb = rng.integers(90, 130, (40, 50, 3), dtype=np.uint8)
    rgb[12:28, 15:35] = (230, 30, 40)
    box, labels = np.array([[10.0, 8.0], [40.0, 32.0]]), np.array([2, 3])
    first, second = (MASK_RULES["grabcut"](rgb, box, labels) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    wanted = np.zeros((40, 50), bool)
    wanted[12:28, 15:35] = True
    assert (first & wanted).sum() / (first | wanted).sum() > 0.9
    whole = np.array([[0.0, 0.0], [50.0, 40.0]])
    assert MASK_RULES["grabcut"](rgb, whole, labels).all()


def test_discs_are_added_and_taken_away():
    rgb = np.zeros((50, 100, 3), np.uint8)  # a radius of 6
    points = np.array([[20.0, 20.0], [60.0, 20.0], [60.0, 22.0], [0.0, 0.0]])
    mask = MASK_RULES["disc"](rgb, points, np.array([1, 1, 0, 4]))
    y, x = np.mgrid[:50, :100]
    near = [(x - px) ** 2 + (y - py) ** 2 <= 36 for px, py in points]
    np.testing.assert_array_equal(mask, (near[0] | near[1]) & ~near[2])
