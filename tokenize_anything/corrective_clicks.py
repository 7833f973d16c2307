"""Where somebody who looks at a mask clicks to correct it (Kirillov et al. 2023, section 7.1)."""

from __future__ import annotations

import cv2
import numpy as np

from tokenize_anything.config import PointLabel
from tokenize_anything.geometry import innermost_point, masks_to_boxes


def next_click(mask: np.ndarray, truth: np.ndarray) -> tuple[tuple[float, float], int]:
    """Where a mask (H,W) is most wrong: (x, y) of a pixel and its label, 1 missed or 0 too much.

    The largest 8-connected piece of either kind counts, and in it the pixel farthest from its
    border. Equally large: missed before too much, then in reading order.

    Raises:
        ValueError: the masks are equal.
    """
    best_area, best_label, best_xy = 0, PointLabel.FOREGROUND, (0, 0)
    for wrong, label in (
        (truth & ~mask, PointLabel.FOREGROUND),
        (mask & ~truth, PointLabel.BACKGROUND),
    ):
        left, top, right, bottom = masks_to_boxes(wrong[None])[0].astype(int).tolist()
        part = np.ascontiguousarray(wrong[top:bottom, left:right]).view(np.uint8)
        if not part.size:
            continue
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(part)
        areas = stats[1:, cv2.CC_STAT_AREA]
        if areas.max() > best_area:
            number = 1 + int(areas.argmax())
            x, y, width, height, best_area = (int(value) for value in stats[number])
            inner_x, inner_y = innermost_point(pieces[y : y + height, x : x + width] == number)
            best_xy, best_label = (left + x + inner_x, top + y + inner_y), label
    if not best_area:
        raise ValueError("mask: expected one that differs from truth, got an equal one")
    return best_xy, int(best_label)
