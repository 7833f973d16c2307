"""Windowed encoder: window order, bias table, the whole forward against a plain one."""

from __future__ import annotations

import pytest
import torch

from tests.modeling import reference
from tests.tiny import randomize, tiny_config, tiny_pixels
from tokenize_anything.modeling.image_encoder import (
    EncoderBlock,
    ImageEncoder,
    merge_windows,
    partition_windows,
    relative_position_index,
)
from tokenize_anything.modeling.layers import DropPath


def test_windows_and_their_tokens_are_row_major() -> None:
    batch, height, width, window = 2, 6, 9, 3
    tokens = torch.arange(batch * height * width * 5).reshape(batch, height, width, 5)
    windows = partition_windows(tokens, window)
    expected = [
        tokens[image, top : top + window, left : left + window].reshape(window**2, 5)
        for image in range(batch)
        for top in range(0, height, window)
        for left in range(0, width, window)
    ]
    assert torch.equal(windows, torch.stack(expected))


@pytest.mark.parametrize(
    ("height", "width", "window"), [(6, 9, 3), (9, 6, 3), (4, 4, 4), (2, 8, 1)]
)
def test_merging_windows_undoes_partitioning(height: int, width: int, window: int) -> None:
    tokens = torch.randn(2, height, width, 5)
    windows = partition_windows(tokens, window)
    assert torch.equal(merge_windows(windows, window, height, width), tokens)


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_relative_position_index_formula(window: int) -> None:
    index = relative_position_index(window)
    assert index.dtype == torch.int64
    for query in range(window**2):
        for key in range(window**2):
            dy = query // window - key // window
            dx = query % window - key % window
            assert index[query, key] == (dy + window - 1) * (2 * window - 1) + dx + window - 1


def test_published_window_uses_every_bias() -> None:
    index = relative_position_index(16)
    assert index.shape == (256, 256)
    assert index.unique().tolist() == list(range(961))
    assert (index[0, 0], index[0, 1], index[0, 16], index[1, 0]) == (480, 479, 449, 481)


@pytest.mark.parametrize("depth", [4, 8])
def test_encoder_equals_the_plain_one(depth: int) -> None:
    config = tiny_config(encoder_depth=depth)
    encoder = randomize(ImageEncoder(config), seed=depth).eval()
    pixels = tiny_pixels(config)
    features = encoder(pixels)
    assert features.shape == (2, config.decoder_dim, config.grid_size, config.grid_size)
    weights = reference.weights_of(encoder)
    for image, actual in zip(pixels.double(), features.double(), strict=True):
        expected = reference.image_encoder(
            image,
            weights,
            patch=config.patch_size,
            window=config.window_size,
            depth=depth,
            num_heads=config.encoder_heads,
        )
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=5e-5)


def test_images_of_a_batch_do_not_mix() -> None:
    config = tiny_config()
    encoder = randomize(ImageEncoder(config)).eval()
    pixels = tiny_pixels(config, images=3)
    together = encoder(pixels)
    for index in range(3):
        alone = encoder(pixels[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-5, atol=1e-5)


def test_fresh_cross_window_blocks_are_the_identity() -> None:
    config = tiny_config()
    encoder = ImageEncoder(config).eval()
    x = torch.randn(2, config.encoder_dim, 3, 5)
    for block in encoder.cross_window:
        assert torch.equal(block(x), x)


def test_bias_tables_start_at_zero_and_the_index_is_no_weight() -> None:
    state = ImageEncoder(tiny_config()).state_dict()
    tables = {name: value for name, value in state.items() if name.endswith("bias.weight")}
    assert len(tables) == 4
    for table in tables.values():
        assert table.shape == (2, 25)
        assert not table.any()
    assert not [name for name in state if name.endswith("index")]


def test_drop_path_rises_linearly_to_the_last_block() -> None:
    encoder = ImageEncoder(tiny_config(encoder_depth=8), drop_path=0.35)
    rates = [module.p for module in encoder.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.05 * index for index in range(8)])


@pytest.mark.parametrize("silenced", ["attn.proj", "mlp.fc2"])
def test_drop_path_takes_either_branch_from_whole_windows(silenced: str) -> None:
    config = tiny_config()
    block = randomize(EncoderBlock(config, drop_path=0.5)).requires_grad_(False)
    for parameter in block.get_submodule(silenced).parameters():
        parameter.zero_()  # leaves one branch
    x = torch.randn(64, config.window_size**2, config.encoder_dim)
    branch = block.eval()(x) - x
    out = block.train()(x) - x
    is_dropped = (out == 0).flatten(1).all(dim=1)
    assert 16 < is_dropped.sum() < 48
    torch.testing.assert_close(out[~is_dropped], 2 * branch[~is_dropped], rtol=1e-4, atol=1e-5)


def test_drop_path_acts_in_training_only() -> None:
    config = tiny_config()
    encoder = randomize(ImageEncoder(config, drop_path=0.5))
    pixels = tiny_pixels(config)
    for norm in encoder.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()  # leaves drop path as the only difference
    encoder.requires_grad_(False)
    outputs = torch.stack([encoder(pixels) for _ in range(5)])
    assert not torch.allclose(outputs[0], outputs[1:])
    encoder.eval()
    assert torch.equal(encoder(pixels), encoder(pixels))
