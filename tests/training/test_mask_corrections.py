"""Rounds of corrective clicks in training: how many, where, and what the network is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.corrective_clicks import next_click
from tokenize_anything.data.prompt_sampling import (
    PADDING_COORD,
    PromptSampler,
    PromptSamplingConfig,
    SampledPrompts,
)
from tokenize_anything.training import mask_corrections
from tokenize_anything.training.mask_corrections import (
    MAX_ROUNDS,
    blot_masks,
    choose_rows,
    correct_masks,
    move_to_worst,
    replace_rows,
)

SIDE, COUNT = 32, 7
SAMPLER = PromptSampler(SIDE, PromptSamplingConfig())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_prompts(count: int = COUNT) -> SampledPrompts:
    """Boxes in even rows, clicks in odd ones."""
    is_box = torch.arange(count) % 2 == 0
    coords = torch.tensor([[4.0, 5.0], [19.0, 27.0]]).repeat(count, 1, 1)
    coords[~is_box, 1] = PADDING_COORD
    labels = torch.where(is_box[:, None], torch.tensor([2, 3]), torch.tensor([1, 4]))
    return SampledPrompts(coords, labels, is_box)


def make_truths(count: int = COUNT) -> Tensor:
    truths = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for row in range(count):
        truths[row, 5 : 28 - row, 4 + row : 20] = True
    return truths


class Recorder:
    """A segmenter whose mask grows with its rounds; it writes down what it was asked."""

    def __init__(self) -> None:
        self.prompts: list[SampledPrompts] = []
        self.shown: list[Tensor] = []
        self.logits: list[Tensor] = []

    def __call__(self, prompts: SampledPrompts, shown: Tensor) -> Tensor:
        self.prompts.append(prompts)
        self.shown.append(shown.clone())
        logits = torch.full((len(shown), SIDE // 2, SIDE // 2), -1.0)
        logits[:, 3 : 8 + len(self.shown), 2:9] = 1.0
        self.logits.append(logits)
        return logits

    def found(self, number: int) -> Tensor:
        logits = self.logits[number][:, None]
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear")[:, 0] > 0


@pytest.mark.parametrize("num_clicks", [1, 2, 4, 7])
def test_each_round_clicks_on_what_the_last_answer_got_wrong(
    num_clicks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_corrections, "BLOT_PROBABILITY", 0.0)
    monkeypatch.setattr(mask_corrections, "FORGET_PROBABILITY", 0.0)
    network, truths, first = Recorder(), make_truths(), make_prompts()
    prompts, shown = correct_masks(
        network, first, truths, generator(), sampler=SAMPLER, num_clicks=num_clicks
    )
    rounds = min(num_clicks, MAX_ROUNDS)
    assert len(network.prompts) == rounds
    assert prompts.coords_xy.shape == (COUNT, 2 + num_clicks, 2)
    assert torch.equal(prompts.coords_xy[:, :2], first.coords_xy)
    assert torch.equal(prompts.is_box, first.is_box)
    assert not network.shown[0].any()
    for number in range(1, rounds):
        assert torch.equal(network.shown[number], network.found(number - 1).float())
    assert torch.equal(shown, network.found(rounds - 1).float())
    ends = [each.coords_xy.shape[1] for each in network.prompts[1:]] + [2 + num_clicks]
    start = 2
    for number, end in enumerate(ends):
        assert end > start  # clicks in every round
        wrong = network.found(number) ^ truths
        for row in range(COUNT):
            for place in range(start, end):
                x, y = prompts.coords_xy[row, place].long().tolist()
                assert wrong[row, y, x]
                assert int(prompts.labels[row, place]) == int(truths[row, y, x])
        start = end


def test_only_first_answers_give_way_to_ellipses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_corrections, "BLOT_PROBABILITY", 1.0)
    monkeypatch.setattr(mask_corrections, "FORGET_PROBABILITY", 0.0)
    network, first = Recorder(), make_prompts()
    _, shown = correct_masks(
        network, first, make_truths(), generator(), sampler=SAMPLER, num_clicks=3
    )
    is_click = ~first.is_box
    assert not torch.equal(network.shown[1][is_click], network.found(0)[is_click].float())
    assert torch.equal(network.shown[1][first.is_box], network.found(0)[first.is_box].float())
    assert torch.equal(network.shown[2], network.found(1).float())
    assert torch.equal(shown, network.found(2).float())


def test_some_masks_are_forgotten() -> None:
    truths = make_truths(1).expand(400, -1, -1)
    _, shown = correct_masks(
        Recorder(), make_prompts(400), truths, generator(), sampler=SAMPLER, num_clicks=1
    )
    share = 1 - shown.flatten(1).any(dim=1).float().mean()
    assert 0.09 < float(share) < 0.21


def test_the_same_seed_draws_the_same() -> None:
    drawn = [
        correct_masks(
            Recorder(), make_prompts(), make_truths(), generator(seed), sampler=SAMPLER,
            num_clicks=3,
        )
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert torch.equal(drawn[0][0].coords_xy, drawn[1][0].coords_xy)
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0].coords_xy, drawn[2][0].coords_xy)


def test_ellipses_stand_in_for_some_answers_to_clicks() -> None:
    """Around the click, filled, of the sizes that are said; boxes keep their masks."""
    count = 400
    found = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    found[:, 0, 0] = True
    first = make_prompts(count)
    first.coords_xy[:, 0] = torch.tensor([15.0, 17.0])
    blotted = blot_masks(found, first, generator())
    changed = ~torch.eq(blotted, found).flatten(1).all(dim=1)
    assert not changed[first.is_box].any()
    assert 0.15 < float(changed[~first.is_box].float().mean()) < 0.35
    ratios = []
    for mask in blotted[changed].numpy():
        rows, columns = np.nonzero(mask)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.1 * SIDE - 2 <= min(height, width) and max(height, width) <= 1.2 * SIDE
        if 0 < rows.min() and rows.max() < SIDE - 1 and 0 < columns.min() < columns.max() < 31:
            ratios.append(mask.sum() / (height * width))
            middle = np.array([columns.mean(), rows.mean()])
            assert (abs(middle - [15, 17]) <= np.array([width, height]) / 4 + 1).all()
    assert len(ratios) > 5 and abs(np.median(ratios) - np.pi / 4) < 0.06


def test_half_of_the_first_clicks_move_to_the_worst_place() -> None:
    count = 200
    truths = make_truths(1).repeat(count, 1, 1)
    truths[-1] = False
    found = torch.zeros_like(truths)
    found[:, 20:26, 2:9] = True
    found[-1] = False  # nothing is wrong there
    clicks = torch.full((count, 2, 2), 3.0)
    labels = torch.full((count, 2), 9)
    move_to_worst(clicks, labels, found, truths, generator())
    (x, y), label = next_click(found[0].numpy(), truths[0].numpy())
    moved = (labels[:, 0] == label) & (clicks[:, 0] == torch.tensor([x, y])).all(dim=1)
    assert 0.4 < float(moved.float().mean()) < 0.6 and not moved[-1]
    assert (clicks[:, 1] == 3).all() and (labels[:, 1] == 9).all()
    assert (clicks[~moved] == 3).all() and (labels[~moved] == 9).all()


def test_rows_out_and_back_in() -> None:
    prompts = make_prompts()
    rows = torch.tensor([False, True, True, False, False, False, True])
    some = choose_rows(prompts, rows)
    assert some.is_box.tolist() == [False, True, True]
    longer = SampledPrompts(
        torch.cat([some.coords_xy, torch.full((3, 1, 2), 11.0)], dim=1),
        torch.cat([some.labels, torch.zeros(3, 1, dtype=torch.long)], dim=1),
        some.is_box,
    )
    joined = replace_rows(prompts, rows, longer)
    assert torch.equal(joined.coords_xy[:, :2], prompts.coords_xy)
    assert joined.labels[:, 2].tolist() == [4, 0, 0, 4, 4, 4, 0]
    assert torch.equal(joined.coords_xy[~rows, 2], torch.full((4, 2), PADDING_COORD))
    assert torch.equal(joined.is_box, prompts.is_box) and prompts.coords_xy.shape[1] == 2
