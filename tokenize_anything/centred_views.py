"""Square views with a box or a click in their middle, wherever in the photo that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_SIDE = 4.0  # of what is shown of a photo, original pixels
FINEST_STEP = 4  # a view is made smaller by at least so much from a level of the pyramid


class ImagePyramid:
    """A photo (H,W,3) uint8 and its halves, so that views of much of it need not read all of it.

    Each level holds means of 2 x 2 pixels of the one before, whose last row and column repeat where
    their number is odd; it is made when it is first asked for.
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self._levels = [image]

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3) of the photo."""
        return self._levels[0].shape

    def level(self, number: int) -> NDArray[np.uint8]:
        """The photo at 1 / 2**number of its size, rounded up."""
        while len(self._levels) <= number:
            last = self._levels[-1]
            height, width = last.shape[:2]
            if height % 2 or width % 2:
                last = np.pad(last, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            size = (last.shape[1] // 2, last.shape[0] // 2)
            half = cv2.resize(last, size, interpolation=cv2.INTER_AREA)
            self._levels.append(half.astype(np.uint8, copy=False))
        return self._levels[number]


@dataclass(frozen=True)
class CentredView:
    """A square view of S x S pixels with a box in its middle; padding where the photo ends.

    origin_xy: the view's top left corner, original pixels, also outside of the photo.
    scale: view pixels per original pixel.
    source_xyxy: the part of the photo that the view shows, whole original pixels.
    target_xyxy: where it lies in the view, whole view pixels.
    side: S.
    """

    origin_xy: tuple[float, float]
    scale: float
    source_xyxy: tuple[int, int, int, int]
    target_xyxy: tuple[int, int, int, int]
    side: int

    @classmethod
    def around(
        cls,
        box_xyxy: ArrayLike,
        image_hw: Sequence[int],
        side: int,
        zoom: float,
        *,
        min_side: float = MIN_SIDE,
    ) -> CentredView:
        """The view whose share `zoom` is filled by the long side of a box (4,), original pixels."""
        box = np.asarray(box_xyxy, dtype=np.float64)
        width = max(float((box[2:] - box[:2]).max()), min_side * zoom) / zoom
        origin = (box[:2] + box[2:]) / 2 - width / 2
        limits, scale = np.array(image_hw[::-1]), side / width
        # at least one pixel of the photo, whatever the box
        start = np.clip(np.floor(origin), 0, limits - 1).astype(int)
        end = np.clip(np.ceil(origin + width), start + 1, limits).astype(int)
        low = np.clip(np.round((start - origin) * scale), 0, side - 1).astype(int)
        high = np.clip(np.round((end - origin) * scale), low + 1, side).astype(int)
        return cls(
            (float(origin[0]), float(origin[1])), scale,
            (int(start[0]), int(start[1]), int(end[0]), int(end[1])),
            (int(low[0]), int(low[1]), int(high[0]), int(high[1])), side,
        )  # fmt: skip

    def show(
        self, image: NDArray[Any] | ImagePyramid, padding: Sequence[int] = (0, 0, 0)
    ) -> NDArray[np.uint8]:
        """A photo (H,W,3) uint8 as (S,S,3) uint8, padded; a mask (H,W) bool as (S,S), 0 to 255.

        From a pyramid a view comes up to a quarter of its pixels off at its ends.
        """
        left, top, right, bottom = self.target_xyxy
        shown = np.zeros((self.side, self.side, *image.shape[2:]), np.uint8)
        shown[:] = padding if len(image.shape) == 3 else 0
        if self.scale <= 1:
            window, size = self._cut_out(image), (right - left, bottom - top)
            shown[top:bottom, left:right] = cv2.resize(window, size, interpolation=cv2.INTER_AREA)
            return shown
        window = self._cut_out(image.level(0) if isinstance(image, ImagePyramid) else image)
        # whole pixels of the photo are many of the view: these lie where they are, not rounded
        start = (np.array(self.source_xyxy[:2]) + 0.5 - self.origin_xy) * self.scale - 0.5
        matrix = np.array([[self.scale, 0, start[0]], [0, self.scale, start[1]]])
        grown = cv2.warpAffine(
            window, matrix, (self.side, self.side), borderMode=cv2.BORDER_REPLICATE
        )
        shown[top:bottom, left:right] = grown[top:bottom, left:right]
        return shown

    def _cut_out(self, image: NDArray[Any] | ImagePyramid) -> NDArray[np.uint8]:
        """What of a photo or a mask the view shows; of a pyramid, from the level that suits it."""
        x0, y0, x1, y1 = self.source_xyxy
        if isinstance(image, ImagePyramid):
            number = max(0, math.floor(math.log2(1 / (FINEST_STEP * self.scale))))
            step, image = 2**number, image.level(number)
            x0, y0, x1, y1 = x0 // step, y0 // step, -(-x1 // step), -(-y1 // step)
        window = np.ascontiguousarray(image[y0:y1, x0:x1])
        return window.astype(np.uint8) * np.uint8(255) if window.dtype == np.bool_ else window

    def box_in_view(self, box_xyxy: ArrayLike) -> NDArray[np.float32]:
        """A box (4,), original pixels, in pixels of the view."""
        box = np.asarray(box_xyxy, dtype=np.float64)
        return ((box - np.tile(self.origin_xy, 2)) * self.scale).astype(np.float32)

    def points_in_view(self, coords_xy: NDArray[np.floating]) -> NDArray[np.float32]:
        """Pixels (N,2) of the photo as pixels of the view, also beyond it."""
        return ((coords_xy + 0.5 - self.origin_xy) * self.scale - 0.5).astype(np.float32)

    def restore_mask(
        self, logits: NDArray[np.float32], image_hw: Sequence[int]
    ) -> NDArray[np.bool_]:
        """Where logits (m,m) that cover the view are over 0, in the photo: (H,W)."""
        mask = np.zeros((image_hw[0], image_hw[1]), bool)
        x0, y0, x1, y1 = self._reach(logits > 0)
        if x0 >= x1 or y0 >= y1:
            return mask
        scale = self.scale * len(logits) / self.side
        start = (np.array([x0, y0]) + 0.5 - self.origin_xy) * scale - 0.5
        matrix = np.array([[scale, 0, start[0]], [0, scale, start[1]]])
        restored = cv2.warpAffine(
            logits, matrix, (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        mask[y0:y1, x0:x1] = restored > 0
        return mask

    def _reach(self, cells: NDArray[np.bool_]) -> tuple[int, int, int, int]:
        """The part of the photo that interpolation between some of the cells (m,m) may reach."""
        cell = self.side / self.scale / len(cells)
        ends = []
        for axis, low, high in ((0, *self.source_xyxy[::2]), (1, *self.source_xyxy[1::2])):
            used = np.flatnonzero(cells.any(axis=axis))
            if not len(used):
                return (0, 0, 0, 0)
            start = math.floor(self.origin_xy[axis] + (used[0] - 0.5) * cell) - 1
            end = math.ceil(self.origin_xy[axis] + (used[-1] + 1.5) * cell) + 1
            ends.append((max(low, start), min(high, end)))
        (x0, x1), (y0, y1) = ends
        return (x0, y0, x1, y1)
