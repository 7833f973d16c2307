"""The network that names one region in a view or two: features, what it hears, independence."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny import randomize, tiny_config
from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling import TAP, ViewNamer
from tokenize_anything.modeling.view_encoder import ViewEncoder, cover_boxes, pool_levels

SIDE, WIDE_SIDE, COUNT = 96, 64, 7
CONFIG = tiny_config(view_dim=5, namer_size=SIDE)
WIDE_CONFIG = tiny_config(view_dim=5, namer_size=SIDE, wide_size=WIDE_SIDE)
BOXES = ((11.25, 20.5, 70.0, 41.75), (-13.0, 5.5, 7.25, 101.0), (30.0, 0.0, 61.0, 96.0))


@pytest.fixture(scope="module")
def namer() -> ViewNamer:
    return randomize(ViewNamer(CONFIG)).eval()


def make_views(count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels, boxes and masks with values between 0 and 1 at their borders."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    boxes = torch.tensor(BOXES)[torch.arange(count) % len(BOXES)]
    masks = torch.zeros(count, SIDE, SIDE)
    for row in range(count):
        masks[row, 23 + row : 59, 17 : 67 - 5 * row] = 1.0
        masks[row, 59, 17 : 67 - 5 * row] = 0.4
    return pixels, boxes, masks


def test_covers_equal_a_plain_computation() -> None:
    side = 29
    boxes = torch.tensor([[3.25, 7.5, 20.0, 7.75], [-5.0, 11.0, 4.5, 40.0], [31.0, 2.0, 37.0, 9.0]])
    expected = np.zeros((len(boxes), side, side), np.float32)
    for row, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for y in range(side):
            for x in range(side):
                wide, high = min(x + 1, x1) - max(x, x0), min(y + 1, y1) - max(y, y0)
                expected[row, y, x] = max(wide, 0) * max(high, 0)
    np.testing.assert_allclose(cover_boxes(boxes, side).numpy(), expected, atol=1e-5)
    assert expected[0].any() and expected[1].any() and not expected[2].any()


def test_shapes(namer: ViewNamer) -> None:
    features = namer(*make_views(2))
    assert features.shape == (2, 20 * CONFIG.view_dim) and namer.pooled_dim == 20 * CONFIG.view_dim
    tokens = namer.fuse(features, torch.zeros(2, CONFIG.decoder_dim))
    assert tokens.shape == (2, CONFIG.decoder_dim)
    assert namer.semantic_head(tokens).shape == (2, CONFIG.semantic_dim)


def test_other_sizes_of_views_do(namer: ViewNamer) -> None:
    pixels, boxes, masks = make_views(3)
    features = namer(pixels[..., :64, :64], boxes, masks[..., :64, :64])
    assert features.shape == (3, 20 * CONFIG.view_dim)


def test_a_view_alone_equals_a_view_in_a_batch(namer: ViewNamer) -> None:
    views = make_views()
    views[2][4] = 0.0  # one mask is empty
    together = namer(*views)
    for row in range(COUNT):
        alone = namer(*(values[row : row + 1] for values in views))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


def test_where_a_mask_is_empty_the_box_is_pooled_over(namer: ViewNamer) -> None:
    """The network still sees the empty mask; only the means are taken over the box."""
    pixels, boxes, masks = make_views(3)
    masks[1] = 0.0
    drawn = cover_boxes(boxes, SIDE)
    pooled = torch.stack([masks[0], drawn[1], masks[2]])
    expected = pool_levels(namer.encode(pixels, torch.stack([drawn, masks], dim=1)), pooled)
    found = namer(pixels, boxes, masks)
    torch.testing.assert_close(found, expected)
    told = masks.clone()
    told[1] = drawn[1]  # the box as a mask is seen as well
    assert not torch.allclose(namer(pixels, boxes, told)[1], found[1], atol=1e-3)
    faint = masks.clone()
    faint[1, 90, 3] = 1e-2  # a single pixel is a mask
    assert not torch.allclose(namer(pixels, boxes, faint)[1], found[1], atol=1e-3)


@pytest.mark.parametrize("side", [12, 6])
def test_means_are_those_of_the_levels_under_the_mask(side: int) -> None:
    """A mask finer than the map counts by the share of each cell that it covers."""
    generator = torch.Generator().manual_seed(1)
    sides = (48, 24, 12, 6, 3)
    levels = [torch.randn(2, 3, one, one, generator=generator).double() for one in sides]
    masks = torch.rand(2, SIDE, SIDE, generator=generator).double()
    shares = masks.numpy().reshape(2, side, SIDE // side, side, SIDE // side).mean(axis=(2, 4))
    level = sides.index(side)
    values = levels[level].numpy()
    expected = (values * shares[:, None]).sum(axis=(2, 3)) / shares.sum(axis=(1, 2))[:, None]
    start = 3 * (level - 2)
    found = pool_levels(levels, masks)
    np.testing.assert_allclose(found[:, start : start + 3].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(found[:, 6:].numpy(), levels[4].mean((2, 3)).numpy(), rtol=1e-6)


def test_boxes_masks_and_pixels_are_heard(namer: ViewNamer) -> None:
    pixels, boxes, masks = make_views(1)
    before = namer(pixels, boxes, masks)
    changed = [
        (pixels.roll(5, dims=-1), boxes, masks),
        (pixels, boxes + torch.tensor([5.0, 0.0, 5.0, 0.0]), masks),
        (pixels, boxes, masks.roll(5, dims=-2)),
    ]
    for views in changed:
        assert not torch.allclose(namer(*views), before, atol=1e-3)


def test_drawn_boxes_give_the_same(namer: ViewNamer) -> None:
    pixels, boxes, masks = make_views(3)
    drawn = cover_boxes(boxes, SIDE)
    torch.testing.assert_close(namer.look(pixels, drawn, masks), namer(pixels, boxes, masks))


def test_features_are_added_to_tokens(namer: ViewNamer) -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(3, namer.pooled_dim, generator=generator)
    tokens = torch.randn(3, CONFIG.decoder_dim, generator=generator)
    given = tokens.clone()
    weight, bias = namer.token_head.weight.detach(), namer.token_head.bias.detach()
    expected = tokens.double() + features.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(namer.fuse(features, tokens).detach(), expected.float())
    assert torch.equal(tokens, given)


def test_dropout_is_of_features_and_tokens_in_training_alone() -> None:
    """With a head that repeats what it is given, and far apart values to tell both by."""
    share, width = 0.25, CONFIG.decoder_dim
    namer = ViewNamer(CONFIG, dropout=share)
    with torch.no_grad():
        namer.token_head.weight.copy_(torch.eye(width, namer.pooled_dim))
        namer.token_head.bias.zero_()
    features = torch.full((200, namer.pooled_dim), 3.0)
    tokens = torch.full((200, width), 300.0)
    torch.testing.assert_close(namer.eval().fuse(features, tokens), torch.full_like(tokens, 303.0))
    shown = namer.train().fuse(features, tokens).detach()
    found = {
        round(float(value)): float((shown == value).float().mean()) for value in shown.unique()
    }
    chances = {0: share**2, 4: share * (1 - share), 400: share * (1 - share), 404: (1 - share) ** 2}
    assert found.keys() == chances.keys()
    for value, chance in chances.items():
        assert found[value] == pytest.approx(chance, abs=0.02)
    views = make_views(2)
    for module in namer.modules():
        if module is not namer:
            module.eval()  # running statistics in both cases
    before = namer(*views)
    namer.eval()
    torch.testing.assert_close(namer(*views), before)


def test_half_precision_gives_nearly_the_same() -> None:
    namer = randomize(ViewNamer(CONFIG)).eval()
    pixels, boxes, masks = make_views(3)
    expected = namer(pixels, boxes, masks)
    found = namer.bfloat16()(pixels.bfloat16(), boxes, masks)
    assert found.dtype == torch.bfloat16
    assert namer.fuse(found, torch.zeros(3, CONFIG.decoder_dim).bfloat16()).dtype == found.dtype
    assert F.cosine_similarity(found.float(), expected).min() > 0.99


# --- wider views -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_namer() -> ViewNamer:
    return randomize(ViewNamer(WIDE_CONFIG)).eval()


def make_wide_views(count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, and boxes with values between 0 and 1 at their borders."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(count, 3, WIDE_SIDE, WIDE_SIDE, generator=generator)
    corners = torch.tensor([[21.25, 25.0, 40.5, 41.75], [-3.0, 11.5, 61.0, 58.25], [30, 3, 33, 64]])
    return pixels, cover_boxes(corners[torch.arange(count) % len(corners)], WIDE_SIDE)


@torch.no_grad()
def test_wider_views_equal_a_plain_computation(wide_namer: ViewNamer) -> None:
    """Means over the box at strides 8 and 16, over all of the view at 32, by a second encoder."""
    pixels, boxes = make_wide_views(3)
    assert wide_namer.wide is not None
    levels = wide_namer.wide.encode(pixels, boxes[:, None])
    means = []
    for level, side in ((2, 8), (3, 4)):
        cell = WIDE_SIDE // side
        shares = boxes.numpy().reshape(3, side, cell, side, cell).mean(axis=(2, 4))[:, None]
        values = levels[level].numpy()
        assert values.shape[2:] == (side, side)
        means.append((values * shares).sum((2, 3)) / shares.sum((2, 3)))
    means.append(levels[4].numpy().mean(axis=(2, 3)))
    found = wide_namer.look_around(pixels, boxes)
    assert found.shape == (3, 20 * CONFIG.view_dim)
    np.testing.assert_allclose(found.numpy(), np.concatenate(means, axis=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, pool_levels(levels, boxes))


def test_a_wider_view_alone_equals_one_in_a_batch(wide_namer: ViewNamer) -> None:
    pixels, boxes = make_wide_views()
    together = wide_namer.look_around(pixels, boxes)
    for row in range(COUNT):
        some = slice(row, row + 1)
        alone = wide_namer.look_around(pixels[some], boxes[some])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


def test_tokens_get_what_both_looks_say(wide_namer: ViewNamer) -> None:
    """The region's features first."""
    generator = torch.Generator().manual_seed(2)
    looks = torch.randn(2, 3, wide_namer.pooled_dim, generator=generator)
    tokens = torch.randn(3, CONFIG.decoder_dim, generator=generator)
    weight, bias = (value.detach().double() for value in wide_namer.token_head.parameters())
    close, wide = weight.split(wide_namer.pooled_dim, dim=1)
    expected = tokens.double() + looks[0].double() @ close.T + looks[1].double() @ wide.T + bias
    found = wide_namer.fuse(torch.cat([looks[0], looks[1]], dim=1), tokens)
    torch.testing.assert_close(found.detach(), expected.float())


