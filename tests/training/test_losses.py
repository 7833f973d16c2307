"""Losses, element by element against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenize_anything.training.losses import (
    caption_loss,
    concept_loss,
    dice_loss,
    feature_loss,
    focal_loss,
    mask_iou,
    mask_loss,
    supervised_slot,
)

R, S, H, W = 3, 2, 5, 7


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def masks(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and soft targets in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, generator=generator)
    return logits, torch.rand(*shape, generator=generator).round(decimals=1)


def plain_focal(logits: np.ndarray, targets: np.ndarray) -> float:
    total = 0.0
    for x, t in zip(logits.ravel().tolist(), targets.ravel().tolist(), strict=True):
        p = sigmoid(x)
        cross_entropy = -(t * math.log(p) + (1 - t) * math.log(1 - p))
        p_true = p * t + (1 - p) * (1 - t)
        total += (0.25 * t + 0.75 * (1 - t)) * (1 - p_true) ** 2 * cross_entropy
    return total / logits.size


def plain_dice(logits: np.ndarray, targets: np.ndarray) -> float:
    pairs = list(zip(map(sigmoid, logits.ravel()), targets.ravel().tolist(), strict=True))
    overlap = sum(p * t for p, t in pairs)
    return 1 - (2 * overlap + 1) / (sum(p for p, _ in pairs) + sum(t for _, t in pairs) + 1)


@pytest.mark.parametrize("shape", [(R, S), (R,)])
def test_mask_losses_equal_plain_loops(shape: tuple[int, ...]) -> None:
    logits, targets = masks(*shape, H, W)
    focal, dice, both = (loss(logits, targets) for loss in (focal_loss, dice_loss, mask_loss))
    assert focal.shape == dice.shape == both.shape == shape
    for index in np.ndindex(*shape):
        pair = logits[index].double().numpy(), targets[index].double().numpy()
        assert float(focal[index]) == pytest.approx(plain_focal(*pair), rel=1e-5)
        assert float(dice[index]) == pytest.approx(plain_dice(*pair), rel=1e-5)
        expected = 20 * plain_focal(*pair) + plain_dice(*pair)
        assert float(both[index]) == pytest.approx(expected, rel=1e-5)


def test_mask_weights_are_used() -> None:
    logits, targets = masks(R, H, W)
    expected = 2 * focal_loss(logits, targets) + 3 * dice_loss(logits, targets)
    weighted = mask_loss(logits, targets, focal_weight=2.0, dice_weight=3.0)
    torch.testing.assert_close(weighted, expected)


def test_mask_loss_is_small_where_right_and_finite_where_extreme() -> None:
    truth = (torch.rand(1, H, W) > 0.5).float()
    right = mask_loss(200 * (truth - 0.5), truth)
    wrong = mask_loss(200 * (0.5 - truth), truth)
    assert right < 1e-4 and wrong > 100 and wrong.isfinite()


def test_iou_equals_plain_counts() -> None:
    logits, targets = masks(R, S, H, W)
    logits[0, 0], targets[0, 0] = -1.0, 0.0  # both empty
    logits[0, 1], targets[0, 1] = -1.0, 1.0  # nothing predicted
    iou = mask_iou(logits, targets)
    assert iou.shape == (R, S)
    for index in np.ndindex(R, S):
        predicted, truth = logits[index].numpy() > 0, targets[index].numpy() > 0.5
        union = (predicted | truth).sum()
        expected = (predicted & truth).sum() / union if union else 0.0
        assert float(iou[index]) == pytest.approx(expected)


def log_probs(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=-1)


def test_concept_loss_is_the_divergence_from_teacher_to_student() -> None:
    student, teacher = log_probs(R, 7, seed=0), log_probs(R, 7, seed=1)
    loss = concept_loss(student, teacher)
    assert loss.shape == (R,)
    for row in range(R):
        expected = sum(
            math.exp(t) * (t - s)
            for t, s in zip(teacher[row].tolist(), student[row].tolist(), strict=True)
        )
        assert float(loss[row]) == pytest.approx(expected, rel=1e-5)


def test_concept_loss_is_0_only_for_equal_distributions() -> None:
    teacher = log_probs(R, 7, seed=1)
    torch.testing.assert_close(concept_loss(teacher, teacher), torch.zeros(R))
    assert (concept_loss(log_probs(R, 7, seed=2), teacher) > 0.01).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_caption_loss_equals_plain_sums(smoothing: float) -> None:
    length, words = 5, 11
    logits = torch.randn(R, length, words, generator=torch.Generator().manual_seed(3))
    targets = torch.arange(R * length).reshape(R, length) * 4 % words
    is_real = torch.arange(length) < torch.tensor([[5], [2], [3]])
    total = 0.0
    for row, place in zip(*np.nonzero(is_real.numpy()), strict=True):
        log_p = logits[row, place].double().log_softmax(dim=-1)
        own, mean = float(log_p[targets[row, place]]), float(log_p.mean())
        total -= (1 - smoothing) * own + smoothing * mean
    loss = caption_loss(logits, targets, is_real, label_smoothing=smoothing)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(total / 10, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_what_fills_the_padding_counts_nothing(smoothing: float) -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    is_real = torch.tensor([[True, True, False], [True, False, False]])
    losses = []
    for filling in (0, 4):
        targets = torch.tensor([[1, 2, filling], [3, filling, filling]])
        losses.append(caption_loss(logits, targets, is_real, label_smoothing=smoothing))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    losses[0].backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(dim=-1) > 0).tolist() == is_real.tolist()


def test_a_caption_loss_without_real_targets_is_0() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert float(caption_loss(torch.randn(2, 3, 5), nothing.long(), nothing)) == 0


def test_boxes_supervise_slot_0_and_clicks_the_best_of_the_rest() -> None:
    slot_losses = torch.tensor(
        [
            [9.0, 1.0, 2.0, 3.0],
            [9.0, 1.0, 2.0, 3.0],
            [0.0, 3.0, 1.0, 2.0],
            [0.0, 3.0, 2.0, 1.0],
            [0.0, 2.0, 2.0, 2.0],
        ]
    )
    is_box = torch.tensor([True, False, False, False, False])
    slots = supervised_slot(slot_losses, is_box)
    assert slots.dtype == torch.int64
    assert slots.tolist() == [0, 1, 2, 3, 1]


def test_feature_loss_is_1_minus_the_cosine() -> None:
    embeddings, features = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    loss = feature_loss(embeddings, features)
    assert loss.shape == (2, 3)
    for row, column in np.ndindex(2, 3):
        a, b = embeddings[row, column].tolist(), features[row, column].tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        assert float(loss[row, column]) == pytest.approx(1 - dot / lengths, abs=1e-5)
    torch.testing.assert_close(feature_loss(3 * features, features), torch.zeros(2, 3))
    one, two = (x / x.norm(dim=-1, keepdim=True) for x in (embeddings, features))
    squared = (one - two).square().sum(dim=-1)
    torch.testing.assert_close(loss, squared / 2)
