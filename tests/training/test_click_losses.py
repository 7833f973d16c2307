"""Losses of masks in views and of the windows around a click, against plain computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.training.tiny_clicks import SIDE, make_batch
from tokenize_anything.modeling.click_segmenter import NUM_WINDOWS
from tokenize_anything.training.click_training import MIN_FILL, window_losses
from tokenize_anything.training.outline_losses import outline_losses


def logistic_losses(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and dice of one mask."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    return float(entropy), float(1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))


def iou_plainly(logits: np.ndarray, truth: np.ndarray, area: float, cell: int) -> float:
    cut = logits > 0
    shared = cell**2 * (truth * cut).sum()
    return float(shared / max(1.0, cell**2 * cut.sum() + area - shared))


def shrink(mask: np.ndarray, cell: int) -> np.ndarray:
    count = len(mask) // cell
    return mask.reshape(count, cell, count, cell).mean(axis=(1, 3))


@pytest.mark.parametrize("cell", [2, 4])
def test_outline_losses_equal_a_plain_computation(cell: int) -> None:
    generator = torch.Generator().manual_seed(1)
    count, side = 7, 24
    logits = torch.randn(count, side // cell, side // cell, generator=generator)
    logits[5] = -1.0
    masks = torch.rand(count, side, side, generator=generator)
    masks[4:6] = 0.0
    areas = masks.sum((1, 2)) * torch.tensor([1.0, 2.5, 1.0, 1.5, 1.0, 1.0, 1.0])
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0, 1.0, 0.0])
    parts, ious = outline_losses(logits.requires_grad_(), masks, areas, weights)
    given = logits.detach().numpy()
    entropies, dices, expected = [], [], []
    for row in range(count):
        truth = shrink(masks[row].double().numpy(), cell)
        entropy, dice = logistic_losses(given[row], truth)
        entropies.append(entropy)
        dices.append(dice)
        expected.append(iou_plainly(given[row], truth, float(areas[row]), cell))
    np.testing.assert_allclose(ious.numpy(), expected, rtol=1e-5)
    shares = weights.numpy() / weights.numpy().sum()
    assert float(parts["mask"].detach()) == pytest.approx((shares * entropies).sum(), rel=1e-5)
    assert float(parts["dice"].detach()) == pytest.approx((shares * dices).sum(), rel=1e-5)
    assert not ious.requires_grad and set(parts) == {"mask", "dice"}
    sum(parts.values()).backward()
    assert logits.grad is not None
    assert [bool(row.any()) for row in logits.grad] == [bool(weight) for weight in weights]


def test_views_that_do_not_count_give_no_loss() -> None:
    parts, ious = outline_losses(
        torch.ones(2, 4, 4), torch.ones(2, 8, 8), torch.full((2,), 64.0), torch.zeros(2)
    )
    assert float(parts["mask"]) == float(parts["dice"]) == 0.0
    assert ious.tolist() == [1.0, 1.0]


def test_losses_of_windows_equal_a_plain_computation() -> None:
    """Masks only where the region is no speck, scores everywhere."""
    batch, outputs = make_batch()
    parts, ious = window_losses(outputs, batch)
    entropies, dices, errors, counted = [], [], [], []
    for row in range(3):
        for place in range(NUM_WINDOWS):
            truth = shrink(batch.masks[row, place].double().numpy() / 255, 2)
            logits, area = outputs.mask_logits[row, place].numpy(), float(batch.areas[row, place])
            iou = iou_plainly(logits, truth, area, 2)
            assert float(ious[row, place]) == pytest.approx(iou, rel=1e-5)
            errors.append((float(outputs.iou_scores[row, place]) - iou) ** 2)
            counted.append(math.sqrt(area) >= MIN_FILL * SIDE)
            if counted[-1]:
                entropy, dice = logistic_losses(logits, truth)
                entropies.append(entropy)
                dices.append(dice)
    assert 3 < sum(counted) < 12  # or this would show little
    expected = {"mask": entropies, "dice": dices, "iou": errors}
    assert set(parts) == set(expected)
    for name, values in expected.items():
        assert float(parts[name]) == pytest.approx(np.mean(values), rel=1e-4), name