def test_everything_learns_from_two_looks() -> None:
    namer = randomize(ViewNamer(WIDE_CONFIG)).train()
    features = torch.cat([namer(*make_views()), namer.look_around(*make_wide_views())], dim=1)
    generator = torch.Generator().manual_seed(2)
    tokens = namer.fuse(features, torch.randn(COUNT, CONFIG.decoder_dim, generator=generator))
    embeddings = namer.semantic_head(tokens)
    (embeddings * torch.randn(embeddings.shape, generator=generator)).sum().backward()
    for name, value in namer.named_parameters():
        assert value.grad is not None and value.grad.any(), name


def test_a_wider_view_adds_an_encoder_and_nothing_else(
    namer: ViewNamer, wide_namer: ViewNamer
) -> None:
    once, twice = namer.state_dict(), wide_namer.state_dict()
    encoder = {f"wide.{name}" for name in ViewEncoder(CONFIG.view_dim, 1).state_dict()}
    assert namer.wide is None and not encoder & once.keys()
    assert twice.keys() == once.keys() | encoder
    others = {name for name, value in once.items() if value.shape != twice[name].shape}
    assert others == {"token_head.weight"}
    assert once["token_head.weight"].shape == (CONFIG.decoder_dim, 20 * CONFIG.view_dim)
    assert twice["token_head.weight"].shape == (CONFIG.decoder_dim, 40 * CONFIG.view_dim)
    assert twice["wide.stem.0.weight"].shape[1] == 3 + 1


