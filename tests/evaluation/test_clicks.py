"""Clicks on mistakes: where they fall, what the predictor is asked, and what the metric says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evaluation.tiny_truth import Oracle, coin_flips, edit, write_truth
from tests.tiny_predictor import tiny_predictor
from tokenize_anything.corrective_clicks import next_click
from tokenize_anything.evaluation.baselines import disc_at
from tokenize_anything.evaluation.clicks import click_and_refine, evaluate_clicks
from tokenize_anything.evaluation.rule_predictor import RulePredictor
from tokenize_anything.evaluation.runner import RunnerConfig
from tokenize_anything.prompts import PointPrompts

SHAPE = (23, 37)


def rectangle(x0, y0, x1, y1):
    mask = np.zeros(SHAPE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


TRUTH = rectangle(4, 5, 15, 14)  # 11 x 9 pixels, its middle is the row 9


@pytest.mark.parametrize(
    ("mask", "click", "label"),
    [
        (rectangle(0, 0, 0, 0), {(x, 9) for x in range(8, 11)}, 1),
        (TRUTH | rectangle(25, 2, 30, 7), {(27, 4)}, 0),  # a square that is too much
        (TRUTH & ~rectangle(4, 5, 15, 8), {(x, 6) for x in range(5, 14)}, 1),  # rows are missed
        (rectangle(25, 2, 30, 7), {(x, 9) for x in range(8, 11)}, 1),  # missed more than too much
        (
            rectangle(4, 0, 37, 23),
            {(x, y) for x in (25, 26) for y in (10, 11, 12)},
            0,
        ),  # the border is a border
    ],
)
def test_a_click_falls_in_the_middle_of_the_largest_mistake(mask, click, label):
    assert next_click(mask, TRUTH)[1] == label
    assert next_click(mask, TRUTH)[0] in click


def plain_distance(region):
    """Distance of each pixel to the nearest one outside; beyond the photo is outside."""
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded)
    distances = np.zeros(padded.shape)
    for pixel in np.argwhere(padded):
        distances[tuple(pixel)] = np.sqrt(((outside - pixel) ** 2).sum(axis=1).min())
    return distances[1:-1, 1:-1]


def test_of_pieces_the_largest_counts_and_not_the_widest():
    long, square = rectangle(1, 1, 36, 3), rectangle(5, 8, 12, 15)  # 70 and 49 pixels
    (x, y), label = next_click(np.zeros(SHAPE, bool), long | square)
    assert long[y, x] and label == 1
    assert plain_distance(long)[y, x] == plain_distance(long).max()


def test_pieces_that_touch_at_a_corner_are_one():
    stairs = rectangle(2, 2, 8, 8) | rectangle(8, 8, 14, 14)  # 72 pixels
    (x, y), _ = next_click(np.zeros(SHAPE, bool), stairs | rectangle(20, 2, 28, 10))  # 64 pixels
    assert stairs[y, x]


def test_equal_masks_have_no_mistake():
    with pytest.raises(ValueError, match="mask: expected one that differs from truth"):
        next_click(TRUTH, TRUTH)


def draw_large_discs(rgb, coords, labels):
    """Discs of 6 pixels, so that some of a disc is too much."""
    mask = np.zeros(rgb.shape[:2], bool)
    for point, label in zip(coords, labels, strict=True):
        if label in (0, 1):
            mask[disc_at(SHAPE, point.tolist(), 6)] = bool(label)
    return mask


class Recorder(RulePredictor):
    """Draws discs at the clicks, and remembers what it was asked."""

    def __init__(self):
        super().__init__("recorder", draw_large_discs)
        self.asked: list[PointPrompts] = []

    def decode_regions(self, encoded, prompts, *, all_slots=True):
        self.asked.append(prompts)
        return super().decode_regions(encoded, prompts, all_slots=all_slots)


def test_every_click_answers_the_mask_before():
    rgb, truths = np.zeros((*SHAPE, 3), np.uint8), np.stack([TRUTH, rectangle(20, 3, 33, 21)])
    recorder = Recorder()
    ious = click_and_refine(recorder, rgb, truths, 4)
    for row, truth in enumerate(truths):
        mask, coords, labels = np.zeros(SHAPE, bool), [], []
        for click in range(4):
            point, label = next_click(mask, truth)
            coords.append(point)
            labels.append(label)
            prompt = recorder.asked[click]
            assert prompt.coords_xy[row, : click + 1].tolist() == [list(p) for p in coords]
            assert prompt.labels[row].tolist() == [*labels, 4]  # and the padding point
            mask = draw_large_discs(rgb, np.array(coords, float), np.array(labels))
            wanted = (mask & truth).sum() / (mask | truth).sum()
            assert ious[row, click] == pytest.approx(wanted)
    assert 0 in recorder.asked[-1].labels and 1 in recorder.asked[-1].labels


def test_a_perfect_region_is_left_alone_while_others_go_on():
    rgb = np.zeros((*SHAPE, 3), np.uint8)
    disc = draw_large_discs(rgb, np.array([[10.0, 9.0]]), np.array([1]))
    recorder = Recorder()
    ious = click_and_refine(recorder, rgb, np.stack([disc, TRUTH]), 3)
    assert [len(prompt) for prompt in recorder.asked] == [2, 1, 1]
    assert ious[0].tolist() == [1, 1, 1]
    alone = click_and_refine(Recorder(), rgb, TRUTH[None], 3)
    np.testing.assert_array_equal(ious[1], alone[0])


def evaluate(predictor, path, **options):
    config = options.pop("config", RunnerConfig(show_progress=False))
    return dict(evaluate_clicks(predictor, path, path.parent / "images", config=config, **options))


def test_an_oracle_scores_100_from_the_first_click(tmp_path):
    path = write_truth(tmp_path)
    metrics = evaluate(Oracle(path, tmp_path / "images"), path)
    assert metrics.pop("regions") == 8  # without the crowd
    assert list(metrics) == [
        "mIoU after 1 click",
        *(f"mIoU after {n} clicks" for n in range(2, 10)),
    ]
    assert set(metrics.values()) == {100}


def test_chance_scores_what_chance_gives(tmp_path):
    path = write_truth(tmp_path, count=9)
    metrics = evaluate(coin_flips(), path, num_clicks=2)
    truth = [each for each in json.loads(path.read_text())["annotations"] if not each["iscrowd"]]
    sizes = {
        each["id"]: each["height"] * each["width"]
        for each in json.loads(path.read_text())["images"]
    }
    wanted = [each["area"] / (each["area"] + sizes[each["image_id"]]) for each in truth]
    for name in ("mIoU after 1 click", "mIoU after 2 clicks"):
        assert metrics[name] == pytest.approx(100 * np.mean(wanted), abs=1.0)


def test_the_metric_is_the_mean_of_the_rows_of_a_model(tmp_path):
    path, out = write_truth(tmp_path), tmp_path / "run"
    config = RunnerConfig(out=out, show_progress=False)
    metrics = evaluate(tiny_predictor(), path, num_clicks=3, config=config)
    rows = json.loads((out / "results.json").read_text())
    assert [row["annotation_id"] for row in rows] == list(range(8))
    means = np.mean([row["ious"] for row in rows], axis=0)
    assert list(metrics.values()) == pytest.approx([8, *(100 * means)])


@pytest.mark.parametrize("num_clicks", [0, 10])
def test_the_number_of_clicks_is_limited(tmp_path, num_clicks):
    with pytest.raises(ValueError, match=f"num_clicks: expected 1 to 9, got {num_clicks}"):
        evaluate(coin_flips(), write_truth(tmp_path), num_clicks=num_clicks)


def test_a_file_without_masks_is_refused(tmp_path):
    path = edit(write_truth(tmp_path), lambda c: [a.pop("segmentation") for a in c["annotations"]])
    with pytest.raises(ValueError, match=r"truth\.json has no region with a mask"):
        evaluate(coin_flips(), path)
