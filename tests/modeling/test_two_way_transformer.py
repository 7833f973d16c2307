"""Two-way transformer as a whole against a plain one, and what its sharing must not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.modeling import reference
from tests.tiny import randomize, tiny_config
from tokenize_anything.modeling.two_way_transformer import TwoWayTransformer

DIM = tiny_config().decoder_dim
IMAGES, PROMPTS, TOKENS, PIXELS = 2, 3, 7, 11


def make_transformer(depth: int = 2, seed: int = 0) -> TwoWayTransformer:
    return randomize(TwoWayTransformer(tiny_config(decoder_depth=depth)), seed).eval()


def make_inputs(prompts: int = PROMPTS) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B,P,T,C), features (B,n,C), feature codes (n,C)."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((IMAGES, prompts, TOKENS, DIM), (IMAGES, PIXELS, DIM), (PIXELS, DIM))
    tokens, features, codes = (torch.randn(shape, generator=generator) for shape in shapes)
    return tokens, features, codes


def run(
    transformer: TwoWayTransformer, tokens: Tensor, features: Tensor, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """Prepare the images and decode."""
    return transformer(tokens, transformer.prepare(features, codes))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("prompts", [1, PROMPTS])
def test_transformer_equals_the_plain_one(depth: int, prompts: int) -> None:
    transformer = make_transformer(depth)
    tokens, features, codes = make_inputs(prompts)
    new_tokens, new_features = run(transformer, tokens, features, codes)
    assert new_tokens.shape == (IMAGES, prompts, TOKENS, DIM)
    assert new_features.shape == (IMAGES, prompts, PIXELS, DIM)
    weights = reference.weights_of(transformer)
    for image in range(IMAGES):
        for prompt in range(prompts):
            expected_tokens, expected_features = reference.two_way_transformer(
                tokens[image, prompt].double(),
                features[image].double(),
                codes.double(),
                weights,
                depth,
            )
            actual = new_tokens[image, prompt].double(), new_features[image, prompt].double()
            torch.testing.assert_close(actual[0], expected_tokens, rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(actual[1], expected_features, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("is_training", [False, True])
def test_sharing_an_image_equals_repeating_it_for_each_prompt(is_training: bool) -> None:
    transformer = make_transformer().train(is_training)
    tokens, features, codes = make_inputs()
    shared_tokens, shared_features = run(transformer, tokens, features, codes)
    repeated_tokens, repeated_features = run(
        transformer,
        tokens.reshape(IMAGES * PROMPTS, 1, TOKENS, DIM),
        features.repeat_interleave(PROMPTS, dim=0),
        codes,
    )
    torch.testing.assert_close(
        shared_tokens.flatten(0, 1), repeated_tokens[:, 0], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        shared_features.flatten(0, 1), repeated_features[:, 0], rtol=1e-5, atol=1e-5
    )


def test_sharing_gives_the_gradients_of_repeating() -> None:
    tokens, features, codes = make_inputs()
    gradients = []
    for is_shared in (True, False):
        transformer = make_transformer().train()
        if is_shared:
            outputs = run(transformer, tokens, features, codes)
        else:
            repeated = features.repeat_interleave(PROMPTS, 0)
            outputs = run(transformer, tokens.reshape(-1, 1, TOKENS, DIM), repeated, codes)
        torch.stack([output.sin().sum() for output in outputs]).sum().backward()
        gradients.append(
            {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}
        )
    for name, shared in gradients[0].items():
        torch.testing.assert_close(shared, gradients[1][name], rtol=1e-3, atol=2e-3, msg=name)


def test_the_first_self_attention_has_no_residual() -> None:
    """With every attention but the first silenced, nothing of the prompt can come through."""
    transformer = make_transformer(depth=1)
    silenced = ("blocks.0.self_attn.proj", "blocks.0.token_to_image.proj", "final_token_to_image")
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.startswith(silenced) and name.endswith("proj.weight"):
                parameter.zero_()
    tokens, features, codes = make_inputs()
    out, _ = run(transformer, tokens, features, codes)
    torch.testing.assert_close(out, out[:1, :1, :1].expand_as(out))
    weights = reference.weights_of(transformer)
    start = reference.layer_norm(weights["blocks.0.self_attn.proj.bias"], weights, "blocks.0.norm1")
    start = start + weights["blocks.0.token_to_image.proj.bias"]
    start = reference.layer_norm(start, weights, "blocks.0.norm2")
    hidden = reference.relu(reference.linear(start, weights, "blocks.0.mlp.fc1"))
    start = start + reference.linear(hidden, weights, "blocks.0.mlp.fc2")
    start = reference.layer_norm(start, weights, "blocks.0.norm3")
    start = start + weights["final_token_to_image.proj.bias"]
    expected = reference.layer_norm(start, weights, "norm")
    torch.testing.assert_close(out[0, 0, 0].double(), expected, rtol=1e-5, atol=1e-5)


def test_prompts_do_not_see_each_other_or_another_image() -> None:
    transformer = make_transformer()
    tokens, features, codes = make_inputs()
    before = run(transformer, tokens, features, codes)
    tokens[0, 1] += 1.0
    features[0] -= 1.0
    after = run(transformer, tokens, features, codes)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[1], new[1])
        assert not torch.allclose(old[0], new[0])
    tokens[0, 1] -= 1.0
    features[0] += 1.0
    tokens[1, 0] += 1.0
    for old, new in zip(before, run(transformer, tokens, features, codes), strict=True):
        torch.testing.assert_close(old[1, 1:], new[1, 1:], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(old[1, 0], new[1, 0])


def test_a_prepared_image_serves_many_calls() -> None:
    transformer = make_transformer()
    tokens, features, codes = make_inputs()
    context = transformer.prepare(features, codes)
    together = transformer(tokens, context)
    for prompt in range(PROMPTS):
        part = slice(prompt, prompt + 1)
        alone = transformer(tokens[:, part], context)
        for joint, single in zip(together, alone, strict=True):
            torch.testing.assert_close(joint[:, part], single, rtol=1e-5, atol=1e-5)


def test_inputs_are_not_modified() -> None:
    inputs = make_inputs()
    copies = [value.clone() for value in inputs]
    run(make_transformer(), *inputs)
    for value, copy in zip(inputs, copies, strict=True):
        assert torch.equal(value, copy)


def test_dropout_acts_on_tokens_in_training_only() -> None:
    transformer = randomize(TwoWayTransformer(tiny_config(), dropout=0.5))
    inputs = make_inputs()
    transformer.train()
    assert not torch.allclose(run(transformer, *inputs)[0], run(transformer, *inputs)[0])
    transformer.eval()
    weights_only = make_transformer()
    weights_only.load_state_dict(transformer.state_dict())
    torch.testing.assert_close(run(transformer, *inputs), run(weights_only, *inputs))