def test_the_first_look_is_the_same_beside_a_second(
    namer: ViewNamer, wide_namer: ViewNamer
) -> None:
    state = {name: value for name, value in wide_namer.state_dict().items() if "wide." not in name}
    state["token_head.weight"] = state["token_head.weight"][:, : namer.pooled_dim]
    alone = ViewNamer(CONFIG).eval()
    alone.load_state_dict(state)
    views = make_views()
    assert torch.equal(wide_namer(*views), alone(*views))


# --- models ----------------------------------------------------------------------------------


def test_models_have_one_only_if_they_say_so() -> None:
    assert TAP(tiny_config()).view_namer is None
    assert TAP(tiny_config(view_dim=3)).view_namer is None
    model = TAP(CONFIG)
    assert isinstance(model.view_namer, ViewNamer) and model.view_namer.dropout == 0.0
    assert "view_namer" in {key.partition(".")[0] for key in model.state_dict()}
    assert model.view_namer.wide is None
    assert TAPConfig.from_json(CONFIG.to_json()) == CONFIG


def test_models_say_how_wide_the_second_view_is() -> None:
    namer = TAP(WIDE_CONFIG).view_namer
    assert namer is not None and isinstance(namer.wide, ViewEncoder)
    assert WIDE_CONFIG.wide_size == WIDE_SIDE
    assert TAPConfig.from_json(WIDE_CONFIG.to_json()) == WIDE_CONFIG


