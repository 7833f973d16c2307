"""Square views with a box or a click in their middle, wherever in the photo that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_SIDE = 4.0  # of what is shown of a photo, original pixels


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

    def show(self, image: NDArray[Any], padding: Sequence[int] = (0, 0, 0)) -> NDArray[np.uint8]:
        """A photo (H,W,3) uint8 as (S,S,3) uint8, padded; a mask (H,W) bool as (S,S), 0 to 255."""
        x0, y0, x1, y1 = self.source_xyxy
        left, top, right, bottom = self.target_xyxy
        window = np.ascontiguousarray(image[y0:y1, x0:x1])
        if image.dtype == np.bool_:
            window = window.astype(np.uint8) * np.uint8(255)
        shown = np.zeros((self.side, self.side, *image.shape[2:]), np.uint8)
        shown[:] = padding if image.ndim == 3 else 0
        if self.scale <= 1:
            size = (right - left, bottom - top)
            shown[top:bottom, left:right] = cv2.resize(window, size, interpolation=cv2.INTER_AREA)
            return shown
        # whole pixels of the photo are many of the view: these lie where they are, not rounded
        start = (np.array([x0, y0]) + 0.5 - self.origin_xy) * self.scale - 0.5
        matrix = np.array([[self.scale, 0, start[0]], [0, self.scale, start[1]]])
        grown = cv2.warpAffine(
            window, matrix, (self.side, self.side), borderMode=cv2.BORDER_REPLICATE
        )
        shown[top:bottom, left:right] = grown[top:bottom, left:right]
        return shown

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
        x0, y0, x1, y1 = self.source_xyxy
        scale = self.scale * len(logits) / self.side
        start = (np.array([x0, y0]) + 0.5 - self.origin_xy) * scale - 0.5
        matrix = np.array([[scale, 0, start[0]], [0, scale, start[1]]])
        restored = cv2.warpAffine(
            logits, matrix, (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        mask = np.zeros((image_hw[0], image_hw[1]), bool)
        mask[y0:y1, x0:x1] = restored > 0
        return mask
