"""Training a small head alone, on tokens that a frozen model has left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenize_anything.training.config import require_counts, require_fractions


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a head is trained.

    peak_lr: learning rate of AdamW, falling to 0 along a cosine.
    token_dropout: share of a token's channels set to zero.
    token_noise: Gaussian noise on tokens, in standard deviations of each channel.
    num_epochs: how often each token is drawn, on average.
    """

    peak_lr: float = 1e-3
    weight_decay: float = 0.05
    token_dropout: float = 0.3
    token_noise: float = 0.15
    batch_size: int = 256
    num_epochs: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, ("batch_size", "num_epochs"))
        require_fractions(self, ("token_dropout",))


def fit_head(
    head: nn.Module,
    tokens: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    config: HeadConfig,
) -> None:
    """Train a head in place.

    Args:
        head: tokens (n,C) to predictions (n,…).
        tokens: (S,C), at least one.
        loss: of the rows (n,) of `tokens` that were drawn and their predictions, a scalar.
        config: how.
    """
    tokens = tokens.float()
    deviation = tokens.std(dim=0, unbiased=False)
    head.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.peak_lr, weight_decay=config.weight_decay
    )
    generator = torch.Generator().manual_seed(config.seed)
    num_steps = math.ceil(config.num_epochs * len(tokens) / config.batch_size)
    for step in range(num_steps):
        lr = config.peak_lr * (1 + math.cos(math.pi * step / num_steps)) / 2
        optimizer.param_groups[0]["lr"] = lr
        rows = torch.randint(len(tokens), (config.batch_size,), generator=generator)
        shape = (len(rows), tokens.shape[1])
        noise = torch.randn(shape, generator=generator) * config.token_noise * deviation
        kept = torch.rand(shape, generator=generator) >= config.token_dropout
        scale = 1 / (1 - config.token_dropout) if config.token_dropout < 1 else 0.0
        value = loss(rows, head((tokens[rows] + noise) * kept * scale))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    head.requires_grad_(False)
