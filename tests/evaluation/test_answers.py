"""Prompts in evaluation are answered as the predictor answers them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_predictor import make_mixed_prompts, make_photo, tiny_predictor
from tokenize_anything import PointPrompts
from tokenize_anything.evaluation.answers import decode_prompts

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
