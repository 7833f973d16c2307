"""AdamW with the paper's parameter groups, and its learning-rate schedule (section 4.1)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and schedule.

    peak_lr: reached after `warmup_steps`, then a cosine down to `final_lr_ratio` of it.
    weight_decay: of all parameters but those of norm layers.
    max_grad_norm: gradients longer than this are shortened.
    layer_decay: the rate of an encoder block is this times that of the block above it; 1 gives all
        the same (the paper says nothing of it; 0.75 to 0.9 are usual from pre-trained weights).
    """

    peak_lr: float = 1e-3
    final_lr_ratio: float = 0.01
    warmup_steps: int = 300
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected over 0 to 1, got {self.layer_decay}")
        for name in ("peak_lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Decay everything but the parameters of norm layers, as the v1.1 weights were trained.

    A group's "lr_scale" is what its learning rate is multiplied by.

    Args:
        model: its trainable parameters are grouped.
        weight_decay: of those that decay.
        layer_decay: see `OptimizerConfig`.
    """
    norm_parameters = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False)
    }
    depth = 2 + max((_block(name) for name, _ in model.named_parameters()), default=-1)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, False): [], (1.0, True): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = layer_decay ** (depth - _encoder_layer(name, depth))
            groups.setdefault((scale, id(parameter) in norm_parameters), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if is_norm else weight_decay, "lr_scale": scale}
        for (scale, is_norm), parameters in groups.items()
    ]


def _block(name: str) -> int:
    """Number of the encoder block that a parameter belongs to, -1 for none."""
    found = re.search(r"image_encoder\.blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _encoder_layer(name: str, depth: int) -> int:
    """How deep a parameter lies: 0 for the patches, n + 1 for block n, `depth` above them."""
    if re.search(r"image_encoder\.(patch_embed|pos_embed)", name):
        return 0
    return _block(name) + 1 or depth


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas)


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up to the peak, then a cosine that ends at peak_lr * final_lr_ratio."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.peak_lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use `value` from now on, times the "lr_scale" of each group."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)


def shorten_gradients(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
    """Scale all gradients so that they are at most this long. Returns how long they were."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if hasattr(grad_norm, "full_tensor"):  # parameters are spread over processes
        grad_norm = grad_norm.full_tensor()
    return grad_norm.item()
