"""What needs no learning: the answers any model has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def filled_box(shape_hw: tuple[int, int], box_xyxy: Sequence[float]) -> np.ndarray:
    """All pixels of a box, (H,W) bool."""
    x, y = _pixel_centres(shape_hw)
    x0, y0, x1, y1 = box_xyxy
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def ellipse_in_box(shape_hw: tuple[int, int], box_xyxy: Sequence[float]) -> np.ndarray:
    """The ellipse that touches the sides of a box, (H,W) bool."""
    x, y = _pixel_centres(shape_hw)
    x0, y0, x1, y1 = box_xyxy
    dx = (x - (x0 + x1) / 2) / max((x1 - x0) / 2, 0.5)
    dy = (y - (y0 + y1) / 2) / max((y1 - y0) / 2, 0.5)
    return dx**2 + dy**2 <= 1


def disc_at(shape_hw: tuple[int, int], point_xy: Sequence[float], radius: float) -> np.ndarray:
    """A disc around a point, (H,W) bool."""
    x, y = _pixel_centres(shape_hw)
    return (x - point_xy[0] - 0.5) ** 2 + (y - point_xy[1] - 0.5) ** 2 <= radius**2


def commonest(values: Sequence[str]) -> str:
    """The most frequent value; among equals the first in the alphabet."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _pixel_centres(shape_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.ogrid[: shape_hw[0], : shape_hw[1]]
    return x + 0.5, y + 0.5
