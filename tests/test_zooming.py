"""The second look at small regions: which ones get it, where, and that it changes nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.tiny_predictor import assert_same, make_mixed_prompts, make_photo, tiny_predictor
from tokenize_anything import EncodedImage, PointPrompts, TAPConfig, TAPPredictor, zooming
from tokenize_anything.answer_choice import STABILITY_WEIGHT, choose_answer, obedience
from tokenize_anything.geometry import MIN_WINDOW, zoom_window
from tokenize_anything.image_transform import restore_masks
from tokenize_anything.views import MAX_VIEW, list_views

HEIGHT, WIDTH = 149, 211
SMALL, LARGE = [101.0, 53.0, 124.0, 72.0], [5.0, 3.0, 203.0, 131.0]


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return tiny_predictor(zoom=0.5)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("centre", "side", "expected"),
    [
        ((100, 70), 50, (75, 45, 125, 95)),
        ((3, 146), 50, (0, 99, 50, 149)),  # moved inside
        ((100, 70), 180, (10, 0, 190, 149)),  # higher than the photo
        ((100, 70), 5, (84, 54, 116, 86)),  # not under MIN_WINDOW
        ((100, 70), 500, (0, 0, 211, 149)),
    ],
)
def test_windows_lie_inside(centre, side, expected):
    assert MIN_WINDOW == 32
    assert zoom_window(centre, side, (HEIGHT, WIDTH)) == expected


def test_window_of_a_photo_smaller_than_the_least():
    assert zoom_window((2, 3), 9, (7, 5)) == (0, 0, 5, 7)


def views_of(prompts: PointPrompts) -> list[tuple[int, tuple[int, int, int, int]]]:
    views = list_views(prompts, (HEIGHT, WIDTH), zoom=0.5)
    return [(view.row, view.window_xyxy) for view in views]


def test_a_box_has_one_view_of_twice_its_size_around_all_its_points():
    assert views_of(PointPrompts.from_boxes([LARGE, SMALL])) == [(1, (90, 40, 136, 86))]
    clicked = PointPrompts.from_boxes([SMALL], [[[131, 60]]], [[0]])  # 101 to 131 along x
    assert views_of(clicked) == [(0, (86, 32, 146, 92))]


def test_only_small_boxes_have_a_view():
    limit = MAX_VIEW * WIDTH / 2
    boxes = [[50, 50, 50 + limit - 1, 60], [50, 50, 50 + limit + 1, 60]]
    ((row, (x0, _, x1, _)),) = views_of(PointPrompts.from_boxes(boxes))
    assert row == 0 and x1 - x0 == round(2 * (limit - 1))


def test_a_click_has_views_of_several_sizes():
    sides = (106, 74, 53, 38)  # an eighth of the photo, 26 pixels, is under MIN_WINDOW
    expected = [(0, zoom_window((40, 20), side, (HEIGHT, WIDTH))) for side in sides]
    assert views_of(PointPrompts.from_points([[40, 20]])) == expected
    two = PointPrompts.from_points([[[40, 20], [90, 60]]], [[1, 0]])  # 50 pixels apart
    assert views_of(two) == [(0, zoom_window((65, 40), 106, (HEIGHT, WIDTH)))]


def test_a_mask_has_the_view_of_its_clicks_made_wider():
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[40:81, 100:141] = True  # the nine clicks reach from 104, 44 to 136, 76
    prompts = PointPrompts.from_masks(drawn)
    assert views_of(prompts) == [(0, zoom_window((120, 60), 80, (HEIGHT, WIDTH)))]


def test_the_chosen_answer_to_a_click_counts(photo):
    predictor = tiny_predictor(zoom=0.5)
    last = predictor.model.image_decoder.iou_head.layers[-1]
    with torch.no_grad():  # scores so near each other that the rest counts
        last.weight.mul_(0.05)
        last.bias.mul_(0.05)
    near, best = set(), set()
    clicks = [[101, 67], [17, 130], [180, 23], [60, 60], [140, 120], [29, 31], [97, 11]]
    many = make_photo(HEIGHT, WIDTH)[..., 0] > 150  # nine clicks, spread over the photo
    small = np.zeros((HEIGHT, WIDTH), bool)
    small[40:81, 100:141] = True
    for prompt in [
        *(PointPrompts.from_points([click]) for click in clicks),
        PointPrompts.from_points([[[60, 60], [80, 40]]], [[1, 0]]),
        PointPrompts.from_masks(many),
        PointPrompts.from_masks(small),
    ]:
        views = [window for _, window in views_of(prompt)]
        is_extent = (prompt.labels == 1).sum() >= 5
        views = views if views and is_extent else [(0, 0, WIDTH, HEIGHT), *views]
        scores, merits = np.zeros((len(views), 3)), np.zeros((len(views), 3))
        masks, tokens = np.zeros((len(views), 3, HEIGHT, WIDTH), bool), []
        for view, (x0, y0, x1, y1) in enumerate(views):
            encoded = predictor.encode_images(np.ascontiguousarray(photo[y0:y1, x0:x1]))
            coords = prompt.coords_xy - np.array([x0, y0], np.float32)
            outputs = predictor.decode_regions(encoded, PointPrompts(coords, prompt.labels))
            logits = outputs.mask_logits[0, 1:]
            masks[view, :, y0:y1, x0:x1] = restore_masks(logits, encoded.frame)
            scores[view] = outputs.iou_scores[0, 1:]
            stability = ((logits > 1).sum((1, 2)) / (logits > -1).sum((1, 2))).numpy()
            merits[view] = STABILITY_WEIGHT * stability + obedience(masks[view], prompt)
            tokens.append(outputs.semantic_tokens[0, 1:])
        view, slot = choose_answer(scores, merits, masks)
        found = predictor.predict_mask_concept_caption(photo, prompts=prompt)
        np.testing.assert_allclose(found.iou_scores[0], scores[view, slot], atol=1e-4)
        assert found.mask_index == slot + 1
        expected = tokens[view][slot]
        np.testing.assert_allclose(found.semantic_tokens[0], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found.masks[0], masks[view, slot])
        near.add(view > 0)
        best.add(bool(slot == scores[view].argmax()))
    assert near == {True, False} == best  # or this would show little


def test_many_clicks_trust_their_view(predictor, photo, monkeypatch):
    """The photo itself is asked beside the views of a click, and where many clicks fill it."""
    asked = []

    def choose(scores, merits, masks):
        asked.append(scores.shape)
        return choose_answer(scores, merits, masks)

    monkeypatch.setattr(zooming, "choose_answer", choose)
    small, large = np.zeros((2, HEIGHT, WIDTH), bool)
    small[40:81, 100:141] = large[2:140, 5:200] = True
    for prompt in (
        PointPrompts.from_masks(small),
        PointPrompts.from_masks(large),
        PointPrompts.from_points([[40, 20]]),
    ):
        predictor.predict_mask_concept_caption(photo, prompts=prompt, captions=False)
    assert asked == [(1, 3), (1, 3), (5, 3)]


def test_a_prompt_without_clicks_is_answered_once(predictor, photo):
    nothing = PointPrompts(np.zeros((1, 2, 2)), np.full((1, 2), 4))
    twice = predictor.predict_mask_concept_caption(photo, prompts=nothing)
    assert_same(twice, predictor.predict_mask_concept_caption(photo, prompts=nothing, zoom=0))


def test_a_small_box_equals_the_same_box_in_its_window(predictor, photo):
    found = predictor.predict_mask_concept_caption(photo, boxes=[SMALL], top_k=3)
    x0, y0, x1, y1 = zoom_window((112.5, 62.5), 46, (HEIGHT, WIDTH))
    view = np.ascontiguousarray(photo[y0:y1, x0:x1])
    moved = np.array(SMALL) - [x0, y0, x0, y0]
    alone = predictor.predict_mask_concept_caption(view, boxes=[moved], top_k=3, zoom=0)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = alone.masks[0]
    np.testing.assert_array_equal(found.masks[0], mask)
    for name in ("iou_scores", "concept_scores", "semantic_tokens", "semantic_embeddings",
                 "mask_tokens", "mask_index"):  # fmt: skip
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-4, atol=1e-5)
    assert found.concepts == alone.concepts
    assert found.captions == alone.captions


def test_large_regions_are_looked_at_once(predictor, photo):
    twice = predictor.predict_mask_concept_caption(photo, boxes=[LARGE])
    once = predictor.predict_mask_concept_caption(photo, boxes=[LARGE], zoom=0)
    assert_same(twice, once)


def test_regions_do_not_depend_on_each_other(predictor, photo):
    prompts = PointPrompts.concatenate(
        [make_mixed_prompts(HEIGHT, WIDTH), *(PointPrompts.from_boxes([SMALL]) for _ in range(9))]
    )
    together = predictor.predict_mask_concept_caption(photo, prompts=prompts, top_k=2)
    encoded = predictor.encode_images(photo)
    for row in range(len(prompts)):
        alone = predictor.predict_mask_concept_caption(encoded, prompts=prompts[row], top_k=2)
        assert_same(alone, together[row : row + 1])


def test_the_model_decides_unless_told(photo):
    once, twice = tiny_predictor(), tiny_predictor(zoom=0.5)
    assert_same(
        once.predict_mask_concept_caption(photo, boxes=[SMALL], zoom=0.5),
        twice.predict_mask_concept_caption(photo, boxes=[SMALL]),
    )
    assert once.encode_images(photo).rgb is None
    np.testing.assert_array_equal(twice.encode_images(photo).rgb, photo)


def test_bad_zoom(photo):
    once = tiny_predictor()
    encoded = once.encode_images(photo)
    assert isinstance(encoded, EncodedImage)
    with pytest.raises(ValueError, match="zoom: expected a photo, got an EncodedImage without one"):
        once.predict_mask_concept_caption(encoded, boxes=[SMALL], zoom=0.5)
    for value in ("much", True):
        with pytest.raises(TypeError, match="zoom: expected None or a number, got"):
            once.predict_mask_concept_caption(photo, boxes=[SMALL], zoom=value)
    for number in (-0.1, 1.5):
        with pytest.raises(ValueError, match="zoom: expected 0 to 1"):
            once.predict_mask_concept_caption(photo, boxes=[SMALL], zoom=number)
        with pytest.raises(ValueError, match="zoom must be a number from 0 to 1, got"):
            dataclasses.replace(TAPConfig(), zoom=number)


def test_the_photo_is_not_changed(predictor, photo):
    before = photo.copy()
    predictor.predict_mask_concept_caption(photo, boxes=[SMALL])
    np.testing.assert_array_equal(photo, before)
    assert torch.is_grad_enabled()
