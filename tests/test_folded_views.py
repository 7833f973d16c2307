"""Copies of the networks for views without BatchNorm: they say the same, and follow the weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import randomize, tiny_config, tiny_tap
from tests.tiny_predictor import make_mixed_prompts, make_photo, tiny_predictor
from tokenize_anything import EverythingConfig
from tokenize_anything.modeling import TAP
from tokenize_anything.modeling.folded_views import fold_network

PARTS = ("view_segmenter", "click_segmenter", "view_namer")
SIZES = {
    "zoom": 0.5, "view_dim": 3, "view_size": 96, "click_size": 64, "namer_size": 64,
    "wide_size": 32, "view_corrects": True,
}  # fmt: skip
REGIONS, POINTS, WINDOWS = 3, 2, 5


def make_model() -> TAP:
    return tiny_tap(tiny_config(**SIZES))


def ask(network: nn.Module, part: str) -> list[Tensor]:
    """What a network says about random views."""
    generator = torch.Generator().manual_seed(5)
    shape = (REGIONS, WINDOWS) if part == "click_segmenter" else (REGIONS,)
    pixels = torch.randn(*shape, 3, 64, 64, generator=generator)
    coords = 64 * torch.rand(*shape, POINTS, 2, generator=generator)
    labels = torch.randint(0, 2, (REGIONS, POINTS), generator=generator)
    masks = (torch.rand(REGIONS, 64, 64, generator=generator) < 0.4).float()
    with torch.inference_mode():
        if part == "view_namer":
            boxes = torch.tensor([[7.0, 11.0, 41.0, 53.0]]).repeat(REGIONS, 1)
            features = network(pixels, boxes, masks)
            around = network.look_around(pixels, masks)
            tokens = torch.randn(REGIONS, network.token_head.out_features, generator=generator)
            return [features, around, network.fuse(torch.cat([features, around], 1), tokens)]
        if part == "view_segmenter":
            return list(vars(network(pixels, coords, labels, masks, twice=True)).values())
        return list(vars(network(pixels, coords, labels)).values())


def assert_alike(found: list[Tensor], known: list[Tensor], tolerance: float = 1e-4) -> None:
    for value, expected in zip(found, known, strict=True):
        size = expected.abs().max()
        torch.testing.assert_close(value.float(), expected, atol=tolerance * size, rtol=0)


@pytest.mark.parametrize("part", PARTS)
def test_a_folded_network_says_the_same(part: str) -> None:
    network = make_model().get_submodule(part)
    before = copy.deepcopy(network.state_dict())
    network.train()
    folded = fold_network(network)
    assert network.training and not folded.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.requires_grad for p in network.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    assert_alike(ask(folded, part), ask(network.eval(), part))


@pytest.mark.parametrize("part", PARTS)
def test_weights_are_rounded_once_and_last(part: str) -> None:
    """Products of rounded weights and statistics are computed in float32."""
    network = make_model().get_submodule(part).to(torch.bfloat16)
    known = fold_network(copy.deepcopy(network).float()).state_dict()
    for folded in (fold_network(network), fold_network(network, torch.bfloat16)):
        for name, value in folded.state_dict().items():
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, known[name].to(torch.bfloat16)), name


def test_a_copy_is_made_once() -> None:
    model = make_model()
    segmenter, namer = model.view_segmenter, model.view_namer
    assert segmenter is not None and namer is not None
    first = model.fold_views(segmenter)
    assert model.fold_views(namer) is model.fold_views(namer)
    assert model.fold_views(segmenter) is first is not segmenter
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    model.fast_views = True
    fast = model.fold_views(segmenter)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    assert model.fold_views(segmenter) is fast


def replace_parameter(network: Any) -> None:
    network.mask_head.weight = nn.Parameter(2 * network.mask_head.weight.detach())


def replace_data(network: Any) -> None:
    network.mask_head.weight.data = 2 * network.mask_head.weight.data


def replace_statistics(network: Any) -> None:
    network.stem[1].running_mean = 2 * network.stem[1].running_mean


def replace_module(network: Any) -> None:
    network.mask_head = randomize(copy.deepcopy(network.mask_head), 3)


def load_in_place(network: Any) -> None:
    network.load_state_dict(randomize(copy.deepcopy(network), 3).state_dict())


def load_assigned(network: Any) -> None:
    network.load_state_dict(randomize(copy.deepcopy(network), 3).state_dict(), assign=True)


def take_a_step(network: Any) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network.mask_head.weight.grad = torch.ones_like(network.mask_head.weight)
    optimizer.step()


def learn_statistics(network: Any) -> None:
    network.train()
    network.stem(torch.randn(2, 7, 13, 17))
    network.eval()


@pytest.mark.parametrize(
    "change",
    [
        replace_parameter, replace_data, replace_statistics, replace_module, load_in_place,
        load_assigned, take_a_step, learn_statistics,
    ],
)  # fmt: skip
def test_a_copy_follows_its_network(change: Callable[[Any], None]) -> None:
    model = make_model()
    network = model.view_segmenter
    assert network is not None
    before = ask(model.fold_views(network), "view_segmenter")
    change(network)
    after = ask(model.fold_views(network), "view_segmenter")
    assert not torch.equal(after[0], before[0])
    assert_alike(after, ask(network, "view_segmenter"))


def test_a_copy_follows_the_dtype_of_its_model() -> None:
    model = make_model()
    assert model.view_namer is not None
    model.fold_views(model.view_namer)
    model.to(torch.float64)
    assert {p.dtype for p in model.fold_views(model.view_namer).parameters()} == {torch.float64}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_no_part_of_the_model(duplicate: Callable[[TAP], TAP]) -> None:
    model = make_model()
    names, count = list(model.state_dict()), sum(1 for _ in model.modules())
    for part in PARTS:
        model.fold_views(model.get_submodule(part))
    assert list(model.state_dict()) == names and sum(1 for _ in model.modules()) == count
    other = duplicate(model)
    segmenter = other.view_segmenter
    assert segmenter is not None
    load_in_place(segmenter)
    assert_alike(
        ask(other.fold_views(segmenter), "view_segmenter"), ask(segmenter, "view_segmenter")
    )
    assert model.view_segmenter is not None
    mine = ask(model.fold_views(model.view_segmenter), "view_segmenter")
    assert_alike(mine, ask(model.view_segmenter, "view_segmenter"))


def test_weights_made_under_inference_mode_are_folded_too() -> None:
    with torch.inference_mode():
        model = make_model()
    network = model.view_segmenter
    assert network is not None
    folded = model.fold_views(network)
    assert model.fold_views(network) is folded
    assert_alike(ask(folded, "view_segmenter"), ask(network, "view_segmenter"))


@pytest.mark.parametrize("place", ["", "blocks.2.1.conv1.1"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_called(place: str, kind: str) -> None:
    """Also those of a BatchNorm, and those that come after the copy was made."""
    model, called = make_model(), []
    network = model.view_segmenter
    assert network is not None
    folded = model.fold_views(network)
    hook = getattr(network.get_submodule(place), kind)(lambda *_: called.append(1))
    ask(model.fold_views(network), "view_segmenter")
    assert called == [1]
    hook.remove()
    assert model.fold_views(network) is folded


def test_predictions_come_from_the_copies() -> None:
    """Prompts of all kinds and the automatic mode compute no BatchNorm of these networks."""

    def fail(*_: Any) -> None:
        raise AssertionError("a BatchNorm was computed")

    predictor, photo = tiny_predictor(**SIZES), make_photo(149, 211)
    for part in PARTS:
        for module in predictor.model.get_submodule(part).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.forward = fail
    prompts = make_mixed_prompts(149, 211)
    assert len(predictor.predict_mask_concept_caption(photo, prompts=prompts)) == len(prompts)
    predictor.predict_everything(photo, config=EverythingConfig(points_per_side=2))
