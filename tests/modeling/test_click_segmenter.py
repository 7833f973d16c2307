"""The network that answers clicks: what windows tell each other, scores, independence."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny import randomize, tiny_config
from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling import TAP, ClickSegmenter, ViewSegmenter
from tokenize_anything.modeling.click_segmenter import (
    NUM_WINDOWS,
    SHARED_LEVELS,
    WindowExchange,
)
from tokenize_anything.training.part_training import copy_shared

SIDE, COUNT = 64, 3
CONFIG = tiny_config(view_dim=5, click_size=SIDE)


@pytest.fixture(scope="module")
def network() -> ClickSegmenter:
    return randomize(ClickSegmenter(CONFIG)).eval()


def make_prompts(count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels, clicks of all windows, also beyond these, and labels with pads among them."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(count, NUM_WINDOWS, 3, SIDE, SIDE, generator=generator)
    coords = 1.2 * SIDE * torch.rand(count, NUM_WINDOWS, 4, 2, generator=generator) - 0.1 * SIDE
    labels = torch.tensor([[1, 0, 1, 4], [1, 4, 4, 4], [0, 1, 0, 0]])[torch.arange(count) % 3]
    return pixels, coords, labels


# --- what windows tell each other ------------------------------------------------------------


def enlarge_plainly(middle: np.ndarray) -> np.ndarray:
    """(dim,n,n) to (dim,2n,2n): between the middles of cells, whose ends repeat."""
    n = middle.shape[-1]
    found = np.zeros((len(middle), 2 * n, 2 * n))
    for row in range(2 * n):
        for column in range(2 * n):
            for y, x in np.ndindex(2, 2):
                places = [(row + 0.5) / 2 - 0.5, (column + 0.5) / 2 - 0.5]
                low = [int(np.floor(place)) for place in places]
                high, wide = places[0] - low[0], places[1] - low[1]
                weight = (high if y else 1 - high) * (wide if x else 1 - wide)
                cell = np.clip([low[0] + y, low[1] + x], 0, n - 1)
                found[:, row, column] += weight * middle[:, cell[0], cell[1]]
    return found


@pytest.mark.parametrize("y", [4, 12])
def test_exchanges_equal_a_plain_computation(y: int) -> None:
    """The middle of a larger window, grown; a smaller one, shrunk into the middle."""
    dim, count, quarter = 7, 3, y // 4
    exchange = randomize(WindowExchange(dim)).eval()
    maps = torch.randn(
        count, NUM_WINDOWS, dim, y, y, generator=torch.Generator().manual_seed(1)
    ).double()
    layers = [exchange.double().inward, exchange.outward]
    weights = [layer.weight.detach().numpy()[:, :, 0, 0] for layer in layers]
    biases = [layer.state_dict()["bias"].numpy()[:, None, None] for layer in layers]
    values = maps.numpy()
    expected = values.copy()
    middle = slice(quarter, 3 * quarter)
    for row in range(count):
        for window in range(NUM_WINDOWS):
            if window > 0:
                told = enlarge_plainly(values[row, window - 1, :, middle, middle])
                expected[row, window] += np.einsum("ij,jyx->iyx", weights[0], told) + biases[0]
            if window < NUM_WINDOWS - 1:
                shrunk = values[row, window + 1].reshape(dim, y // 2, 2, y // 2, 2)
                told = np.einsum("ij,jyx->iyx", weights[1], shrunk.mean(axis=(2, 4))) + biases[1]
                expected[row, window, :, middle, middle] += told
    found = exchange(maps.flatten(0, 1)).unflatten(0, (count, NUM_WINDOWS))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_exchanges_say_nothing_before_training() -> None:
    maps = torch.randn(2 * NUM_WINDOWS, 7, 8, 8)
    assert torch.equal(WindowExchange(7)(maps), maps)


def test_all_windows_get_what_the_mixer_says_of_all_means(network: ClickSegmenter) -> None:
    """At the last level; at others without an exchange the maps stay as they are."""
    dim = network.dims[-1]
    maps = torch.randn(2 * NUM_WINDOWS, dim, 2, 2, generator=torch.Generator().manual_seed(2))
    means = maps.numpy().mean(axis=(2, 3)).reshape(2, NUM_WINDOWS * dim)
    told = network.mixer(torch.from_numpy(means)).reshape(2 * NUM_WINDOWS, dim, 1, 1)
    torch.testing.assert_close(network.share(4, maps), maps + told)
    assert torch.equal(network.share(0, maps), maps)
    assert [level for level in range(5) if str(level) in network.exchanges] == [*SHARED_LEVELS]


def test_a_new_network_says_of_each_window_what_a_view_segmenter_says() -> None:
    """With weights of that, and nothing to tell between windows yet."""
    segmenter = randomize(ViewSegmenter(CONFIG)).eval()
    network = ClickSegmenter(CONFIG).eval()
    copy_shared(network, segmenter)
    pixels, coords, labels = make_prompts()
    found = network(pixels, coords, labels)
    for row in range(COUNT):
        for window in range(NUM_WINDOWS):
            asked = (values[row, window][None] for values in (pixels, coords))
            told = segmenter(*asked, labels[row][None])
            close = {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(found.mask_logits[row, window], told.mask_logits[0], **close)
            torch.testing.assert_close(found.iou_scores[row, window], told.iou_scores[0], **close)
    spread = found.iou_scores.std(dim=1)
    assert spread.min() > 1e-3  # or windows that change places would not show


# --- outputs ---------------------------------------------------------------------------------


def test_shapes_and_types(network: ClickSegmenter) -> None:
    outputs = network(*make_prompts(2))
    assert outputs.mask_logits.shape == (2, NUM_WINDOWS, SIDE // 2, SIDE // 2)
    assert outputs.iou_scores.shape == (2, NUM_WINDOWS)
    assert outputs.iou_scores.dtype == torch.float32


def test_other_sizes_of_windows_do(network: ClickSegmenter) -> None:
    pixels = torch.randn(1, NUM_WINDOWS, 3, 128, 128)
    outputs = network(pixels, torch.full((1, NUM_WINDOWS, 1, 2), 63.5), torch.ones(1, 1))
    assert outputs.mask_logits.shape == (1, NUM_WINDOWS, 64, 64)


def test_a_prompt_alone_equals_a_prompt_in_a_batch(network: ClickSegmenter) -> None:
    prompts = make_prompts(7)
    together = network(*prompts)
    for row in range(7):
        alone = network(*(values[row : row + 1] for values in prompts))
        for name in ("mask_logits", "iou_scores"):
            torch.testing.assert_close(
                getattr(alone, name)[0], getattr(together, name)[row], rtol=1e-4, atol=1e-4
            )


def test_padding_says_nothing(network: ClickSegmenter) -> None:
    pixels, coords, labels = make_prompts()
    padded = F.pad(coords, (0, 0, 0, 2), value=13.0), F.pad(labels, (0, 2), value=4)
    expected, found = network(pixels, coords, labels), network(pixels, *padded)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits)


@pytest.mark.parametrize("window", range(NUM_WINDOWS))
def test_each_window_hears_all_others(network: ClickSegmenter, window: int) -> None:
    """Its pixels and its clicks."""
    pixels, coords, labels = make_prompts(1)
    before = network(pixels, coords, labels)
    changed, moved = pixels.clone(), coords.clone()
    changed[0, window] = changed[0, window].roll(5, dims=-1)
    moved[0, window] += 5.0
    for asked in ((changed, coords), (pixels, moved)):
        after = network(*asked, labels)
        for other in range(NUM_WINDOWS):
            gap = (after.mask_logits - before.mask_logits)[0, other].abs().max()
            assert gap > 1e-4, other


def test_every_parameter_gets_a_gradient() -> None:
    network = randomize(ClickSegmenter(CONFIG)).train()
    outputs = network(*make_prompts())
    (outputs.mask_logits.square().mean() + outputs.iou_scores.square().mean()).backward()
    for name, value in network.named_parameters():
        assert value.grad is not None and value.grad.abs().max() > 0, name


def test_scores_do_not_draw_masks(network: ClickSegmenter) -> None:
    outputs = network(*make_prompts(1))
    outputs.iou_scores.sum().backward()
    assert network.mask_head.weight.grad is None
    network.zero_grad()


def test_half_precision_gives_nearly_the_same() -> None:
    network = randomize(ClickSegmenter(CONFIG)).eval()
    pixels, coords, labels = make_prompts()
    expected = network(pixels, coords, labels)
    found = network.bfloat16()(pixels.bfloat16(), coords, labels)
    assert found.mask_logits.dtype == torch.bfloat16 and found.iou_scores.dtype == torch.float32
    flat = [outputs.mask_logits.float().flatten(1) for outputs in (found, expected)]
    assert F.cosine_similarity(*flat).min() > 0.99


# --- models ----------------------------------------------------------------------------------


def test_models_have_one_only_if_they_say_so() -> None:
    assert TAP(tiny_config()).click_segmenter is None
    assert TAP(tiny_config(view_dim=3)).click_segmenter is None
    model = TAP(CONFIG)
    assert isinstance(model.click_segmenter, ClickSegmenter)
    assert "click_segmenter" in {key.partition(".")[0] for key in model.state_dict()}
    assert TAPConfig.from_json(CONFIG.to_json()) == CONFIG


def test_configurations_from_before_have_none() -> None:
    values = dataclasses.asdict(tiny_config(view_dim=3))
    del values["click_size"]
    assert TAPConfig.from_dict(values).click_size == 0
    written = json.loads(CONFIG.to_json())
    del written["click_size"]
    assert TAPConfig.from_json(json.dumps(written)) == dataclasses.replace(CONFIG, click_size=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"click_size": 100}, "click_size must be 0 or a multiple of 64, got 100"),
        ({"click_size": 96}, "click_size must be 0 or a multiple of 64, got 96"),
        ({"click_size": -64}, "click_size must be 0 or a multiple of 64, got -64"),
        ({"click_size": 64.0}, "click_size must be 0 or a multiple of 64, got 64.0"),
        ({"click_size": False}, "click_size must be 0 or a multiple of 64, got False"),
        (
            {"view_dim": 0},
            "click_size must be 0 where view_dim is 0 (`tap train views` comes first), got 64",
        ),
    ],
)
def test_bad_sizes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(**({"view_dim": 3, "click_size": 64} | values))
