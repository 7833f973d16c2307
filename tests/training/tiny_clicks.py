"""Answers to clicks in windows with drawn regions, for tests of losses."""

from __future__ import annotations

import torch

from tokenize_anything.data.click_dataset import ClickBatch
from tokenize_anything.modeling import ClickOutputs
from tokenize_anything.modeling.click_segmenter import NUM_WINDOWS

SIDE = 64


def make_batch() -> tuple[ClickBatch, ClickOutputs]:
    """Three regions whose masks differ in each window, from specks to more than the window."""
    count, generator = 3, torch.Generator().manual_seed(4)
    masks = torch.zeros(count, NUM_WINDOWS, SIDE, SIDE, dtype=torch.uint8)
    areas = torch.zeros(count, NUM_WINDOWS)
    for row in range(count):
        for place in range(NUM_WINDOWS):
            half = min(SIDE // 2, (1 + row) * 2**place // 2 + 1)
            inside = slice(SIDE // 2 - half, SIDE // 2 + half)
            masks[row, place, inside, inside] = 255
            masks[row, place, SIDE // 2 - half, inside] = 100
            areas[row, place] = (1 + row) ** 2 * 4.0**place
    batch = ClickBatch(
        images=torch.zeros(count, NUM_WINDOWS, SIDE, SIDE, 3, dtype=torch.uint8),
        masks=masks,
        areas=areas,
        home=torch.tensor([4, 3, 2]),
        names=("a.png",) * count,
    )
    side = SIDE // 2
    logits = torch.randn(count, NUM_WINDOWS, side, side, generator=generator)
    return batch, ClickOutputs(logits, torch.rand(count, NUM_WINDOWS, generator=generator))
