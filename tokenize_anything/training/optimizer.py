"""AdamW with the paper's parameter groups, and its learning-rate schedule (section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and schedule.

    peak_lr: reached after `warmup_steps`, then a cosine down to `final_lr_ratio` of it.
    weight_decay: of all parameters but those of norm layers.
    max_grad_norm: gradients longer than this are shortened.
    """

    peak_lr: float = 1e-3
    final_lr_ratio: float = 0.01
    warmup_steps: int = 300
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("peak_lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay everything but the parameters of norm layers, as the v1.1 weights were trained."""
    norm_parameters = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False)
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if id(p) not in norm_parameters]
    kept = [p for p in trainable if id(p) in norm_parameters]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas)


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up to the peak, then a cosine that ends at peak_lr * final_lr_ratio."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.peak_lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use `value` for all parameters from now on."""
    for group in optimizer.param_groups:
        group["lr"] = value


def descend(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, max_grad_norm: float, where: str
) -> float:
    """One update from a scalar loss; the parameters stay as they are when it breaks.

    Args:
        optimizer: holds the parameters.
        loss: with its graph.
        max_grad_norm: longest gradient.
        where: step and samples, for the error.

    Returns:
        Length of the gradient before it was shortened.

    Raises:
        FloatingPointError: loss or gradient is NaN or infinite; the message holds `where`.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is {loss.item()} at {where}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
    if not math.isfinite(grad_norm):
        raise FloatingPointError(f"gradient has length {grad_norm} at {where}")
    optimizer.step()
    return grad_norm
