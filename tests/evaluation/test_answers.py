"""Prompts in evaluation are answered as the predictor answers them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny_predictor import make_mixed_prompts, make_photo, tiny_predictor
from tokenize_anything import PointPrompts
from tokenize_anything.evaluation.answers import decode_prompts, second_look
from tokenize_anything.evaluation.rule_predictor import RulePredictor, draw_filled_box
from tokenize_anything.region_decoding import decode_image

HEIGHT, WIDTH = 149, 211
SMALL = PointPrompts.from_boxes([[101.0, 53.0, 124.0, 72.0]])


@pytest.mark.parametrize("zoom", [0.0, 0.5])
def test_as_the_predictor_answers(zoom):
    predictor, photo = tiny_predictor(zoom=zoom), make_photo(HEIGHT, WIDTH)
    prompts = PointPrompts.concatenate([make_mixed_prompts(HEIGHT, WIDTH), SMALL])
    expected = predictor.predict_mask_concept_caption(photo, prompts=prompts, captions=False)
    encoded = predictor.encode_images(photo)
    found = decode_prompts(predictor, encoded, prompts)
    np.testing.assert_array_equal(found.masks, expected.masks)
    for name in ("semantic_tokens", "semantic_embeddings", "mask_tokens", "mask_index"):
        values = getattr(found, name).numpy()
        np.testing.assert_allclose(values, getattr(expected, name), rtol=1e-4, atol=1e-5)
    scores = found.iou_scores.numpy()
    np.testing.assert_allclose(scores, expected.iou_scores, rtol=1e-4, atol=1e-5)
    without = decode_prompts(predictor, encoded, prompts, with_masks=False)
    assert without.masks.shape == (0, HEIGHT, WIDTH)
    assert without.semantic_tokens.equal(found.semantic_tokens)


def test_masks_can_do_without_names():
    """Nothing but tokens and embeddings changes, and those are the first look's."""
    predictor = tiny_predictor(zoom=0.5, view_dim=3, view_size=32, namer_size=32)
    encoded = predictor.encode_images(make_photo(HEIGHT, WIDTH))
    named = decode_prompts(predictor, encoded, SMALL)
    plain = decode_prompts(predictor, encoded, SMALL, with_names=False)
    np.testing.assert_array_equal(plain.masks, named.masks)
    assert plain.iou_scores.equal(named.iou_scores) and named.masks.any()
    assert not plain.semantic_tokens.equal(named.semantic_tokens)
    with torch.inference_mode():
        first = decode_image(predictor.model, encoded, SMALL, chunk=1)
    assert plain.semantic_tokens.equal(first.semantic_tokens)


def test_models_that_look_twice_are_known():
    twice = tiny_predictor(zoom=0.5)
    assert second_look(twice) is twice.model
    assert second_look(tiny_predictor()) is None
    assert second_look(RulePredictor("box", draw_filled_box)) is None
