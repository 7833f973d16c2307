"""What a head is shown, and how far a step goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tokenize_anything.training.token_heads import HeadConfig, fit_head

WIDTHS = torch.tensor([0.5, 2.0, 7.0])


def shown_to_a_head(**changes: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens drawn and what the head saw in their place, over many steps."""
    tokens = torch.randn(101, 3, generator=torch.Generator().manual_seed(0)) * WIDTHS + 20
    head, seen, drawn = nn.Linear(3, 1), [], []
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))

    def loss(rows: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        drawn.append(tokens[rows])
        return found.square().mean()

    config = HeadConfig(**{"token_noise": 0.0, "token_dropout": 0.0, "num_epochs": 90, **changes})
    fit_head(head, tokens, loss, config)
    return torch.cat(drawn), torch.cat(seen)


def test_tokens_are_shown_as_they_are_without_noise():
    drawn, seen = shown_to_a_head()
    torch.testing.assert_close(seen, drawn)


def test_noise_is_in_deviations_of_each_channel():
    drawn, seen = shown_to_a_head(token_noise=0.3)
    torch.testing.assert_close((seen - drawn).std(dim=0), 0.3 * WIDTHS, rtol=0.15, atol=0)


def test_dropped_channels_are_zero_and_the_others_larger():
    drawn, seen = shown_to_a_head(token_dropout=0.25)
    assert (seen == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(seen[seen != 0], (drawn / 0.75)[seen != 0])


def test_the_first_step_has_the_peak_rate_and_later_ones_fall():
    """Adam's first step moves every weight by the learning rate, whatever its gradient."""
    for batch_size, expected in ((11, 0.01), (6, 0.015)):  # one step; two, the second of half rate
        head = nn.Linear(3, 1, bias=False)
        before = head.weight.detach().clone()
        config = HeadConfig(
            peak_lr=0.01, weight_decay=0.0, token_noise=0.0, token_dropout=0.0, num_epochs=1,
            batch_size=batch_size,
        )  # fmt: skip
        fit_head(head, torch.ones(11, 3), lambda rows, found: found.mean(), config)
        torch.testing.assert_close(before - head.weight, torch.full((1, 3), expected))
    assert not head.weight.requires_grad
