"""Starting from other weights: the same ones, another image size, and what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_config, tiny_tap
from tokenize_anything.checkpoints import save_model
from tokenize_anything.config import PixelConfig
from tokenize_anything.training.initialize import (
    POSITION_TABLE,
    add_sine_positions,
    initialize_from,
    resize_position_table,
    sine_position_table,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.safetensors"
    return save_model(tiny_tap(seed=1), path)


def cubic_weights(position: float, side: int, a: float = -0.75) -> np.ndarray:
    """(side,) weights of the cubic convolution kernel at a position, the border repeated."""
    weights = np.zeros(side)
    base = int(np.floor(position))
    for offset in range(-1, 3):
        distance = abs(position - (base + offset))
        if distance <= 1:
            value = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        else:
            value = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        weights[min(max(base + offset, 0), side - 1)] += value
    return weights


@pytest.mark.parametrize("old, new", [(3, 5), (6, 4), (2, 7)])
def test_a_table_is_resized_bicubically(old: int, new: int) -> None:
    table = torch.randn(old * old, 3)
    axis = np.stack([cubic_weights((i + 0.5) * old / new - 0.5, old) for i in range(new)])
    grid = table.double().numpy().reshape(old, old, 3)
    expected = np.einsum("yi,xj,ijc->yxc", axis, axis, grid).reshape(new * new, 3)
    resized = resize_position_table(table, new)
    np.testing.assert_allclose(resized.numpy(), expected, atol=1e-5)


def test_a_table_of_the_right_size_stays() -> None:
    table = torch.randn(9, 2).half()
    assert resize_position_table(table, 3) is table
    assert resize_position_table(table, 4).dtype == torch.float16


def test_the_same_size_gives_the_same_weights(source: Path) -> None:
    model = tiny_tap(seed=2, drop_path=0.3)
    initialize_from(model, source)
    expected = tiny_tap(seed=1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("image_size", [24, 72])
def test_another_image_size_resizes_the_position_table_alone(source: Path, image_size: int) -> None:
    model = tiny_tap(tiny_config(image_size=image_size), seed=2)
    initialize_from(model, source)
    expected: dict[str, Tensor] = tiny_tap(seed=1).state_dict()
    expected[POSITION_TABLE] = resize_position_table(expected[POSITION_TABLE], image_size // 8)
    assert len(model.image_encoder.pos_embed) == (image_size // 8) ** 2
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("fresh", [("image_decoder",), ("image_encoder", "prompt_encoder")])
def test_fresh_parts_keep_what_they_have(source: Path, fresh: tuple[str, ...]) -> None:
    model, own, other = tiny_tap(seed=2), tiny_tap(seed=2).state_dict(), tiny_tap(seed=1)
    initialize_from(model, source, fresh=fresh)
    for name, value in model.state_dict().items():
        expected = own if name.partition(".")[0] in fresh else other.state_dict()
        assert torch.equal(value, expected[name]), name


def test_a_fresh_part_may_be_of_another_size(source: Path) -> None:
    config = tiny_config(semantic_dim=31)
    model, own = tiny_tap(config, seed=2), tiny_tap(config, seed=2).state_dict()
    initialize_from(model, source, fresh=("image_decoder",))
    for name, value in model.state_dict().items():
        if name.startswith("image_decoder."):
            assert torch.equal(value, own[name]), name


def test_stored_half_precision_becomes_float32(tmp_path: Path) -> None:
    path = save_model(tiny_tap(seed=1), tmp_path / "half.safetensors", dtype="float16")
    model = tiny_tap(seed=2)
    initialize_from(model, path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = tiny_tap(seed=1).image_encoder.pos_embed
    torch.testing.assert_close(model.image_encoder.pos_embed, expected, rtol=1e-3, atol=1e-3)


def test_other_sizes_are_refused_and_listed(source: Path) -> None:
    model = tiny_tap(tiny_config(semantic_dim=31, text_depth=2))
    with pytest.raises(ValueError, match=r"init_from: .*source\.safetensors") as error:
        initialize_from(model, source)
    message = str(error.value)
    assert "image_decoder.semantic_head.layers.0.weight is [29, 64] floating-point" in message
    assert "unexpected" in message and "text_decoder.blocks.2.norm1.bias" in message


def test_other_pixels_are_refused(source: Path) -> None:
    model = tiny_tap(tiny_config(pixels=PixelConfig(channel_order="RGB")))
    with pytest.raises(ValueError, match=r"source\.safetensors expects .*BGR.*says .*RGB"):
        initialize_from(model, source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        initialize_from(tiny_tap(), tmp_path / "nothing.safetensors")


def test_sine_table_against_its_formula() -> None:
    table = sine_position_table(3, 8)
    assert table.shape == (9, 8)
    for row in range(3):
        for column in range(3):
            expected = []
            for position in (column, row):
                angles = [position, position / 100.0]
                expected += [np.sin(angle) for angle in angles] + [
                    np.cos(angle) for angle in angles
                ]
            np.testing.assert_allclose(table[3 * row + column].numpy(), expected, atol=1e-6)


def test_sine_table_needs_four_parts() -> None:
    with pytest.raises(ValueError, match="dim: expected a multiple of 4, got 6"):
        sine_position_table(3, 6)


def test_sine_positions_are_added_at_their_scale() -> None:
    model = tiny_tap(dataclasses.replace(tiny_config(), encoder_dim=24, encoder_heads=2), seed=4)
    before = model.image_encoder.pos_embed.detach().clone()
    add_sine_positions(model, 2.5)
    added = model.image_encoder.pos_embed.detach() - before
    table = sine_position_table(model.config.grid_size, model.config.encoder_dim)
    torch.testing.assert_close(added, 2.5 * table, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid_size, dim", [(3, 8), (5, 12)])
def test_sine_positions_equal_plain_loops(grid_size: int, dim: int) -> None:
    table = sine_position_table(grid_size, dim)
    assert table.shape == (grid_size**2, dim)
    quarter = dim // 4
    for row in range(grid_size):
        for column in range(grid_size):
            code = table[row * grid_size + column].tolist()
            for axis, position in enumerate((column, row)):  # columns first
                for i in range(quarter):
                    angle = position / 10000 ** (i / quarter)
                    start = axis * dim // 2
                    assert code[start + i] == pytest.approx(np.sin(angle), abs=1e-6)
                    assert code[start + quarter + i] == pytest.approx(np.cos(angle), abs=1e-6)


def test_sine_positions_are_added_to_the_position_table() -> None:
    config = tiny_config(encoder_dim=24)
    model, before = tiny_tap(config), tiny_tap(config).state_dict()
    add_sine_positions(model, 4.0)
    expected = before[POSITION_TABLE] + 4 * sine_position_table(6, 24)
    torch.testing.assert_close(model.image_encoder.pos_embed.detach(), expected)
    for name, value in model.state_dict().items():
        assert name == POSITION_TABLE or torch.equal(value, before[name]), name


def test_sine_positions_need_whole_quarters() -> None:
    with pytest.raises(ValueError, match="dim: expected a multiple of 4, got 22"):
        sine_position_table(3, 22)
