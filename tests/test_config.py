"""Model configuration: cross-field rules and their messages, JSON, presets."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from tests.tiny import tiny_config
from tokenize_anything.config import PRESETS, PixelConfig, TAPConfig


@pytest.mark.parametrize("make", [*PRESETS.values(), tiny_config], ids=[*PRESETS, "tiny_config"])
def test_json_round_trip(make: Any) -> None:
    config = make()
    assert TAPConfig.from_json(config.to_json()) == config


def test_json_round_trip_of_every_field() -> None:
    pixels = PixelConfig(mean=(1.5, 2.0, 3.0), std=(4.0, 5.0, 6.5), channel_order="RGB")
    config = tiny_config(pixels=pixels)
    values = json.loads(config.to_json())
    assert set(values) == {field.name for field in dataclasses.fields(TAPConfig)}
    assert values["pixels"] == {
        "mean": [1.5, 2.0, 3.0], "std": [4.0, 5.0, 6.5], "channel_order": "RGB",
    }  # fmt: skip
    copy = TAPConfig.from_json(config.to_json())
    assert copy == config
    assert copy.pixels.mean == (1.5, 2.0, 3.0)
    assert hash(copy) == hash(config)


def test_absent_keys_take_the_defaults() -> None:
    assert TAPConfig.from_json("{}") == TAPConfig()
    assert TAPConfig.from_dict({"text_depth": 3}) == TAPConfig(text_depth=3)


def test_from_dict_does_not_modify_its_input() -> None:
    values = {"text_depth": 3, "pixels": {"channel_order": "RGB"}}
    TAPConfig.from_dict(values)
    assert values == {"text_depth": 3, "pixels": {"channel_order": "RGB"}}


def test_derived_sizes() -> None:
    config = TAPConfig(
        image_size=96, patch_size=8, window_size=3, decoder_dim=160, text_dim=192, encoder_dim=36
    )
    assert config.grid_size == 12
    assert config.decoder_heads == 5
    assert config.text_heads == 3


def test_published_pixel_facts() -> None:
    pixels = TAPConfig().pixels
    assert pixels.mean == (103.53, 116.28, 123.675)
    assert pixels.std == (57.375, 57.12, 58.395)
    assert pixels.channel_order == "BGR"


def refused(match: str) -> AbstractContextManager[Any]:
    return pytest.raises(ValueError, match=match)


@pytest.mark.parametrize(
    ("sizes", "raises"),
    [
        ({"text_depth": 1}, nullcontext()),
        ({"text_depth": 0}, refused("text_depth must be a positive integer, got 0")),
        ({"text_depth": -3}, refused("text_depth must be a positive integer, got -3")),
        ({"text_depth": 2.0}, refused("text_depth must be a positive integer, got 2.0")),
        ({"text_depth": True}, refused("text_depth must be a positive integer, got True")),
        ({"text_depth": None}, refused("text_depth must be a positive integer, got None")),
        ({"image_size": 1040}, refused(r"image_size must be a multiple .* = 256, got 1040")),
        ({"window_size": 7}, refused(r"patch_size \* window_size = 112, got 1024")),
        ({"encoder_heads": 7}, refused("multiple of encoder_heads, got 768 and 7")),
        ({"encoder_depth": 6}, refused("encoder_depth must be a multiple of 4, got 6")),
        ({"decoder_dim": 48}, refused("decoder_dim must be a multiple of 32, got 48")),
        ({"text_dim": 96}, refused("text_dim must be a multiple of 64, got 96")),
        ({"max_text_length": 3}, nullcontext()),
        ({"max_text_length": 2}, refused("max_text_length must be at least 3, got 2")),
    ],
)
def test_sizes_are_checked(sizes: dict[str, Any], raises: AbstractContextManager[Any]) -> None:
    with raises:
        TAPConfig(**sizes)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"TAPConfig: encoder_depth .*; text_dim .* got 65"):
        TAPConfig(encoder_depth=5, text_dim=65)
    with pytest.raises(ValueError, match=r"encoder_depth must be a positive .*; text_dim must be"):
        TAPConfig(encoder_depth=0, text_dim="wide")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "raises"),
    [
        ({"mean": [1, 2, 3]}, nullcontext()),
        ({"mean": (1.0, 2.0)}, refused("mean: expected 3 finite numbers, one per channel, got")),
        (
            {"std": (1.0, 2.0, 3.0, 4.0)},
            refused("std: expected 3 finite numbers, one per channel, got"),
        ),
        ({"std": (1.0, 0.0, 2.0)}, refused("std: expected three positive numbers, got")),
        ({"channel_order": "GRB"}, refused("channel_order: expected 'BGR' or 'RGB', got 'GRB'")),
    ],
)
def test_pixel_facts_are_checked(
    facts: dict[str, Any], raises: AbstractContextManager[Any]
) -> None:
    with raises:
        PixelConfig(**facts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth: 4", "config: expected JSON, got 'depth: 4'"),
        ('{"depth": 4}', r"config: unknown keys \['depth'\]; known keys are .*'encoder_depth'"),
        ('{"pixels": {"scale": 1}}', r"config.pixels: unknown keys \['scale'\]; .*'mean'"),
        ('{"text_dim": 100}', "text_dim must be a multiple of 64, got 100"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAPConfig.from_json(text)


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TAPConfig().text_depth = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        TAPConfig(1024)  # type: ignore[call-arg]


def test_presets_are_the_four_models() -> None:
    assert list(PRESETS) == ["tap_tiny", "tap_vit_b", "tap_vit_l", "tap_vit_h"]
    depths = [PRESETS[name]().encoder_depth for name in PRESETS]
    assert depths == [12, 12, 24, 32]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "config: expected keys with values"),
        ("5", "config: expected keys with values"),
        ('{"pixels": null}', "config: expected keys with values, pixels too"),
        ('{"pixels": {"mean": 5}}', "mean: expected 3 finite numbers, one per channel, got 5"),
        ('{"pixels": {"mean": [1, 2, NaN]}}', "mean: expected 3 finite numbers"),
        ('{"pixels": {"std": [1, 2]}}', "std: expected 3 finite numbers"),
    ],
)
def test_json_of_another_shape_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TAPConfig.from_json(text)
