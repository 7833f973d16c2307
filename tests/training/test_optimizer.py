"""Parameter groups, the schedule, and settings that are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import tiny_tap
from tokenize_anything.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)


def is_norm(name: str) -> bool:
    """Whether a parameter belongs to a norm layer, by the names of the model."""
    parts = name.split(".")
    # ConvNorm is a pair: 0 the convolution, 1 the BatchNorm
    is_batch_norm = parts[0] == "image_encoder" and parts[-2] == "1" and parts[1] != "blocks"
    return is_batch_norm or any("norm" in part for part in parts[:-1])


def test_every_trainable_parameter_is_in_one_group_and_norms_are_not_decayed() -> None:
    model = tiny_tap().requires_grad_(True)
    model.text_decoder.requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in (decayed, kept)]  # type: ignore[attr-defined]
    trainable = [name for name in names.values() if not name.startswith("text_decoder.")]
    assert sorted(groups[0] + groups[1]) == sorted(trainable)
    assert sorted(groups[1]) == sorted(name for name in trainable if is_norm(name))
    assert "image_encoder.blocks.0.mlp.fc1.bias" in groups[0]  # biases are decayed
    assert "image_encoder.pos_embed" in groups[0]
    assert "image_encoder.neck.0.1.weight" in groups[1]


def test_deeper_blocks_learn_slower() -> None:
    """Width of the rate of block n of 4: decay ** (4 - n); patches decay ** 5; the rest 1."""
    model = tiny_tap().requires_grad_(True)
    groups = parameter_groups(model, 0.3, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    assert sorted(found) == sorted(names.values())
    for name, (scale, decay) in found.items():
        parts = name.split(".")
        if parts[:2] == ["image_encoder", "blocks"]:
            expected = 0.5 ** (4 - int(parts[2]))
        else:
            expected = 0.5**5 if parts[1] in ("patch_embed", "pos_embed") else 1.0
        assert scale == expected, name
        assert decay == (0.0 if is_norm(name) else 0.3), name
    assert found["image_encoder.cross_window.0.conv1.0.weight"][0] == 1.0


def test_the_rate_is_scaled_by_group() -> None:
    model = tiny_tap().requires_grad_(True)
    optimizer = build_optimizer(model, OptimizerConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 0.8)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.8 * group["lr_scale"]
    assert {group["lr"] for group in optimizer.param_groups} == {0.8 * 0.5**n for n in range(6)}


def test_the_optimizer_takes_its_settings() -> None:
    config = OptimizerConfig(peak_lr=0.02, weight_decay=0.3, betas=(0.8, 0.95))
    optimizer = build_optimizer(nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5)), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    groups = [(g["weight_decay"], g["betas"], g["lr"]) for g in optimizer.param_groups]
    assert groups == [(0.3, (0.8, 0.95), 0.02), (0.0, (0.8, 0.95), 0.02)]
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


SCHEDULE = OptimizerConfig(peak_lr=0.8, warmup_steps=4, final_lr_ratio=0.1)


@pytest.mark.parametrize(
    "step, expected",
    [
        (0, 0.2),
        (1, 0.4),
        (3, 0.8),
        (4, 0.8),
        (9, 0.8 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))),
        (14, 0.8 * 0.55),
        (24, 0.08),
        (99, 0.08),
    ],
)
def test_warm_up_then_cosine(step: int, expected: float) -> None:
    assert learning_rate(step, 24, SCHEDULE) == pytest.approx(expected)


def test_a_schedule_without_warm_up_starts_at_the_peak() -> None:
    config = OptimizerConfig(peak_lr=0.8, warmup_steps=0)
    assert learning_rate(0, 10, config) == 0.8
    assert learning_rate(10, 10, config) == pytest.approx(0.008)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"peak_lr": 0.0}, "peak_lr: expected more than 0, got 0.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm: expected more than 0"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, got -1"),
        ({"weight_decay": -0.1}, "weight_decay: expected at least 0"),
        ({"layer_decay": 0.0}, "layer_decay: expected over 0 to 1, got 0.0"),
        ({"layer_decay": 1.5}, "layer_decay: expected over 0 to 1, got 1.5"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**values)
