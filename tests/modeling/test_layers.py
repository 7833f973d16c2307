"""Shared blocks against plain formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.modeling import reference
from tests.tiny import randomize
from tokenize_anything.modeling.layers import MLP, ConvNorm, DropPath, PredictionHead


@pytest.mark.parametrize(
    ("activation", "formula"), [(nn.GELU, reference.gelu), (nn.ReLU, reference.relu)]
)
def test_mlp(activation: type[nn.Module], formula: Callable[[Tensor], Tensor]) -> None:
    mlp = randomize(MLP(7, 11, activation))
    x = torch.randn(3, 5, 7)
    weights = reference.weights_of(mlp)
    hidden = formula(reference.linear(x.double(), weights, "fc1"))
    expected = reference.linear(hidden, weights, "fc2")
    torch.testing.assert_close(mlp(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_mlp_defaults_to_the_exact_gelu() -> None:
    torch.testing.assert_close(MLP(2, 3).activation(torch.tensor(1.0)), torch.tensor(0.8413447))


def test_prediction_head() -> None:
    head = randomize(PredictionHead(7, 13, 5))
    x = torch.randn(3, 7)
    weights = {f"head.{name}": value for name, value in reference.weights_of(head).items()}
    expected = reference.prediction_head(x.double(), weights, "head")
    torch.testing.assert_close(head(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_conv_norm_keeps_height_and_width(kernel_size: int) -> None:
    block = randomize(ConvNorm(7, 5, kernel_size)).eval()
    x = torch.randn(2, 7, 3, 11)
    weights = {f"block.{name}": value for name, value in reference.weights_of(block).items()}
    assert "block.0.bias" not in weights
    expected = torch.stack([reference.conv_norm(image, weights, "block") for image in x.double()])
    torch.testing.assert_close(block(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    samples, p = 4000, 0.3
    drop_path = DropPath(p).train()
    x = torch.randn(samples, 3, 2)
    torch.manual_seed(0)
    out = drop_path(x)
    is_dropped = (out == 0).flatten(1).all(dim=1)
    torch.testing.assert_close(out[~is_dropped], x[~is_dropped] / (1 - p))
    spread = (p * (1 - p) / samples) ** 0.5
    assert abs(is_dropped.float().mean().item() - p) < 4 * spread


def test_drop_path_is_the_identity_outside_training_and_at_zero() -> None:
    x = torch.randn(5, 3)
    assert torch.equal(DropPath(0.9).eval()(x), x)
    assert torch.equal(DropPath(0.0).train()(x), x)


def test_drop_path_leaves_its_input_alone() -> None:
    x = torch.ones(7, 3)
    DropPath(0.5).train()(x)
    assert torch.equal(x, torch.ones(7, 3))
