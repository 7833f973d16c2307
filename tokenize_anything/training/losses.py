"""Losses of both stages (paper section 3.2 and 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), mean over the last two axes.

    Args:
        logits: (…,H,W).
        targets: (…,H,W) in [0, 1].
    """
    probs = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_true = probs * targets + (1 - probs) * (1 - targets)
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return (alpha * (1 - p_true) ** FOCAL_GAMMA * cross_entropy).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 |p·t| + 1) / (|p| + |t| + 1) over the last two axes (Milletari et al. 2016)."""
    probs = logits.sigmoid().flatten(-2)
    targets = targets.flatten(-2)
    overlap = (probs * targets).sum(dim=-1)
    return 1 - (2 * overlap + 1) / (probs.sum(dim=-1) + targets.sum(dim=-1) + 1)


def mask_loss(
    logits: Tensor, targets: Tensor, *, focal_weight: float = 20.0, dice_weight: float = 1.0
) -> Tensor:
    """Focal and dice in the paper's ratio 20 : 1, one value per leading element."""
    focal, dice = focal_loss(logits, targets), dice_loss(logits, targets)
    return focal_weight * focal + dice_weight * dice


def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of thresholded logits with binary targets over the last two axes; 0 when both empty."""
    predicted, truth = logits.flatten(-2) > 0, targets.flatten(-2) > 0.5
    intersection = (predicted & truth).sum(dim=-1)
    union = (predicted | truth).sum(dim=-1)
    return intersection / union.clamp(min=1)


def concept_loss(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """KL(teacher || student) of concept distributions (…,K); one value per leading element."""
    return F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(-1)


def feature_loss(embeddings: Tensor, features: Tensor) -> Tensor:
    """1 - cosine of predicted embeddings and teacher features (…,D); one value per leading element.

    The paper compares concept with feature prediction and leaves the distance open. Only the
    direction of an embedding is ever used (classifiers normalise it), hence the cosine; it is half
    the squared distance of the unit vectors.
    """
    return 1 - F.cosine_similarity(embeddings, features, dim=-1)


def caption_loss(
    logits: Tensor, targets: Tensor, is_real: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean next-token cross-entropy over real targets.

    Args:
        logits: (R,L,V).
        targets: (R,L) token ids.
        is_real: (R,L) bool; padding counts nothing, whatever id fills it.
        label_smoothing: share of the target that is spread evenly over all V tokens.
    """
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    weights = is_real.flatten().to(losses.dtype)
    return (losses * weights).sum() / weights.sum().clamp(min=1)


def supervised_slot(slot_losses: Tensor, is_box: Tensor) -> Tensor:
    """Which of the four outputs is supervised, (R,) int64.

    A box supervises slot 0; a click supervises the one of slots 1 to 3 with the lowest mask loss.
    This mirrors the routing at inference; the paper does not state it.

    Args:
        slot_losses: (R,4).
        is_box: (R,) bool.
    """
    best_click = slot_losses[:, 1:].argmin(dim=1) + 1
    return torch.where(is_box, torch.zeros_like(best_click), best_click)
