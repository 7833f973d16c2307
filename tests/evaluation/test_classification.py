"""Recognition of given boxes: the rule against loops, an oracle, and names that must match."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from tests.evaluation.tiny_truth import CoinNames, Oracle, edit, write_truth
from tests.tiny_predictor import tiny_predictor, tiny_vocabulary
from tokenize_anything.evaluation.classification import (
    box_iou,
    evaluate_classification,
    match_categories,
    recognition_results,
)
from tokenize_anything.evaluation.coco_truth import read_truth
from tokenize_anything.evaluation.rule_predictor import (
    RulePredictor,
    draw_filled_box,
    one_hot_vocabulary,
)
from tokenize_anything.evaluation.runner import RunnerConfig

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")


def evaluate(predictor, path, **config):
    config = RunnerConfig(show_progress=False, **config)
    return dict(evaluate_classification(predictor, path, path.parent / "images", config=config))


def plain_iou(box, other):
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (box[2] * box[3] + other[2] * other[3] - shared)


def plain_results(chances, iou_scores, boxes):
    """The protocol, step by step: floor, score, suppression of each class, best 300 with ties."""
    kept = []
    for column in range(chances.shape[1]):
        rows = [row for row in range(len(boxes)) if chances[row, column] > 0.001]
        score = {
            row: (chances[row, column] * min(max(iou_scores[row], 0), 1)) ** 0.5 for row in rows
        }
        chosen = []
        for row in sorted(rows, key=lambda row: -score[row]):
            if all(plain_iou(boxes[row], boxes[other]) <= 0.5 for other in chosen):
                chosen.append(row)
        kept += [(row, column, score[row]) for row in chosen]
    kept.sort(key=lambda result: -result[2])
    return [result for result in kept if len(kept) <= 300 or result[2] >= kept[299][2]]


@pytest.mark.parametrize(("num_boxes", "num_classes"), [(11, 7), (29, 31), (1, 3), (5, 1)])
def test_results_equal_the_protocol_step_by_step(num_boxes, num_classes):
    rng = np.random.default_rng(num_boxes)
    chances = rng.dirichlet(np.full(num_classes, 0.2), num_boxes)
    boxes = np.concatenate(
        [rng.uniform(0, 30, (num_boxes, 2)), rng.uniform(9, 40, (num_boxes, 2))], 1
    )
    iou_scores = rng.uniform(-0.2, 1.3, num_boxes)
    wanted = plain_results(chances, iou_scores, boxes)
    found = list(recognition_results(chances, iou_scores, boxes))
    assert sorted(each[:2] for each in found) == sorted(each[:2] for each in wanted)
    assert [each[2] for each in found] == pytest.approx([each[2] for each in wanted])


def test_ties_with_the_300th_result_are_kept():
    chances = np.full((40, 10), 0.09)
    chances[:5] = 0.2  # 50 better ones, then 350 equal ones
    boxes = np.array([[50 * row, 0, 9, 9] for row in range(40)], float)
    assert len(list(recognition_results(chances, np.ones(40), boxes))) == 400
    chances[5:9] = 0.19
    chances[9:30] = 0.15  # the 300th is the last of these
    assert len(list(recognition_results(chances, np.ones(40), boxes))) == 300


def test_the_floor_is_of_the_probability_and_not_of_the_score():
    chances, boxes = np.array([[0.001, 0.0011, 0.9979]]), np.array([[0.0, 0, 5, 5]])
    found = list(recognition_results(chances, np.array([1e-6]), boxes))
    assert [column for _, column, _ in found] == [2, 1]


def test_box_iou_by_loops():
    rng = np.random.default_rng(0)
    boxes, others = rng.uniform(1, 20, (5, 4)), rng.uniform(1, 20, (3, 4))
    wanted = [plain_iou(*pair) for pair in itertools.product(boxes, others)]
    np.testing.assert_allclose(box_iou(boxes, others).ravel(), wanted)
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0.0]]


@pytest.mark.parametrize("is_lvis", [False, True])
def test_an_oracle_scores_100(tmp_path, is_lvis):
    path = write_truth(tmp_path, is_lvis=is_lvis)
    metrics = evaluate(Oracle(path, tmp_path / "images"), path)
    names = {"AP", "AP50", "AP75", "APs"}
    names |= {"AP rare", "AP common", "AP frequent"} if is_lvis else set()
    assert metrics == pytest.approx(dict.fromkeys(names, 100))


def test_one_name_for_all_is_right_for_its_category_only(tmp_path):
    path = write_truth(tmp_path)
    truth = json.loads(path.read_text())["annotations"]
    kinds = [each["category_id"] for each in truth if not each["iscrowd"]]
    vocabulary = one_hot_vocabulary(["ball", "brick", "kite"])
    guess = RulePredictor("kite", draw_filled_box, concepts=vocabulary, concept="kite")
    share = kinds.count(3) / len(kinds)
    assert 33 * share < evaluate(guess, path)["AP"] < 33  # one of three categories


def test_chance_scores_what_chance_gives(tmp_path):
    """A third of a category's boxes is found, and a third of what is found is right: a ninth.

    A little more, since AP takes the best precision from a recall on.
    """
    path = write_truth(tmp_path, count=120)
    assert 9 < evaluate(CoinNames(["ball", "brick", "kite"]), path)["AP"] < 18


def test_rows_are_those_of_the_predictor_whatever_the_group(tmp_path):
    path, predictor = write_truth(tmp_path), tiny_predictor()
    predictor.concepts = tiny_vocabulary(("brick", "ball", "kite", "tray"))
    rows = {}
    for size in (1, 4):
        evaluate(predictor, path, group_size=size, out=tmp_path / str(size))
        rows[size] = json.loads((tmp_path / str(size) / "results.json").read_text())
    scores = {size: [row.pop("score") for row in found] for size, found in rows.items()}
    assert rows[1] == rows[4]
    assert scores[1] == pytest.approx(scores[4], rel=1e-4)
    regions = read_truth(path).regions(11)
    boxes = np.array([each["bbox"] for each in regions], float)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    photo = tmp_path / "images" / "1.png"
    answer = predictor.predict_mask_concept_caption(photo, boxes=corners, top_k=4)
    chances = np.array(
        [
            [dict(zip(names, scores, strict=True))[name] for name in ("ball", "brick", "kite")]
            for names, scores in zip(answer.concepts, answer.concept_scores, strict=True)
        ]
    )
    wanted = plain_results(chances, answer.iou_scores, boxes)
    of_photo = [index for index, row in enumerate(rows[1]) if row["image_id"] == 11]
    found = [rows[1][index] for index in of_photo]
    assert [row["category_id"] for row in found] == [1 + column for _, column, _ in wanted]
    assert [row["bbox"] for row in found] == [boxes[row].tolist() for row, _, _ in wanted]
    found_scores = [scores[1][index] for index in of_photo]
    assert found_scores == pytest.approx([each[2] for each in wanted], rel=1e-4)


# --- names and categories -------------------------------------------------------------------------


def predictor_of(names):
    return RulePredictor("names", draw_filled_box, concepts=one_hot_vocabulary(list(names)))


def renamed(path, names):
    def change(content):
        for category, name in zip(content["categories"], names, strict=True):
            category["name"] = name

    return read_truth(edit(path, change))


def test_categories_are_found_by_name_in_any_order(tmp_path):
    truth = renamed(write_truth(tmp_path), ["Ball_point-pen", "brick", "kite"])
    columns = match_categories(predictor_of(["kite", "sky", "ball point pen", "brick"]), truth)
    assert columns == {1: 2, 2: 3, 3: 0}


def test_a_vocabulary_in_the_order_of_the_file_may_spell_a_name_otherwise(tmp_path):
    truth = renamed(write_truth(tmp_path), ["ball", "bow_(weapon)", "kite"])
    assert match_categories(predictor_of(["ball", "bow", "kite"]), truth) == {1: 0, 2: 1, 3: 2}


def test_categories_the_model_does_not_know_are_told(tmp_path):
    truth = read_truth(write_truth(tmp_path))
    with pytest.warns(UserWarning, match=r"1 of 3 categories .* can never be right.*\['kite'\]"):
        assert match_categories(predictor_of(["ball", "brick"]), truth) == {1: 0, 2: 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("sun", "moon", "sky"), r"concepts: none of the 3 categories of truth\.json"),
        (None, r"concepts: the predictor has no vocabulary"),
    ],
)
def test_other_vocabularies_are_refused(tmp_path, names, message):
    path = write_truth(tmp_path)
    predictor = predictor_of(names) if names else RulePredictor("mute", draw_filled_box)
    with pytest.raises(ValueError, match=message):
        evaluate(predictor, path)


def test_files_without_categories_or_regions_are_refused(tmp_path):
    path = edit(write_truth(tmp_path), lambda c: c.update(categories=[]))
    with pytest.raises(ValueError, match=r"truth\.json lists no categories to choose among"):
        evaluate(predictor_of(["ball"]), path)
    path = edit(
        write_truth(tmp_path / "crowds"), lambda c: [a.update(iscrowd=1) for a in c["annotations"]]
    )
    with pytest.raises(ValueError, match="is an empty split: no region with a category but crowds"):
        evaluate(predictor_of(["ball", "brick", "kite"]), path)
