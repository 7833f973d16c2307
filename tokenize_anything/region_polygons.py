"""Masks as polygons and back, as COCO counts: the first pixel is the square from (0,0) to (1,1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenize_anything.geometry import masks_to_boxes, require_masks, to_numpy


def mask_to_polygons(mask: ArrayLike, *, tolerance: float = 0.0) -> list[NDArray[np.float64]]:
    """Outer outlines of a mask along the edges of its pixels; holes are filled.

    `geometry.masks_to_polygons` goes through the middles of the outermost pixels instead.

    Args:
        mask: (H,W); nonzero pixels belong to the mask.
        tolerance: how far, in pixels, an outline may be off to get by with fewer corners. With 0
            `polygons_to_mask` gives back exactly the mask without its holes.

    Returns:
        One (P,2) array of corners x, y per part, the one of largest area first. Parts that
        touch at a corner are one.

    Raises:
        ValueError: not (H,W).
    """
    import cv2

    pixels = require_masks("mask", to_numpy("mask", mask)[None])[0]
    x0, y0, x1, y1 = masks_to_boxes(pixels[None])[0].astype(int)
    crop = pixels[y0:y1, x0:x1].astype(np.uint8)
    if not crop.size:
        return []
    # Outlines go through pixels. With every pixel doubled, the left one of a pair rounds to the
    # left edge of its pixel and the right one to the right edge.
    doubled = crop.repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for outline in sorted(outlines, key=cv2.contourArea, reverse=True):
        corners = (outline[:, 0].astype(np.int32) + 1) // 2
        corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
        if tolerance > 0:
            simple = cv2.approxPolyDP(corners[:, None], tolerance, closed=True)[:, 0]
            corners = simple if len(simple) >= 3 else corners
        polygons.append(corners + np.array([x0, y0], np.float64))
    return polygons


def polygons_to_mask(polygons: Sequence[ArrayLike], height: int, width: int) -> NDArray[np.bool_]:
    """(H,W) pixels whose middles lie in at least one of the polygons.

    Inside a polygon that crosses itself the even-odd rule decides.

    Args:
        polygons: each (P,2) corners x, y or a flat list x, y, x, y, ... of at least 3 corners;
            what lies outside the image is cut off.
        height: of the image in pixels.
        width: of the image in pixels.

    Raises:
        ValueError: fewer than 3 corners, an odd number of coordinates, or values that are not
            finite numbers.
    """
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        mask |= _fill(_require_corners(polygon), height, width)
    return mask


def _require_corners(polygon: ArrayLike) -> NDArray[np.float64]:
    values = to_numpy("polygon", polygon)
    is_flat = values.ndim == 1 and values.size % 2 == 0
    is_pairs = values.ndim == 2 and values.shape[1] == 2
    if values.dtype.kind not in "iuf" or not (is_flat or is_pairs) or values.size < 6:
        raise ValueError(
            f"polygon: expected at least 3 corners as x, y, x, y, ..., got {values.dtype} of shape "
            f"{values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("polygon: expected finite coordinates, got NaN or infinity")
    return values.reshape(-1, 2).astype(np.float64)


def _fill(corners: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Even-odd rule on the middles of pixels, row by row of crossings."""
    starts, ends = corners, np.roll(corners, -1, axis=0)
    # An edge crosses the rows whose middle lies in [top, bottom), so that corners count once.
    first = np.clip(np.ceil(np.minimum(starts[:, 1], ends[:, 1]) - 0.5), 0, height).astype(int)
    end = np.clip(np.ceil(np.maximum(starts[:, 1], ends[:, 1]) - 0.5), 0, height).astype(int)
    counts = end - first
    edges = np.repeat(np.arange(len(corners)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    (x0, y0), (dx, dy) = starts[edges].T, (ends - starts)[edges].T
    crossings = x0 + (rows + 0.5 - y0) * dx / dy
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
    toggles = np.zeros((height, width + 1), np.int32)
    np.add.at(toggles, (rows, columns), 1)
    return np.cumsum(toggles, axis=1)[:, :width] % 2 == 1
