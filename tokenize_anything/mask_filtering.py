"""Which of many masks are worth keeping: stability, duplicates, specks and holes, and parts."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenize_anything.geometry import mask_iou

# Pixels of all masks compared in one matrix product; more only takes memory.
_PIXELS_AT_ONCE = 2**14


def stability_scores(mask_logits: Tensor, offset: float) -> Tensor:
    """IoU of each mask at the thresholds +offset and -offset (Kirillov et al. 2023, appendix B).

    Args:
        mask_logits: (K,h,w).
        offset: at least 0.

    Returns:
        (K,) in [0, 1]; 0 where no logit exceeds -offset.
    """
    inner = (mask_logits > offset).sum(dim=(1, 2))
    outer = (mask_logits > -offset).sum(dim=(1, 2))
    return inner / outer.clamp(min=1)


def pairwise_mask_iou(masks: Tensor) -> Tensor:
    """(K,h,w) booleans on any device to (K,K) float32 IoU; 0 where both masks are empty.

    `geometry.mask_iou` is the same for arrays; this one stays on the device.
    """
    flat = masks.flatten(1)
    shared = torch.zeros(len(flat), len(flat), device=flat.device)
    for pixels in flat.split(_PIXELS_AT_ONCE, dim=1):
        part = pixels.float()
        shared += part @ part.T
    areas = flat.sum(dim=1)
    return shared / (areas[:, None] + areas - shared).clamp(min=1)


def box_iou(boxes_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    """(K,4) boxes to (K,K) IoU; 0 where both boxes are empty."""
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[:, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=-1)
    union = areas[:, None] + areas - shared
    return shared / np.where(union > 0, union, 1)


def pick_distinct(is_same: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows that are left when each row in turn drops the later ones that are the same.

    Args:
        is_same: (K,K), in order of preference; the diagonal does not count.
    """
    is_left = np.ones(len(is_same), bool)
    for row in range(len(is_same)):
        if is_left[row]:
            is_left[row + 1 :] &= ~is_same[row, row + 1 :]
    return np.flatnonzero(is_left)


def clean_mask(mask: NDArray[np.bool_], min_area: int) -> NDArray[np.bool_]:
    """A mask without parts and without holes of fewer than `min_area` pixels, (H,W).

    Parts hang together by sides and corners, holes by sides.
    """
    if min_area <= 1:
        return mask
    large = _drop_small(mask, min_area, connectivity=8)
    # With a border all that surrounds the mask is one piece, which is no hole.
    around = np.pad(~large, 1, constant_values=True)
    pieces = cv2.connectedComponentsWithStats(around.astype(np.uint8), connectivity=4)
    _, labels, stats, _ = pieces
    is_hole = stats[:, cv2.CC_STAT_AREA] < min_area
    is_hole[[0, labels[0, 0]]] = False
    return large | is_hole[labels][1:-1, 1:-1]


def _drop_small(mask: NDArray[np.bool_], min_area: int, connectivity: int) -> NDArray[np.bool_]:
    pieces = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    _, labels, stats, _ = pieces
    is_large = stats[:, cv2.CC_STAT_AREA] >= min_area
    is_large[0] = False  # what is not mask
    return np.asarray(is_large[labels])


def find_parents(
    areas: NDArray[np.int64], ious: NDArray[np.floating], min_containment: float
) -> NDArray[np.int64]:
    """The tree of parts: for each mask the smallest larger one that contains it.

    Args:
        areas: (R,) pixels of the masks.
        ious: (R,R) of each mask with each.
        min_containment: least share of a mask's pixels that lie in its parent.

    Returns:
        (R,) rows of the parents, -1 where there is none. Among equals the first one.
    """
    if not len(areas):
        return np.zeros(0, np.int64)
    # IoU = shared / (area + other - shared), solved for the whole number of shared pixels.
    shared = np.rint(ious * (areas[:, None] + areas) / (1.0 + ious.astype(np.float64)))
    is_in = (shared >= min_containment * areas[:, None]) & (areas > areas[:, None])
    parents = np.where(is_in, areas, areas.max() + 1).argmin(axis=1)
    return np.where(is_in.any(axis=1), parents, -1)


def pick_regions(
    masks: NDArray[np.bool_],
    scores: NDArray[np.floating],
    max_overlap: float,
    min_containment: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose among masks (R,H,W): no empty ones, and of duplicates the one of the best score.

    Returns:
        The chosen rows, best first, and for each its parent as a place among the chosen, or -1.
    """
    ious = mask_iou(masks, masks)
    order = np.argsort(-scores, kind="stable")
    rows = order[pick_distinct(ious[np.ix_(order, order)] > max_overlap)]
    areas = masks.sum(axis=(1, 2))
    rows = rows[areas[rows] > 0]
    return rows, find_parents(areas[rows], ious[np.ix_(rows, rows)], min_containment)