@pytest.mark.parametrize(
    ("config", "name"),
    [(tiny_config(view_dim=3), "namer_size"), (CONFIG, "wide_size"), (CONFIG, "namer_dim")],
)
def test_configurations_from_before_have_none(config: TAPConfig, name: str) -> None:
    values = json.loads(config.to_json())
    del values[name]
    assert TAPConfig.from_json(json.dumps(values)) == config
    assert getattr(config, name) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"namer_size": 100}, "namer_size must be 0 or a multiple of 32, got 100"),
        ({"namer_size": -32}, "namer_size must be 0 or a multiple of 32, got -32"),
        ({"namer_size": 64.0}, "namer_size must be 0 or a multiple of 32, got 64.0"),
        ({"namer_size": False}, "namer_size must be 0 or a multiple of 32, got False"),
        (
            {"view_dim": 0},
            "namer_size must be 0 where view_dim is 0 (`tap train views` comes first), got 64",
        ),
        ({"namer_dim": -1}, "namer_dim must be a whole number of at least 0, got -1"),
        ({"namer_dim": 3.0}, "namer_dim must be a whole number of at least 0, got 3.0"),
        ({"namer_size": 0, "namer_dim": 5}, "namer_dim must be 0 where namer_size is 0, got 5"),
        ({"wide_size": 100}, "wide_size must be 0 or a multiple of 32, got 100"),
        ({"wide_size": -32}, "wide_size must be 0 or a multiple of 32, got -32"),
        ({"wide_size": 64.0}, "wide_size must be 0 or a multiple of 32, got 64.0"),
        ({"wide_size": False}, "wide_size must be 0 or a multiple of 32, got False"),
        (
            {"namer_size": 0, "wide_size": 96},
            "wide_size must be 0 where namer_size is 0, got 96",
        ),
    ],
)
def test_bad_sizes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(**({"view_dim": 3, "namer_size": 64} | values))
