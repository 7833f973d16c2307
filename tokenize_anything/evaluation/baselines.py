"""What needs no learning: the answers any model has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np


def filled_box(shape_hw: tuple[int, int], box_xyxy: Sequence[float]) -> np.ndarray:
    """All pixels of a box, (H,W) bool."""
    x0, y0, x1, y1 = box_xyxy
    return _draw(shape_hw, box_xyxy, lambda x, y: (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))


def ellipse_in_box(shape_hw: tuple[int, int], box_xyxy: Sequence[float]) -> np.ndarray:
    """The ellipse that touches the sides of a box, (H,W) bool."""
    x0, y0, x1, y1 = box_xyxy

    def is_inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx = (x - (x0 + x1) / 2) / max((x1 - x0) / 2, 0.5)
        dy = (y - (y0 + y1) / 2) / max((y1 - y0) / 2, 0.5)
        return np.asarray(dx**2 + dy**2 <= 1)

    return _draw(shape_hw, box_xyxy, is_inside)


def disc_at(shape_hw: tuple[int, int], point_xy: Sequence[float], radius: float) -> np.ndarray:
    """A disc around a point, (H,W) bool."""
    px, py = point_xy[0] + 0.5, point_xy[1] + 0.5
    box = (px - radius, py - radius, px + radius, py + radius)
    return _draw(shape_hw, box, lambda x, y: (x - px) ** 2 + (y - py) ** 2 <= radius**2)


def commonest(values: Sequence[str]) -> str:
    """The most frequent value; among equals the first in the alphabet."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _draw(
    shape_hw: tuple[int, int],
    box_xyxy: Sequence[float],
    is_inside: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Pixels whose centres are inside; none lies farther than a pixel from the box."""
    x0, y0, x1, y1 = (max(int(edge), 0) for edge in box_xyxy)
    part = np.s_[max(y0 - 1, 0) : y1 + 2, max(x0 - 1, 0) : x1 + 2]
    y, x = np.ogrid[: shape_hw[0], : shape_hw[1]]
    mask = np.zeros(shape_hw, bool)
    mask[part] = is_inside(x[:, part[1]] + 0.5, y[part[0]] + 0.5)
    return mask
