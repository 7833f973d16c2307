"""The composed network: published sizes, independence of regions and images, gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny_config, tiny_pixels, tiny_prompts, tiny_tap
from tokenize_anything.config import PRESETS, tap_vit_b, tap_vit_h, tap_vit_l
from tokenize_anything.modeling import TAP, RegionOutputs
from tokenize_anything.modeling.layers import DropPath

CONFIG = tiny_config()
FIELDS = ("mask_logits", "iou_scores", "mask_tokens", "semantic_tokens", "semantic_embeddings")
IMAGES, PROMPTS, POINTS = 2, 3, 5


@pytest.fixture(scope="module")
def model() -> TAP:
    return tiny_tap(CONFIG).requires_grad_(False)


@pytest.fixture(scope="module")
def image_features(model: TAP) -> Tensor:
    return model.encode_images(tiny_pixels(CONFIG, images=IMAGES))


def decode(
    model: TAP, image_features: Tensor, prompts: Sequence[Tensor], *, all_slots: bool = True
) -> RegionOutputs:
    """Prepare the images and decode `prompts`, coordinates and labels."""
    coords_xy, labels = prompts
    context = model.prepare_regions(image_features)
    return model.decode_regions(context, coords_xy, labels, all_slots=all_slots)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build_on_meta(preset: str) -> TAP:
    with torch.device("meta"):
        return TAP(PRESETS[preset]())


def assert_regions_equal(
    actual: RegionOutputs, expected: RegionOutputs, rows: slice = slice(None)
) -> None:
    for name in (*FIELDS, "mask_index"):
        torch.testing.assert_close(
            getattr(actual, name),
            getattr(expected, name)[rows],
            rtol=1e-4,
            atol=2e-5,
            msg=f"{name} differs",
        )


# --- published sizes ---


@pytest.mark.parametrize(
    ("preset", "total", "encoder", "num_parameters", "num_entries"),
    [
        ("tap_vit_b", 174_549_876, 97_398_160, 480, 537 - 12),
        ("tap_vit_l", 399_314_788, 322_163_072, 636, 705 - 24),
        ("tap_vit_h", 735_789_796, 658_638_080, 740, 817 - 32),
    ],
)
def test_presets_have_the_published_number_of_parameters(
    preset: str, total: int, encoder: int, num_parameters: int, num_entries: int
) -> None:
    model = build_on_meta(preset)
    assert count(model) == total
    assert count(model.image_encoder) == encoder
    assert count(model.prompt_encoder) == 1_280
    assert count(model.image_decoder) == 6_421_732
    assert count(model.text_decoder) == 70_728_704
    assert len(list(model.parameters())) == num_parameters
    # the published file has one index table per block more, and pixel_mean and pixel_rsig
    assert len(model.state_dict()) == num_entries - 2


def test_parts_have_the_published_number_of_parameters() -> None:
    model = build_on_meta("tap_vit_l")
    encoder, decoder, text = model.image_encoder, model.image_decoder, model.text_decoder
    sizes = {
        "patch embedding": (encoder.patch_embed, 787_456),
        "blocks": (encoder.blocks, 302_678_400),
        "block": (encoder.blocks[23], 12_611_600),
        "last norm": (encoder.norm, 2_048),
        "cross window": (encoder.cross_window, 13_647_872),
        "neck": (encoder.neck, 852_992),
        "two-way transformer": (decoder.transformer, 3_291_264),
        "mask heads": (decoder.mask_heads, 559_232),
        "iou head": (decoder.iou_head, 132_612),
        "semantic head": (decoder.semantic_head, 2_362_368),
        "text blocks": (text.blocks, 37_828_608),
        "word embedding": (text.word_embedding, 16_384_000),
        "word projection": (text.word_proj, 16_384_000),
        "visual projection": (text.visual_proj, 131_072),
    }
    assert {name: count(part) for name, (part, _) in sizes.items()} == {
        name: size for name, (_, size) in sizes.items()
    }
    upscaling = (decoder.upscale1, decoder.upscale_norm, decoder.upscale2)
    assert sum(map(count, upscaling)) == 73_952
    assert encoder.pos_embed.shape == (4096, 1024)


def test_heads_of_the_presets() -> None:
    for preset, head_dim in ((tap_vit_b, 64), (tap_vit_l, 64), (tap_vit_h, 80)):
        config = preset()
        assert config.encoder_dim // config.encoder_heads == head_dim
        assert (config.decoder_heads, config.text_heads) == (8, 8)
        assert config.grid_size == 64


def test_every_preset_builds() -> None:
    for preset in PRESETS:
        assert count(build_on_meta(preset)) > 0


# --- composition ---


def test_shapes(model: TAP, image_features: Tensor) -> None:
    side = CONFIG.grid_size
    assert image_features.shape == (IMAGES, CONFIG.decoder_dim, side, side)
    regions = IMAGES * PROMPTS
    outputs = decode(model, image_features, tiny_prompts(CONFIG))
    assert outputs.mask_logits.shape == (regions, 4, 4 * side, 4 * side)
    assert outputs.iou_scores.shape == (regions, 4)
    assert outputs.mask_tokens.shape == (regions, 4, CONFIG.decoder_dim)
    assert outputs.semantic_tokens.shape == (regions, 4, CONFIG.decoder_dim)
    assert outputs.semantic_embeddings.shape == (regions, 4, CONFIG.semantic_dim)
    assert outputs.mask_index.shape == (regions,)


def test_decode_regions_composes_the_parts(model: TAP, image_features: Tensor) -> None:
    coords_xy, labels = tiny_prompts(CONFIG)
    points = [model.encode_prompts(*prompt) for prompt in zip(coords_xy, labels, strict=True)]
    grid = model.prompt_encoder.encode_grid(CONFIG.grid_size, CONFIG.grid_size)
    context = model.image_decoder.prepare(image_features, grid)
    expected = model.image_decoder(context, torch.stack(points), labels[..., 0] == 2)
    assert_regions_equal(decode(model, image_features, (coords_xy, labels)), expected)


def test_routing_looks_at_the_first_point_only(model: TAP, image_features: Tensor) -> None:
    labels = torch.tensor([[[2, 3], [1, 2], [4, 4], [3, 2], [0, 1]]]).expand(IMAGES, -1, -1)
    coords_xy = torch.full((IMAGES, 5, 2, 2), 20.0)
    outputs = decode(model, image_features, (coords_xy, labels))
    assert (outputs.mask_index == 0).tolist() == [True, False, False, False, False] * IMAGES
    best = outputs.iou_scores[:, 1:].argmax(dim=1) + 1
    is_box = labels[..., 0].flatten() == 2
    assert torch.equal(outputs.mask_index[~is_box], best[~is_box])


def test_the_routed_mask_alone_equals_that_of_all_slots(model: TAP, image_features: Tensor) -> None:
    coords_xy, labels = tiny_prompts(CONFIG)
    every = decode(model, image_features, (coords_xy, labels))
    routed = decode(model, image_features, (coords_xy, labels), all_slots=False)
    torch.testing.assert_close(
        routed.mask_logits[:, 0], every.select(every.mask_logits), rtol=1e-4, atol=2e-5
    )
    assert torch.equal(routed.mask_index, every.mask_index)
    torch.testing.assert_close(routed.semantic_tokens, every.semantic_tokens)


def test_a_region_alone_equals_the_same_region_in_a_batch(
    model: TAP, image_features: Tensor
) -> None:
    coords_xy, labels = tiny_prompts(CONFIG)
    together = decode(model, image_features, (coords_xy, labels))
    for region in range(IMAGES * PROMPTS):
        image, prompt = divmod(region, PROMPTS)
        one_image, one_prompt = slice(image, image + 1), slice(prompt, prompt + 1)
        prompts = coords_xy[one_image, one_prompt], labels[one_image, one_prompt]
        alone = decode(model, image_features[one_image], prompts)
        assert_regions_equal(alone, together, slice(region, region + 1))


def test_the_second_image_does_not_change_with_the_first(model: TAP) -> None:
    pixels, (coords_xy, labels) = tiny_pixels(CONFIG), tiny_prompts(CONFIG)
    before = decode(model, model.encode_images(pixels), (coords_xy, labels))
    pixels[0] += 1.0
    coords_xy[0] = CONFIG.image_size - coords_xy[0]
    labels[0, :, 0] = 0
    after = decode(model, model.encode_images(pixels), (coords_xy, labels))
    for name in FIELDS:
        old, new = getattr(before, name), getattr(after, name)
        torch.testing.assert_close(old[PROMPTS:], new[PROMPTS:], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(old[:PROMPTS], new[:PROMPTS])


def test_score_captions(model: TAP) -> None:
    semantic_tokens = torch.randn(3, CONFIG.decoder_dim)
    token_ids = torch.randint(CONFIG.vocabulary_size, (3, 5))
    logits = model.score_captions(semantic_tokens, token_ids)
    assert logits.shape == (3, 5, CONFIG.vocabulary_size)
    assert torch.equal(logits, model.text_decoder(semantic_tokens, token_ids))


def test_inputs_are_not_modified(model: TAP) -> None:
    inputs = [tiny_pixels(CONFIG), *tiny_prompts(CONFIG)]
    copies = [value.clone() for value in inputs]
    decode(model, model.encode_images(inputs[0]), inputs[1:])
    for value, copy in zip(inputs, copies, strict=True):
        assert torch.equal(value, copy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype, image_features: Tensor) -> None:
    model = tiny_tap(CONFIG)
    exact_matrix = model.prompt_encoder.position_encoding.coord_matrix.clone()
    coords_xy, labels = tiny_prompts(CONFIG)
    exact = decode(model, image_features, (coords_xy, labels))
    model.to(dtype)
    assert (model.dtype, model.device) == (dtype, torch.device("cpu"))
    assert torch.equal(model.prompt_encoder.position_encoding.coord_matrix, exact_matrix)
    features = model.encode_images(tiny_pixels(CONFIG).to(dtype))
    outputs = decode(model, features, (coords_xy, labels))  # coordinates stay float32
    assert outputs.iou_scores.dtype == torch.float32
    for name in FIELDS:
        value, wanted = getattr(outputs, name), getattr(exact, name)
        assert value.dtype == (torch.float32 if name == "iou_scores" else dtype)
        assert (value.float() - wanted).abs().max() < 0.2 * wanted.abs().max(), name


# --- training ---


def every_output(model: TAP) -> Tensor:
    """A scalar that depends on every output."""
    outputs = decode(model, model.encode_images(tiny_pixels(CONFIG)), tiny_prompts(CONFIG))
    token_ids = torch.randint(CONFIG.vocabulary_size, (len(outputs), 7))
    logits = model.score_captions(outputs.select(outputs.semantic_tokens), token_ids)
    values = [getattr(outputs, name) for name in FIELDS] + [logits]
    generator = torch.Generator().manual_seed(3)
    return sum((v * torch.randn(v.shape, generator=generator)).sum() for v in values)


@pytest.mark.parametrize("is_training", [True, False])
def test_every_parameter_gets_a_gradient(is_training: bool) -> None:
    model = tiny_tap(CONFIG).train(is_training)
    every_output(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # a shift of all keys changes no softmax; a constant before BatchNorm is taken out again
        cancels = name.endswith("k_proj.bias") or (
            is_training and name in BEFORE_BATCH_NORM and name.endswith("bias")
        )
        assert cancels or parameter.grad.abs().max() > 1e-6, name
    assert not model.prompt_encoder.position_encoding.coord_matrix.requires_grad


BEFORE_BATCH_NORM = ("image_encoder.norm.bias", "image_encoder.cross_window.3.conv3.1.bias")


def test_backward_works_with_all_dropouts() -> None:
    torch.manual_seed(0)
    model = tiny_tap(CONFIG, drop_path=0.2, decoder_dropout=0.1, text_dropout=0.3).train()
    every_output(model).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


@pytest.mark.parametrize("frozen", ["image_encoder", "text_decoder"])
def test_a_frozen_part_gets_no_gradient(frozen: str) -> None:
    model = tiny_tap(CONFIG)
    getattr(model, frozen).requires_grad_(False)
    every_output(model).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name


def test_dropouts_reach_their_part() -> None:
    model = TAP(CONFIG, drop_path=0.3, decoder_dropout=0.1, text_dropout=0.2)
    rates = {
        part: {m.p for m in getattr(model, part).modules() if isinstance(m, nn.Dropout)}
        for part in ("image_encoder", "image_decoder", "text_decoder")
    }
    assert rates == {"image_encoder": set(), "image_decoder": {0.1}, "text_decoder": {0.2}}
    paths = [m.p for m in model.image_encoder.modules() if isinstance(m, DropPath)]
    assert (paths[0], paths[-1]) == (0.0, 0.3)


def test_state_dict_round_trip(model: TAP, image_features: Tensor) -> None:
    other = tiny_tap(CONFIG, seed=7)
    prompts = tiny_prompts(CONFIG)
    expected = decode(model, image_features, prompts)
    assert not torch.allclose(
        decode(other, image_features, prompts).mask_logits, expected.mask_logits
    )
    other.load_state_dict(model.state_dict())
    assert torch.equal(decode(other, image_features, prompts).mask_logits, expected.mask_logits)
