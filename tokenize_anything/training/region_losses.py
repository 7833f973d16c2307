"""The loss of one stage of prompts: masks, IoU and concepts together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.modeling import RegionOutputs
from tokenize_anything.training import losses


@dataclass(frozen=True, eq=False)
class RegionTargets:
    """Truth for R regions.

    masks: (R,m,m) bool, covering the model frame.
    has_mask: (R,) bool; mask and IoU losses leave the others out.
    teacher_log_probs: (R,K).
    has_text: (R,) bool; the concept loss leaves the others out.
    """

    masks: Tensor
    has_mask: Tensor
    teacher_log_probs: Tensor
    has_text: Tensor


@dataclass(frozen=True, eq=False)
class RegionLosses:
    """Scalars of one stage, each a mean over the regions it applies to (0 where there are none).

    mean_iou: of the thresholded masks of the supervised slots, for the log.
    slot: (R,) int64, the supervised slot.
    """

    mask: Tensor
    iou: Tensor
    concept: Tensor
    mean_iou: Tensor
    slot: Tensor


def region_losses(
    outputs: RegionOutputs,
    targets: RegionTargets,
    is_box: Tensor,
    vocabulary: ConceptVocabulary,
    *,
    dice_weight: float = 1.0,
) -> RegionLosses:
    """Compare all outputs of R prompts with their truth.

    Mask and concept losses fall on the supervised slot only (see `supervised_slot`), the mask loss
    at the resolution of the true masks. The IoU regression falls on all four (mean squared error to
    the IoU of each thresholded mask); that IoU is measured, and the slot of a click chosen, at the
    resolution of the logits.

    Args:
        outputs: of R prompts, all slots.
        targets: the truth.
        is_box: (R,) bool, whether the prompt started from a box.
        vocabulary: the student's classifier.
        dice_weight: of the dice loss beside 20 times the focal loss.
    """
    logits = outputs.mask_logits.float()
    size = targets.masks.shape[-1]
    rows = torch.arange(len(outputs), device=logits.device)
    truth = targets.masks.float()
    with torch.no_grad():
        low_truth = F.adaptive_avg_pool2d(truth.unsqueeze(1), logits.shape[-1])
        low_truth = low_truth.expand_as(logits)
        slot_losses = losses.mask_loss(logits, low_truth, dice_weight=dice_weight)
        slot = losses.supervised_slot(slot_losses, is_box)
        actual_iou = losses.mask_iou(logits, low_truth)
    chosen = F.interpolate(
        logits[rows, slot].unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False
    )
    mask_losses = losses.mask_loss(chosen[:, 0], truth, dice_weight=dice_weight)
    iou_errors = (outputs.iou_scores - actual_iou).square().mean(dim=1)
    student = vocabulary.log_probs(outputs.semantic_embeddings[rows, slot])
    concept = losses.concept_loss(student, targets.teacher_log_probs)
    return RegionLosses(
        mask=_mean_where(mask_losses, targets.has_mask),
        iou=_mean_where(iou_errors, targets.has_mask),
        concept=_mean_where(concept, targets.has_text),
        mean_iou=_mean_where(actual_iou[rows, slot], targets.has_mask),
        slot=slot,
    )


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    weights = where.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)
