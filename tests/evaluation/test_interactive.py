"""COCO-Interactive: how prompts are drawn, kept and read, and mIoU and cIoU by hand."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from tests.data.photos import draw_shape
from tests.evaluation.tiny_truth import Oracle, coin_flips, edit, write_truth
from tests.tiny_predictor import tiny_predictor
from tokenize_anything.evaluation.interactive import evaluate_interactive
from tokenize_anything.evaluation.interactive_prompts import (
    KINDS,
    draw_prompts,
    make_prompts_file,
    prompt_key,
    prompts_file,
)
from tokenize_anything.evaluation.overlap_scores import count_overlap, cumulative_iou, mean_iou
from tokenize_anything.evaluation.rule_predictor import MASK_RULES, RulePredictor
from tokenize_anything.evaluation.runner import RunnerConfig
from tokenize_anything.geometry import decode_rle, masks_to_boxes
from tokenize_anything.prompts import PointPrompts

HEIGHT, WIDTH = 83, 127


def two_pieces():
    """A ball and a kite, and four pixels that are too few to count."""
    pieces = [
        draw_shape("ball", HEIGHT, WIDTH, (30, 40)),
        draw_shape("kite", HEIGHT, WIDTH, (90, 30)),
    ]
    crumb = np.zeros((HEIGHT, WIDTH), bool)
    crumb[70:72, 110:112] = True
    return pieces, crumb


def draw(mask, seed=0):
    return draw_prompts(mask, np.random.default_rng(seed))


def box_of(mask):
    return masks_to_boxes(mask[None])[0]


@pytest.mark.parametrize("seed", range(12))
def test_every_piece_gets_its_prompts_where_the_protocol_says(seed):
    pieces, crumb = two_pieces()
    prompts = draw(pieces[0] | pieces[1] | crumb, seed)
    assert prompts.point.sum() == 2
    assert prompts.box[crumb].sum() == 0
    _, labels = cv2.connectedComponents(prompts.box.astype(np.uint8))
    for piece in pieces:
        (y, x), *_ = np.argwhere(prompts.point & piece)
        box = box_of(piece)
        reach = min(box[2] - box[0], box[3] - box[1]) / 2
        centre = np.argwhere(piece).mean(axis=0)
        assert np.hypot(y - centre[0], x - centre[1]) <= reach + 1
        drawn = box_of(labels == labels[y, x])
        sides, wanted = drawn[2:] - drawn[:2], box[2:] - box[:2]
        assert (np.abs(sides / wanted - 1) <= 0.1 + 1 / wanted).all()
        assert np.abs((drawn[2:] + drawn[:2]) - (box[2:] + box[:2])).max() <= 2


@pytest.mark.parametrize("seed", range(12))
def test_a_scribble_is_a_bent_diagonal(seed):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[30:60, 40:100] = True
    scribble = draw(mask, seed).scribble
    box = box_of(scribble)
    assert box[0] >= 40 - 6 - 6 - 20 and box[2] <= 100 + 6 + 6 + 20
    assert scribble.sum() >= 0.5 * 30  # at least as long as the shortest diagonal
    assert scribble.sum() <= 4 * (60 + 30)  # a line, not an area
    count, _ = cv2.connectedComponents(scribble.astype(np.uint8))
    assert count == 2  # background and one line


def test_a_mask_prompt_is_the_region_with_a_rough_outline():
    pieces, crumb = two_pieces()
    prompts = draw(pieces[0] | pieces[1] | crumb)
    kept = (pieces[0] | pieces[1]).astype(np.float64)
    blurred = cv2.GaussianBlur(kept, (0, 0), 2.0)
    wanted = blurred > blurred.mean()
    assert (prompts.mask != wanted).mean() < 1e-3  # rounding at the threshold
    assert prompts.mask[kept.astype(bool)].all()


def test_a_mask_that_fills_the_photo_stays():
    full = np.ones((20, 30), bool)
    np.testing.assert_array_equal(draw(full).mask, full)


def test_a_point_is_near_the_centre_of_a_long_piece():
    bar = np.zeros((HEIGHT, WIDTH), bool)
    bar[40:47, 10:110] = True
    points = np.array([np.argwhere(draw(bar, seed).point)[0] for seed in range(30)])
    distances = np.hypot(*(points - [43, 59.5]).T)
    assert distances.max() <= 3.5 + 1  # half the shorter side
    assert distances.min() < 1.5 and len({tuple(point) for point in points}) > 10


def test_a_ring_gets_a_point_on_it():
    ring = draw_shape("ball", HEIGHT, WIDTH, (60, 40))
    ring[34:47, 54:67] = False
    for seed in range(5):
        assert ring[draw(ring, seed).point].all()


def test_crumbs_get_no_prompt():
    assert draw(two_pieces()[1]) is None


def test_prompts_depend_on_the_seed_and_the_annotation_alone(tmp_path):
    path = write_truth(tmp_path)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        make_prompts_file(path, tmp_path / f"{name}.json", seed=seed, show_progress=False)
    read = {name: (tmp_path / f"{name}.json").read_bytes() for name in ("one", "same", "other")}
    assert read["one"] == read["same"] != read["other"]
    by_id = {each["id"]: each for each in json.loads(read["one"])["annotations"]}
    edit(path, lambda content: content["annotations"].reverse())
    make_prompts_file(path, tmp_path / "reversed.json", show_progress=False)
    for each in json.loads((tmp_path / "reversed.json").read_text())["annotations"]:
        assert each == by_id[each["id"]]


def evaluate(predictor, path, **options):
    config = options.pop("config", RunnerConfig(show_progress=False))
    images = path.parent / "images"
    return dict(evaluate_interactive(predictor, path, images, config=config, **options))


def test_an_oracle_scores_100_on_all_prompts(tmp_path):
    path = write_truth(tmp_path, is_lvis=True)
    metrics = evaluate(Oracle(path, tmp_path / "images"), path)
    assert metrics.pop("regions") == 8
    assert metrics == {f"{kind} {name}": 100 for kind in KINDS for name in ("mIoU", "cIoU")}
    assert prompts_file(path, 0).is_file()


def test_chance_scores_what_chance_gives(tmp_path):
    path = write_truth(tmp_path, count=9)
    metrics = evaluate(coin_flips(), path)
    content = json.loads(path.read_text())
    sizes = {each["id"]: each["height"] * each["width"] for each in content["images"]}
    pairs = [(each["area"], sizes[each["image_id"]]) for each in content["annotations"]]
    assert metrics["regions"] == len(pairs) == 17  # the crowd is one of them
    mean = np.mean([area / (area + size) for area, size in pairs])
    total = sum(area for area, _ in pairs) / sum(area + size for area, size in pairs)
    for kind in KINDS:
        assert metrics[f"{kind} mIoU"] == pytest.approx(100 * mean, abs=1.0)
        assert metrics[f"{kind} cIoU"] == pytest.approx(100 * total, abs=1.0)


class Listener(RulePredictor):
    """Remembers its prompts."""

    def __init__(self):
        super().__init__("listener", MASK_RULES["filled_box"])
        self.heard: list[PointPrompts] = []

    def decode_regions(self, encoded, prompts, *, all_slots=True):
        self.heard.append(prompts)
        return super().decode_regions(encoded, prompts, all_slots=all_slots)


def test_stored_masks_become_points_and_boxes(tmp_path):
    path, listener = write_truth(tmp_path, count=1), Listener()
    evaluate(listener, path)
    stored = json.loads(prompts_file(path, 0).read_text())["annotations"]
    (heard,) = listener.heard
    assert len(heard) == 4 * len(stored) == 12
    for index, (kind, each) in enumerate((kind, each) for kind in KINDS for each in stored):
        mask, count = decode_rle(each[prompt_key(kind)]), int(heard.num_points[index])
        coords, labels = heard.coords_xy[index, :count], heard.labels[index, :count]
        if kind == "box":
            assert labels.tolist() == [2, 3]
            np.testing.assert_array_equal(coords.ravel(), box_of(mask))
        else:
            assert labels.tolist() == [1] * (count - 1) + [4]
            assert count - 1 == (1 if kind == "point" else 9)
            x, y = coords[:-1].astype(int).T
            assert mask[y, x].all()


def test_metrics_are_those_of_the_rows_of_a_model(tmp_path):
    path, out = write_truth(tmp_path), tmp_path / "run"
    config = RunnerConfig(out=out, show_progress=False)
    metrics = evaluate(tiny_predictor(), path, config=config)
    rows = json.loads((out / "results.json").read_text())
    for kind in KINDS:
        found = [(row["intersection"], row["union"]) for row in rows if row["prompt"] == kind]
        assert len(found) == 9
        wanted = 100 * np.mean([shared / union for shared, union in found])
        assert metrics[f"{kind} mIoU"] == pytest.approx(wanted)
        wanted = 100 * sum(pair[0] for pair in found) / sum(pair[1] for pair in found)
        assert metrics[f"{kind} cIoU"] == pytest.approx(wanted)


def test_a_file_with_prompts_is_used_as_it_is(tmp_path):
    path, predictor = write_truth(tmp_path), tiny_predictor()
    first = evaluate(predictor, path)
    prompted = prompts_file(path, 0)
    assert evaluate(predictor, prompted) == first
    assert not prompts_file(prompted, 0).exists()


def test_prompts_of_another_file_or_seed_are_refused(tmp_path):
    path, place = write_truth(tmp_path), tmp_path / "prompts.json"
    evaluate(coin_flips(), path, prompts=place)
    message = r"prompts: .*prompts\.json was made from .*'seed': 0.*, not from .*'seed': 1"
    with pytest.raises(ValueError, match=message):
        evaluate(coin_flips(), path, prompts=place, seed=1)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    path = write_truth(tmp_path)
    with pytest.raises(PermissionError, match=r"prompts: cannot write .*; .*--prompts FILE"):
        evaluate(coin_flips(), path, prompts=tmp_path / "gone" / "prompts.json")


def test_regions_that_are_all_too_small_are_refused(tmp_path):
    def shrink(content):
        for each in content["annotations"]:
            mask = np.zeros(each["segmentation"]["size"], bool)
            mask[5, 5:8] = True
            runs = np.flatnonzero(np.diff(np.pad(mask.ravel(order="F"), 1).astype(int)))
            each["segmentation"]["counts"] = np.diff([0, *runs, mask.size]).tolist()

    path = edit(write_truth(tmp_path, is_lvis=True), shrink)
    with pytest.raises(ValueError, match="holds no prompt; no region is large enough"):
        evaluate(coin_flips(), path)


# --- overlaps -------------------------------------------------------------------------------------


def test_overlaps_by_hand():
    left, right = np.zeros((3, 5), bool), np.zeros((3, 5), bool)
    left[:2, :2] = True  # 4 pixels
    right[1:, 1:4] = True  # 6 pixels, 1 of them shared
    assert count_overlap(left, right) == (1, 9)
    overlaps = [(1, 9), (3, 4), (0, 0), (0, 7)]
    assert mean_iou(overlaps) == pytest.approx(100 * (1 / 9 + 3 / 4 + 1 + 0) / 4)
    assert cumulative_iou(overlaps) == pytest.approx(100 * 4 / 20)
    assert cumulative_iou([(0, 0)]) == 100
