"""One update from the gradients of one or several parts, and what float16 adds."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from tokenize_anything.training.gradient_step import GradientStep

CPU = torch.device("cpu")


def make_problem(max_grad_norm: float = 100.0, **options: bool) -> tuple[nn.Linear, GradientStep]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    return layer, GradientStep(optimizer, max_grad_norm, CPU, **options)


def inputs(rows: int = 6) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))


def plain_update(layer: nn.Linear, loss: Tensor, max_norm: float) -> tuple[list[Tensor], float]:
    """New values after one step of SGD, written out, and the gradient's length."""
    grads = torch.autograd.grad(loss, list(layer.parameters()))
    length = float(torch.cat([grad.flatten() for grad in grads]).norm())
    factor = min(1.0, max_norm / length)
    pairs = zip(layer.parameters(), grads, strict=True)
    return [(p - 0.1 * factor * grad).detach() for p, grad in pairs], length


@pytest.mark.parametrize("is_float16", [False, True])
@pytest.mark.parametrize("max_grad_norm", [0.5, 100.0])
def test_parts_are_added_up_then_shortened(is_float16: bool, max_grad_norm: float) -> None:
    layer, gradients = make_problem(max_grad_norm, is_float16=is_float16)
    x = inputs()
    expected, length = plain_update(layer, layer(x).square().sum(), max_grad_norm)
    for part in x.split(2):
        gradients.add(layer(part).square().sum(), "here")
    assert gradients.update("here") == pytest.approx(length, rel=1e-5)
    for new, wanted in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(new.detach(), wanted)
        assert new.grad is None  # forgotten


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_float16", [False, True])
def test_a_broken_loss_stops_before_it_changes_anything(value: float, is_float16: bool) -> None:
    layer, gradients = make_problem(is_float16=is_float16)
    before = copy.deepcopy(layer.state_dict())
    gradients.add(layer(inputs()).sum(), "step 3")
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step 3, images \['a'\]"):
        gradients.add(layer(inputs()).sum() * value, "step 3, images ['a']")
    assert all(torch.equal(v, before[n]) for n, v in layer.state_dict().items())
    assert all(p.grad is None for p in layer.parameters())


def broken_gradient(layer: nn.Linear) -> Tensor:
    """A loss of 0 whose slope is infinite times 0."""
    return (layer(inputs()) * 0).sum().sqrt()


def test_a_broken_gradient_stops_before_it_changes_anything() -> None:
    layer, gradients = make_problem()
    before = copy.deepcopy(layer.state_dict())
    gradients.add(broken_gradient(layer), "step 3")
    with pytest.raises(FloatingPointError, match="gradient has length nan at step 3"):
        gradients.update("step 3")
    assert all(torch.equal(v, before[n]) for n, v in layer.state_dict().items())


def test_an_overflow_in_float16_halves_the_scale_and_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layer, gradients = make_problem(is_float16=True)
    before = copy.deepcopy(layer.state_dict())
    first = gradients.state_dict()["scale"]
    with caplog.at_level(logging.INFO):
        gradients.add(broken_gradient(layer), "step 3")
        gradients.update("step 3")
    assert all(torch.equal(v, before[n]) for n, v in layer.state_dict().items())
    assert gradients.state_dict()["scale"] == first / 2
    assert f"no update at step 3: gradients overflow with a loss scale of {first:g}" in caplog.text
    gradients.add(layer(inputs()).sum(), "step 4")  # and goes on
    gradients.update("step 4")
    assert not torch.equal(layer.weight, before["weight"])


def test_a_gradient_broken_at_any_scale_stops() -> None:
    layer, gradients = make_problem(is_float16=True)
    message = "gradient has length nan at step 9"
    with pytest.raises(FloatingPointError, match=message):
        for _ in range(40):
            gradients.add(broken_gradient(layer), "step 9")
            gradients.update("step 9")
    assert gradients.state_dict()["scale"] == 1


def test_the_scale_goes_on_where_it_was() -> None:
    layer, gradients = make_problem(is_float16=True)
    for _ in range(3):
        gradients.add(broken_gradient(layer), "here")
        gradients.update("here")
    _, other = make_problem(is_float16=True)
    other.load_state_dict(gradients.state_dict())
    assert other.state_dict() == gradients.state_dict()
    _, without = make_problem()
    assert without.state_dict() == {}
    without.load_state_dict(gradients.state_dict())
    other.load_state_dict({})
    assert other.state_dict() == gradients.state_dict()
