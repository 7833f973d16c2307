"""What a namer that is to be trained starts with: another namer, or a segmenter."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import randomize, tiny_config
from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling import ViewNamer, ViewSegmenter
from tokenize_anything.modeling.view_encoder import cover_boxes
from tokenize_anything.training.naming_training import start_namer

SIDE, WIDE_SIDE, COUNT = 64, 96, 3
ONCE = tiny_config(view_dim=5, view_size=64, namer_size=SIDE)
TWICE = tiny_config(view_dim=5, view_size=64, namer_size=SIDE, wide_size=WIDE_SIDE)
State = dict[str, torch.Tensor]


def copy_state(network: torch.nn.Module) -> State:
    return {name: value.clone() for name, value in network.state_dict().items()}


def start(namer: ViewNamer, network: ViewNamer | ViewSegmenter) -> tuple[State, State, State]:
    """Weights before and after the start, and those of the network, which stay."""
    with torch.no_grad():
        for name, value in network.named_buffers():
            if name.endswith("num_batches_tracked"):
                value.fill_(17)
    before, source = copy_state(namer), copy_state(network)
    start_namer(namer, network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, source[name]), name
    return before, copy_state(namer), source


def encoder_of(state: State, prefix: str = "") -> State:
    """The layers that all networks for views have, by their names in a namer that looks once."""
    parts = tuple(f"{prefix}{part}." for part in ("stem", "down", "blocks"))
    found = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(parts)
    }
    assert len(found) > 100
    return found


def assert_copied(found: State, source: State, num_channels: int) -> None:
    """All of an encoder, with so many channels of the stem."""
    assert found.keys() == source.keys()
    for name, value in found.items():
        if name == "stem.0.weight":
            assert value.shape[1] == num_channels
            assert torch.equal(value, source[name][:, :num_channels])
        else:
            assert torch.equal(value, source[name]), name


def test_a_second_look_starts_from_the_first() -> None:
    """The first is as it was; the second sees the box where the first one does, and no mask."""
    once, twice = randomize(ViewNamer(ONCE), 1), randomize(ViewNamer(TWICE), 2)
    _, started, source = start(twice, once)
    assert_copied(encoder_of(started), encoder_of(source), 5)
    assert_copied(encoder_of(started, "wide."), encoder_of(source), 4)
    head = started["token_head.weight"]
    assert torch.equal(head[:, : once.pooled_dim], source["token_head.weight"])
    assert head.shape[1] == 2 * once.pooled_dim and not head[:, once.pooled_dim :].any()
    assert torch.equal(started["token_head.bias"], source["token_head.bias"])
    heads = [name for name in started if name.startswith("semantic_head.")]
    assert heads and all(torch.equal(started[name], source[name]) for name in heads)


@torch.no_grad()
def test_a_second_look_says_nothing_at_first() -> None:
    once, twice = randomize(ViewNamer(ONCE), 1).eval(), randomize(ViewNamer(TWICE), 2).eval()
    start_namer(twice, once)
    generator = torch.Generator().manual_seed(5)
    pixels, around = (
        torch.randn(COUNT, 3, side, side, generator=generator) for side in (SIDE, WIDE_SIDE)
    )
    boxes = torch.tensor([[11.0, 20.0, 51.0, 43.5]]).repeat(COUNT, 1)
    masks = (torch.rand(COUNT, SIDE, SIDE, generator=generator) > 0.5).float()
    tokens = torch.randn(COUNT, ONCE.decoder_dim, generator=generator)
    expected = once.fuse(once(pixels, boxes, masks), tokens)
    wide = twice.look_around(around, cover_boxes(boxes, WIDE_SIDE))
    found = twice.fuse(torch.cat([twice(pixels, boxes, masks), wide], dim=1), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - tokens).abs().max() > 0.05 and wide.abs().max() > 0.05
    names, others = twice.semantic_head(found), once.semantic_head(expected)
    torch.testing.assert_close(names, others, rtol=1e-4, atol=1e-4)


def test_a_second_look_goes_on() -> None:
    """From a namer that has one: everything is as it was there."""
    source = randomize(ViewNamer(TWICE), 1)
    _, started, expected = start(randomize(ViewNamer(TWICE), 2), source)
    assert started.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in started.items())


@pytest.mark.parametrize("config", [ONCE, TWICE], ids=["one look", "two looks"])
def test_segmenters_give_their_encoder_alone(config: TAPConfig) -> None:
    """Mask and box stand where the first clicks and the box do; heads keep what they had."""
    namer = randomize(ViewNamer(config), 2)
    before, started, source = start(namer, randomize(ViewSegmenter(ONCE), 1))
    assert_copied(encoder_of(started), encoder_of(source), 5)
    if namer.wide is not None:
        assert_copied(encoder_of(started, "wide."), encoder_of(source), 4)
    heads = [name for name in started if name.startswith(("token_head.", "semantic_head."))]
    assert len(heads) > 4 and all(torch.equal(started[name], before[name]) for name in heads)


def test_a_second_look_can_be_given_up() -> None:
    once, twice = randomize(ViewNamer(ONCE), 1), randomize(ViewNamer(TWICE), 2)
    _, started, source = start(once, twice)
    source["token_head.weight"] = source["token_head.weight"][:, : once.pooled_dim]
    assert all(torch.equal(value, source[name]) for name, value in started.items())
