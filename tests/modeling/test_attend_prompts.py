"""Scores first, masks later: both halves of the decoder together give what the whole gives."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_config, tiny_prompts, tiny_tap
from tokenize_anything.modeling import TAP, ImageContext

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def model() -> TAP:
    return tiny_tap(CONFIG)


@pytest.fixture(scope="module")
def context(model: TAP) -> ImageContext:
    shape = (2, CONFIG.decoder_dim, CONFIG.grid_size, CONFIG.grid_size)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.prepare_regions(features)


@torch.no_grad()
def test_two_halves_make_the_whole(model: TAP, context: ImageContext) -> None:
    coords, labels = tiny_prompts(CONFIG)
    outputs = model.decode_regions(context, coords, labels)
    prompts = model.attend_prompts(context, coords, labels)
    for name in ("iou_scores", "mask_tokens", "semantic_tokens"):
        assert torch.equal(getattr(prompts, name), getattr(outputs, name)), name
    rows, slots = torch.tensor([5, 1, 5, 0, 3]), torch.tensor([2, 3, 0, 1, 1])
    masks = model.image_decoder.make_masks(prompts, rows, slots)
    torch.testing.assert_close(masks, outputs.mask_logits[rows, slots], rtol=0, atol=2e-5)
    embeddings = model.image_decoder.semantic_head(prompts.semantic_tokens[rows, slots])
    expected = outputs.semantic_embeddings[rows, slots]
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_prompts_without_a_chosen_slot_are_not_upscaled(
    model: TAP, context: ImageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    coords, labels = tiny_prompts(CONFIG)
    prompts = model.attend_prompts(context, coords, labels)
    norm, seen = model.image_decoder.upscale_norm, []
    forward = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: (seen.append(len(x)), forward(x))[1])
    masks = model.image_decoder.make_masks(
        prompts, torch.tensor([4, 4, 2]), torch.tensor([1, 2, 3])
    )
    assert seen == [2]
    assert masks.shape == (3, 4 * CONFIG.grid_size, 4 * CONFIG.grid_size)
