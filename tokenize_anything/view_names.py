"""What outlined regions are, each seen in a view of its own by the view namer.

Such a view has the box of its region in the middle, wherever in the photo that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tokenize_anything.centred_views import MIN_SIDE, CentredView, ImagePyramid
from tokenize_anything.click_windows import show_windows
from tokenize_anything.geometry import masks_to_boxes
from tokenize_anything.modeling import TAP, ViewNamer
from tokenize_anything.modeling.view_encoder import cover_boxes
from tokenize_anything.region_decoding import DecodedImage
from tokenize_anything.view_outlines import VIEWS_AT_ONCE

NAMING_ZOOM = 0.7  # long side of a box as a share of its view
WIDE_ZOOM = 0.2  # the same of its wider view, which shows at most a photo and ...
WIDE_LIMIT = 1.2  # ... a fifth more


def wide_zoom(box_xyxy: ArrayLike, image_hw: Sequence[int]) -> float:
    """Long side of a box (4,), original pixels, as a share of its wider view."""
    box = np.asarray(box_xyxy, dtype=np.float64)
    long_side = max(float((box[2:] - box[:2]).max()), MIN_SIDE)
    return max(WIDE_ZOOM, long_side / (WIDE_LIMIT * max(image_hw)))


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
    """Name regions, `VIEWS_AT_ONCE` at a time, in order.

    Args:
        model: with a view namer, in evaluation mode.
        rgb: (H,W,3) the photo.
        masks: (R,H,W) original pixels.
        boxes_xyxy: (4,) original pixels, by the row of the region; the others are left out.
        semantic_tokens: (R,C) of the regions, as the image decoder gave them.
    """
    assert model.view_namer is not None
    namer, config = model.fold_views(model.view_namer), model.config
    rows, photo = list(boxes_xyxy), ImagePyramid(rgb)
    for start in range(0, len(rows), VIEWS_AT_ONCE):
        some = rows[start : start + VIEWS_AT_ONCE]
        boxes = [boxes_xyxy[row] for row in some]
        close = [
            CentredView.around(box, rgb.shape[:2], config.namer_size, NAMING_ZOOM) for box in boxes
        ]
        inside = np.stack([view.show(masks[row]) for view, row in zip(close, some, strict=True)])
        outlines = torch.from_numpy(inside).to(model.device).float() / 255
        with model.view_precision():
            features = namer(*_show(model, photo, close, boxes), outlines)
            if namer.wide is not None:
                around = _look_around(model, namer, photo, boxes)
                features = torch.cat([features, around], dim=1)
            tokens = namer.fuse(features, semantic_tokens[some])
            embeddings = namer.semantic_head(tokens)
        for row, token, embedding in zip(some, tokens, embeddings, strict=True):
            yield RegionName(row, token, embedding)


def _look_around(
    model: TAP,
    namer: ViewNamer,
    photo: ImagePyramid,
    boxes_xyxy: Sequence[NDArray[np.floating]],
) -> Tensor:
    """Features of the wider views of boxes."""
    side, image_hw = model.config.wide_size, photo.shape[:2]
    views = [CentredView.around(b, image_hw, side, wide_zoom(b, image_hw)) for b in boxes_xyxy]
    pixels, places = _show(model, photo, views, boxes_xyxy)
    return namer.look_around(pixels, cover_boxes(places, side))


def _show(
    model: TAP,
    photo: ImagePyramid,
    views: Sequence[CentredView],
    boxes_xyxy: Sequence[NDArray[np.floating]],
) -> tuple[Tensor, Tensor]:
    """Pixels (R,3,S,S) of views as a model takes them, and the boxes (R,4) in them."""
    places = [view.box_in_view(box) for view, box in zip(views, boxes_xyxy, strict=True)]
    return show_windows(model, photo, views), torch.from_numpy(np.stack(places)).to(model.device)
