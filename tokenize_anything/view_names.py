"""What outlined regions are, each seen in a view of its own by the view namer.

Such a view has the box of its region in the middle, wherever in the photo that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tokenize_anything.geometry import masks_to_boxes
from tokenize_anything.image_transform import normalize_pixels, pixel_padding
from tokenize_anything.modeling import TAP
from tokenize_anything.region_decoding import DecodedImage
from tokenize_anything.view_outlines import VIEWS_AT_ONCE

NAMING_ZOOM = 0.7  # long side of a box as a share of its view
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
        cls, box_xyxy: ArrayLike, image_hw: Sequence[int], side: int, zoom: float
    ) -> CentredView:
        """The view whose share `zoom` is filled by the long side of a box (4,), original pixels."""
        box = np.asarray(box_xyxy, dtype=np.float64)
        width = max(float((box[2:] - box[:2]).max()), MIN_SIDE * zoom) / zoom
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


@dataclass(frozen=True, eq=False)
class RegionName:
    """What the namer says about one region.

    row: of the region.
    semantic_token: (C,) of the region, with what the namer saw.
    semantic_embedding: (D,) of that token, in the concept space.
    """

    row: int
    semantic_token: Tensor
    semantic_embedding: Tensor


def write_names(
    model: TAP,
    rgb: NDArray[np.uint8],
    target: DecodedImage,
    boxes_xyxy: Mapping[int, NDArray[np.floating]] | None = None,
) -> None:
    """Put tokens and embeddings of the namer in the place of those there are.

    Args:
        model: with a view namer, in evaluation mode.
        rgb: (H,W,3) the photo.
        target: changed in place; regions without a mask stay as they are.
        boxes_xyxy: (4,) original pixels, by row, of regions whose box is known better than from
            their mask.
    """
    known, boxes = boxes_xyxy or {}, {}
    for row in np.flatnonzero(target.masks.any(axis=(1, 2))).tolist():
        boxes[row] = known[row] if row in known else masks_to_boxes(target.masks[row][None])[0]
    for name in name_regions(model, rgb, target.masks, boxes, target.semantic_tokens):
        target.semantic_tokens[name.row] = name.semantic_token
        target.semantic_embeddings[name.row] = name.semantic_embedding


def name_regions(
    model: TAP,
    rgb: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    boxes_xyxy: Mapping[int, NDArray[np.floating]],
    semantic_tokens: Tensor,
) -> Iterator[RegionName]:
    """Name regions, `VIEWS_AT_ONCE` at a time, in order; each is seen twice, once mirrored.

    Args:
        model: with a view namer, in evaluation mode.
        rgb: (H,W,3) the photo.
        masks: (R,H,W) original pixels.
        boxes_xyxy: (4,) original pixels, by the row of the region; the others are left out.
        semantic_tokens: (R,C) of the regions, as the image decoder gave them.
    """
    namer, config = model.view_namer, model.config
    assert namer is not None
    rows = list(boxes_xyxy)
    for start in range(0, len(rows), VIEWS_AT_ONCE):
        some = rows[start : start + VIEWS_AT_ONCE]
        views = [
            CentredView.around(boxes_xyxy[row], rgb.shape[:2], config.namer_size, NAMING_ZOOM)
            for row in some
        ]
        shown = np.stack([view.show(rgb, pixel_padding(config.pixels)) for view in views])
        inside = np.stack([view.show(masks[row]) for view, row in zip(views, some, strict=True)])
        boxes = [view.box_in_view(boxes_xyxy[r]) for view, r in zip(views, some, strict=True)]
        pixels = normalize_pixels(torch.from_numpy(shown).to(model.device), config.pixels)
        asked = (
            pixels.to(model.dtype),
            torch.from_numpy(np.stack(boxes)).to(model.device),
            torch.from_numpy(inside).to(model.device).float() / 255,
        )
        features = namer(*asked) + namer(*asked, mirrored=True)
        tokens = namer.fuse(features / 2, semantic_tokens[some])
        embeddings = namer.semantic_head(tokens)
        for row, token, embedding in zip(some, tokens, embeddings, strict=True):
            yield RegionName(row, token, embedding)
