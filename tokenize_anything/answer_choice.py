"""Which of several answers to the same clicks counts.

A model answers a click with three masks, and asked in several views with three in each. Its
predicted IoU alone is a weak guide. Three signs beside it need no learning: the mask stays when the
view changes, it stays when the threshold changes (stability, Kirillov et al. 2023, appendix B), and
it does what the clicks say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenize_anything.config import PointLabel
from tokenize_anything.geometry import mask_iou, masks_to_boxes
from tokenize_anything.mask_filtering import box_iou
from tokenize_anything.prompts import PointPrompts

# Weights beside the predicted IoU, chosen on the validation photos of tap_tiny.
AGREEMENT_WEIGHT = 0.5
STABILITY_WEIGHT = 0.4
CLICKS_WEIGHT = 0.5
EXTENT_WEIGHT = 0.5
STABILITY_OFFSET = 1.0  # logits
MANY_CLICKS = 5  # foreground clicks from which on they show how large a region is
EXTENT_MARGIN = 0.06  # by which the region of many clicks is taken to be larger on each side


def shows_extent(prompts: PointPrompts) -> NDArray[np.bool_]:
    """(R,) whether a prompt says how large its region is: a box, or many clicks inside of it."""
    num_inside = (prompts.labels == PointLabel.FOREGROUND).sum(axis=1)
    return prompts.is_box | (num_inside >= MANY_CLICKS)


def obedience(masks: NDArray[np.bool_], prompt: PointPrompts) -> NDArray[np.float64]:
    """How far masks do what the clicks of one prompt say, weighted.

    Args:
        masks: (S,H,W) in the photo.
        prompt: of one region, original pixels, with a click at least.

    Returns:
        (S,) `CLICKS_WEIGHT` times the share of the clicks that lie on the right side of the mask;
        if there are many clicks, plus `EXTENT_WEIGHT` times the IoU of the mask's box with theirs.
    """
    labels, coords = prompt.labels[0], prompt.coords_xy[0]
    is_click = (labels == PointLabel.FOREGROUND) | (labels == PointLabel.BACKGROUND)
    last = np.array(masks.shape[:0:-1]) - 1
    x, y = np.clip(np.floor(coords[is_click]), 0, last).astype(np.int64).T
    is_right = masks[:, y, x] == (labels[is_click] == PointLabel.FOREGROUND)
    total: NDArray[np.float64] = CLICKS_WEIGHT * is_right.mean(axis=1)
    if shows_extent(prompt)[0]:
        inside = coords[labels == PointLabel.FOREGROUND]
        low, high = inside.min(axis=0), inside.max(axis=0)
        margin = EXTENT_MARGIN * (high - low)
        expected = np.concatenate([low - margin, high + margin])
        boxes = np.concatenate([expected[None], masks_to_boxes(masks)])
        total += EXTENT_WEIGHT * box_iou(boxes)[0, 1:]
    return total


def choose_answer(
    scores: NDArray[np.floating], merits: NDArray[np.floating], masks: NDArray[np.bool_]
) -> tuple[int, int]:
    """The view and the slot of the answer that counts.

    Args:
        scores: (V,S) predicted IoUs of S masks in each of V views, the largest view first.
        merits: (V,S) what else is known of each mask.
        masks: (V,S,H,W) in the photo.

    Returns:
        Where score and merit, plus `AGREEMENT_WEIGHT` times the mean IoU with the masks that score
        best in the next larger and the next smaller view, are highest; the first of equals.
    """
    best = masks[np.arange(len(masks)), scores.argmax(axis=1)]
    agreement = np.zeros(scores.shape)
    for view, alike in enumerate(masks):
        beside = [other for other in (view - 1, view + 1) if 0 <= other < len(masks)]
        if beside:
            agreement[view] = mask_iou(alike, best[beside]).mean(axis=1)
    total = scores + merits + AGREEMENT_WEIGHT * agreement
    view, slot = divmod(int(total.argmax()), total.shape[1])
    return view, slot
