"""Answers of the network for clicks: which prompts get them, from which window, what follows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.clicking import (
    HEIGHT,
    SIZES,
    SMALL,
    WIDTH,
    all_clicks,
    answer_plainly,
    make_predictor,
    networks_of,
)
from tests.tiny_predictor import assert_same, make_photo, tiny_predictor
from tokenize_anything import PointPrompts, RegionPredictions, TAPPredictor
from tokenize_anything.click_answers import (
    PROMPTS_AT_ONCE,
    clicked_rows,
    middle_click,
    write_click_masks,
)
from tokenize_anything.geometry import masks_to_boxes
from tokenize_anything.region_decoding import DecodedImage


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return make_predictor()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


def mixed_prompts() -> PointPrompts:
    """Those, only background clicks, and boxes, alone and with clicks."""
    return PointPrompts.concatenate(
        [
            PointPrompts.from_boxes([SMALL]),
            all_clicks(),
            PointPrompts.from_points([[[7, 9], [100, 60]]], [[0, 0]]),
            PointPrompts.from_points([[190, 20]], [[0]]),
            PointPrompts.from_boxes([SMALL], [[[131, 60], [110, 60]]], [[0, 1]]),
        ]
    )


# --- which prompts, and where ----------------------------------------------------------------


def test_clicked_rows_are_those_with_a_foreground_click_and_no_box() -> None:
    found = clicked_rows(mixed_prompts())
    assert found.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert clicked_rows(PointPrompts.from_boxes([SMALL])).tolist() == []
    assert clicked_rows(PointPrompts.from_points(np.zeros((0, 2)))).tolist() == []
    pads = PointPrompts(np.zeros((1, 2, 2)), np.full((1, 2), 4))
    assert clicked_rows(pads).tolist() == []


def test_the_middle_click_is_one_of_the_foreground() -> None:
    prompts = PointPrompts.concatenate(
        [
            PointPrompts.from_points([[101.5, 67.25]]),
            PointPrompts.from_points([[[0, 0], [40, 5], [3, 50], [17, 13], [200, 140]]],
                                     [[1, 1, 1, 1, 0]]),
            PointPrompts.from_points([[[90, 31], [9, 11]]], [[0, 1]]),
            PointPrompts.from_points([[[90, 31], [9, 11]]]),  # as far: the first
        ]
    )  # fmt: skip
    found = [middle_click(prompts, row).tolist() for row in range(4)]
    assert found == [[101.5, 67.25], [17, 13], [9, 11], [90, 31]]


# --- masks -----------------------------------------------------------------------------------


def blank(predictor: TAPPredictor, count: int) -> DecodedImage:
    """Nothing is region, and all numbers tell rows and columns apart."""
    config = predictor.model.config

    def numbers(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))

    return DecodedImage(
        np.zeros((count, HEIGHT, WIDTH), bool), numbers(), numbers(config.decoder_dim),
        numbers(config.semantic_dim), torch.arange(count) % 4, numbers(config.decoder_dim),
    )  # fmt: skip


def write_answers(
    predictor: TAPPredictor, photo: np.ndarray, prompts: PointPrompts, rows: np.ndarray
) -> DecodedImage:
    target = blank(predictor, len(prompts))
    with torch.inference_mode():
        write_click_masks(predictor.model, photo, prompts, rows, target)
    return target


def test_answers_equal_a_plain_computation(predictor: TAPPredictor, photo: np.ndarray) -> None:
    prompts, chosen = all_clicks(), set()
    found = write_answers(predictor, photo, prompts, clicked_rows(prompts))
    for row in range(len(prompts)):
        mask, score, best, scores = answer_plainly(predictor, photo, prompts[row])
        assert np.sort(scores)[-1] - np.sort(scores)[-2] > 1e-3  # rounding chooses nothing
        assert (found.masks[row] != mask).mean() < 1e-3 and mask.any()
        assert float(found.iou_scores[row]) == pytest.approx(score, rel=1e-4, abs=1e-4)
        chosen.add(best)
    assert len(chosen) > 1  # or this would show little


def test_other_rows_and_tokens_are_left_alone(predictor: TAPPredictor, photo: np.ndarray) -> None:
    prompts, rows = mixed_prompts(), np.array([2, 5])
    before = blank(predictor, len(prompts))
    found = write_answers(predictor, photo, prompts, rows)
    others = np.setdiff1d(np.arange(len(prompts)), rows)
    assert found.masks[rows].any(axis=(1, 2)).all() and not found.masks[others].any()
    assert (found.iou_scores[rows] != before.iou_scores[rows]).all()
    assert torch.equal(found.iou_scores[others], before.iou_scores[others])
    for field in dataclasses.fields(DecodedImage)[2:]:
        name = field.name
        assert torch.equal(getattr(found, name), getattr(before, name)), name


def test_a_prompt_alone_equals_a_prompt_in_a_batch(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    """More than the network takes at once, and prompts of other lengths between them."""
    generator = np.random.default_rng(0)
    clicks = PointPrompts.from_points(generator.uniform(0, 140, (PROMPTS_AT_ONCE, 2)))
    prompts = PointPrompts.concatenate([all_clicks(), clicks])
    assert (prompts.num_points == 2).sum() > PROMPTS_AT_ONCE  # a click has a pad
    together = write_answers(predictor, photo, prompts, clicked_rows(prompts))
    for row in range(0, len(prompts), 2):
        alone = write_answers(predictor, photo, prompts[row], np.array([0]))
        assert (alone.masks[0] != together.masks[row]).mean() < 1e-3
        assert float(alone.iou_scores[0]) == pytest.approx(
            float(together.iou_scores[row]), rel=1e-4, abs=1e-4
        )


def test_no_rows_are_no_work(predictor: TAPPredictor, photo: np.ndarray) -> None:
    boxes = PointPrompts.from_boxes([SMALL])
    found = write_answers(predictor, photo, boxes, clicked_rows(boxes))
    assert not found.masks.any()


# --- through the predictor -------------------------------------------------------------------


def ask(
    predictor: TAPPredictor, photo: np.ndarray, prompts: PointPrompts, zoom: float | None = None
) -> RegionPredictions:
    return predictor.predict_mask_concept_caption(photo, prompts=prompts, top_k=2, zoom=zoom)


@pytest.mark.parametrize("namer_size", [0, 64])
def test_prompts_do_not_depend_on_each_other(photo: np.ndarray, namer_size: int) -> None:
    predictor, prompts = make_predictor(namer_size=namer_size), mixed_prompts()
    together = ask(predictor, photo, prompts)
    for row in range(len(prompts)):
        alone = ask(predictor, photo, prompts[row])
        wanted = together[row : row + 1]
        assert (alone.masks != wanted.masks).mean() < 1e-3
        assert alone.mask_index.tolist() == wanted.mask_index.tolist()
        for name in ("iou_scores", "semantic_tokens", "semantic_embeddings", "mask_tokens"):
            np.testing.assert_allclose(
                getattr(alone, name), getattr(wanted, name), rtol=1e-4, atol=1e-3, err_msg=name
            )


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_masks_of_clicks_and_what_becomes_of_them(photo: np.ndarray, bias: float) -> None:
    """One or two clicks keep their mask, others are outlined; tokens are of the last box."""
    predictor = make_predictor(namer_size=0)
    with torch.no_grad():
        networks_of(predictor)[1].iou_head.layers[-1].bias.fill_(bias)
    prompts = all_clicks()
    found = ask(predictor, photo, prompts)
    for row in range(len(prompts)):
        mask, score, *_ = answer_plainly(predictor, photo, prompts[row])
        is_kept = (prompts.labels[row] != 4).sum() <= 2
        assert ((found.masks[row] != mask).mean() < 1e-3) == is_kept
        assert (abs(found.iou_scores[row] - score) < 1e-3) == is_kept
        box = masks_to_boxes(found.masks[row : row + 1])
        told = predictor.predict_mask_concept_caption(photo, boxes=box, zoom=0, top_k=2)
        np.testing.assert_allclose(found.semantic_tokens[row], told.semantic_tokens[0], atol=1e-4)
        np.testing.assert_allclose(found.mask_tokens[row], told.mask_tokens[0], atol=1e-4)
        assert found.mask_index[row] == told.mask_index[0] == 0
        assert found.captions[row] == told.captions[0]


def test_clicks_without_a_mask_keep_the_tokens_of_the_photo(photo: np.ndarray) -> None:
    predictor = make_predictor()
    with torch.no_grad():
        for network in networks_of(predictor):
            network.mask_head.bias.fill_(-1e6)
    prompts = all_clicks()
    found, told = ask(predictor, photo, prompts), ask(predictor, photo, prompts, zoom=0.0)
    assert not found.masks.any() and told.masks.any()
    np.testing.assert_allclose(found.semantic_tokens, told.semantic_tokens, atol=1e-5)
    assert found.mask_index.tolist() == told.mask_index.tolist()


def without_clicks(predictor: TAPPredictor) -> TAPPredictor:
    """A predictor of the same weights but those of the click segmenter."""
    plain = tiny_predictor(**(SIZES | {"click_size": 0}))
    state = predictor.model.state_dict()
    plain.model.load_state_dict({name: state[name] for name in plain.model.state_dict()})
    return plain


def test_boxes_are_answered_as_without_it(predictor: TAPPredictor, photo: np.ndarray) -> None:
    boxes = PointPrompts.concatenate(
        [
            PointPrompts.from_boxes([SMALL, [5.0, 3.0, 203.0, 131.0]]),
            PointPrompts.from_boxes([SMALL], [[[131, 60], [110, 60]]], [[0, 1]]),
        ]
    )
    assert_same(ask(predictor, photo, boxes), ask(without_clicks(predictor), photo, boxes))


def test_a_single_look_is_as_without_it(predictor: TAPPredictor, photo: np.ndarray) -> None:
    prompts = mixed_prompts()
    found, expected = (
        ask(each, photo, prompts, zoom=0.0) for each in (predictor, without_clicks(predictor))
    )
    assert_same(found, expected)


def test_background_clicks_alone_are_answered_as_without_it(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    prompts = PointPrompts.from_points([[[7, 9], [100, 60]], [[190, 20], [30, 140]]], [[0, 0]] * 2)
    assert_same(ask(predictor, photo, prompts), ask(without_clicks(predictor), photo, prompts))


def test_embeddings_of_clicks_hold_what_their_outline_says(photo: np.ndarray) -> None:
    """As those of boxes do, in models without a network for names; kept masks add nothing."""
    predictor = make_predictor(namer_size=0)
    prompts = all_clicks()
    found = ask(predictor, photo, prompts)
    boxes = masks_to_boxes(found.masks)
    told = predictor.predict_mask_concept_caption(photo, boxes=boxes, zoom=0).semantic_embeddings
    for row in range(len(prompts)):
        is_plain = np.allclose(found.semantic_embeddings[row], told[row], rtol=1e-3, atol=1e-3)
        assert is_plain == ((prompts.labels[row] != 4).sum() <= 2)


def test_the_photo_is_not_changed(predictor: TAPPredictor, photo: np.ndarray) -> None:
    before = photo.copy()
    ask(predictor, photo, all_clicks())
    np.testing.assert_array_equal(photo, before)
