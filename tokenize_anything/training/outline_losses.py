"""Losses of the masks that networks draw in views of single regions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.training import losses
from tokenize_anything.training.part_training import mean_where


def outline_losses(
    logits: Tensor, masks: Tensor, areas: Tensor, weights: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses of masks, weighted means over the views, and what IoU each view reaches.

    The true masks are averaged over the area of each logit. The IoU is that with the whole region:
    what the view cuts off counts as missed.

    Args:
        logits: (R,m,m).
        masks: (R,v,v) truth in [0, 1], v a multiple of m.
        areas: (R,) of the whole region, also beyond the view, in pixels of the view.
        weights: (R,) of each view.

    Returns:
        "mask" and "dice", and the IoUs (R,) without a gradient.
    """
    logits = logits.float()
    truth = F.adaptive_avg_pool2d(masks.float()[:, None], logits.shape[-1])[:, 0]
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
    with torch.no_grad():
        found = logits > 0
        cell = (masks.shape[-1] / logits.shape[-1]) ** 2
        shared = (truth * found).sum((1, 2)) * cell
        union = found.sum((1, 2)) * cell + areas - shared
        ious = shared / union.clamp(min=1)
    dice = losses.dice_loss(logits, truth)
    return {"mask": mean_where(entropy, weights), "dice": mean_where(dice, weights)}, ious
