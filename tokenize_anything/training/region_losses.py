"""The loss of one stage of prompts: masks, IoU and concepts together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.modeling import RegionOutputs
from tokenize_anything.training import losses

# What the semantic embedding of a region is compared with: the teacher's concept distribution, its
# feature vector, or nothing (the rows of the paper's tables 4 and 5).
ConceptLoss = Literal["concept", "feature", "none"]


@dataclass(frozen=True, eq=False)
class RegionTargets:
    """Truth for R regions.

    masks: (R,m,m) bool, covering the model frame.
    has_mask: (R,) bool; mask and IoU losses leave the others out.
    teacher: (R,K) log-probabilities of the concepts, or (R,D) feature vectors, as the loss wants
        it; unused without a concept loss.
    has_text: (R,) bool; the concept loss leaves the others out.
    mask_count, text_count: how many regions the means of the losses are over; None counts those of
        `has_mask` and `has_text`. A part of a batch gets the counts of the whole, so that the
        losses of the parts add up to that of the whole.
    """

    masks: Tensor
    has_mask: Tensor
    teacher: Tensor
    has_text: Tensor
    mask_count: Tensor | None = None
    text_count: Tensor | None = None


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
    vocabulary: ConceptVocabulary | None,
    *,
    dice_weight: float = 1.0,
    concept_loss: ConceptLoss = "concept",
) -> RegionLosses:
    """Compare all outputs of R prompts with their truth, at the resolution of the logits.

    The true masks are averaged over the area of each logit, so that small regions keep their share
    of a pixel. Mask and concept losses fall on the supervised slot only (see `supervised_slot`),
    the IoU regression on all four (mean squared error to the IoU of each thresholded mask).

    Args:
        outputs: of R prompts, all slots.
        targets: the truth.
        is_box: (R,) bool, whether the prompt started from a box.
        vocabulary: the student's classifier; needed by the loss "concept" alone.
        dice_weight: of the dice loss beside 20 times the focal loss.
        concept_loss: which one.
    """
    logits = outputs.mask_logits.float()
    rows = torch.arange(len(outputs), device=logits.device)
    truth = F.adaptive_avg_pool2d(targets.masks.float().unsqueeze(1), logits.shape[-1])
    with torch.no_grad():
        slot_losses = losses.mask_loss(logits, truth.expand_as(logits), dice_weight=dice_weight)
        slot = losses.supervised_slot(slot_losses, is_box)
        actual_iou = losses.mask_iou(logits, truth.expand_as(logits))
    mask_losses = losses.mask_loss(logits[rows, slot], truth[:, 0], dice_weight=dice_weight)
    iou_errors = (outputs.iou_scores - actual_iou).square().mean(dim=1)
    embeddings = outputs.semantic_embeddings[rows, slot]
    if concept_loss == "concept":
        assert vocabulary is not None
        concept = losses.concept_loss(vocabulary.log_probs(embeddings), targets.teacher)
    elif concept_loss == "feature":
        concept = losses.feature_loss(embeddings.float(), targets.teacher)
    else:
        concept = torch.zeros_like(mask_losses)
    return RegionLosses(
        mask=_mean_where(mask_losses, targets.has_mask, targets.mask_count),
        iou=_mean_where(iou_errors, targets.has_mask, targets.mask_count),
        concept=_mean_where(concept, targets.has_text, targets.text_count),
        mean_iou=_mean_where(actual_iou[rows, slot], targets.has_mask, targets.mask_count),
        slot=slot,
    )


def _mean_where(values: Tensor, where: Tensor, count: Tensor | None) -> Tensor:
    total = (values * where.to(values.dtype)).sum()
    return total / (where.sum() if count is None else count).clamp(min=1)
