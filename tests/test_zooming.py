"""The second look at small regions: which ones get it, where, and that it changes nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.tiny_predictor import assert_same, make_mixed_prompts, make_photo, tiny_predictor
from tokenize_anything import EncodedImage, PointPrompts, TAPConfig, TAPPredictor
from tokenize_anything.geometry import MIN_WINDOW, zoom_window
from tokenize_anything.zooming import MAX_VIEW, choose_windows, region_extents

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


def extents_of(prompts: PointPrompts, *boxes: list[int]) -> list[list[float]]:
    masks = np.zeros((len(prompts), HEIGHT, WIDTH), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return region_extents(prompts, masks).tolist()


def test_a_box_says_how_large_its_region_is():
    alone = PointPrompts.from_boxes([SMALL])
    clicked = PointPrompts.from_boxes([SMALL], [[[130, 60]]], [[0]])
    assert extents_of(alone, [0, 0, 90, 90]) == [SMALL]
    assert extents_of(clicked, [0, 0, 90, 90]) == [[101, 53, 130, 72]]


def test_clicks_go_with_their_first_mask():
    prompts = PointPrompts.from_points([[[40, 20], [90, 60]]], [[1, 0]])
    assert extents_of(prompts, [35, 10, 60, 31]) == [[35, 10, 90, 60]]
    assert extents_of(prompts, [0, 0, 0, 0]) == [[40, 20, 90, 60]]


def test_many_clicks_say_how_large_their_region_is():
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[40:81, 100:141] = True
    prompts = PointPrompts.from_masks(drawn)
    # The nine reach from 104, 44 to 136, 76.
    assert extents_of(prompts, [0, 0, 200, 140]) == [[100, 40, 140, 80]]


def test_only_small_regions_get_a_window():
    limit = MAX_VIEW * WIDTH / 2
    boxes = [[50, 50, 50 + limit - 1, 60], [50, 50, 50 + limit + 1, 60], [np.inf] * 4]
    windows = choose_windows(np.array(boxes, np.float32), (HEIGHT, WIDTH), 0.5)
    assert list(windows) == [0]
    x0, _, x1, _ = windows[0]
    assert x1 - x0 == round(2 * (limit - 1))


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
