"""Masks of prompts from the view segmenter, each in a view of the extent of its region."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenize_anything.image_transform import ImageFrame, restore_masks
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.views import PreparedViews, View, prepare_views, view_points

VIEWS_AT_ONCE = 16
OUTLINE_ZOOM = 0.7  # long side of an extent as a share of its view


@dataclass(frozen=True, eq=False)
class Outline:
    """What the segmenter says about one prompt.

    row: of the prompt.
    mask: (H,W) bool, original pixels.
    iou_score: () float32.
    semantic_embedding: (D,).
    """

    row: int
    mask: NDArray[np.bool_]
    iou_score: Tensor
    semantic_embedding: Tensor


def choose_views(
    extents: Mapping[int, NDArray[np.floating]], image_hw: tuple[int, ...]
) -> list[View]:
    """The view of each extent, by the row of its prompt: the whole photo for large ones."""
    height, width = image_hw
    whole = (0, 0, width, height)
    return [
        (view_points(row, points, (height, width), OUTLINE_ZOOM) or [View(row, whole)])[0]
        for row, points in extents.items()
    ]


def show_views(
    model: TAP,
    rgb: NDArray[np.uint8],
    prompts: PointPrompts,
    extents: Mapping[int, NDArray[np.floating]],
) -> Iterator[tuple[list[View], PreparedViews]]:
    """The views of all extents as the segmenter takes them, `VIEWS_AT_ONCE` at a time."""
    views = choose_views(extents, rgb.shape[:2])
    for start in range(0, len(views), VIEWS_AT_ONCE):
        some = views[start : start + VIEWS_AT_ONCE]
        seen = prepare_views(rgb, prompts, some, model.config, side=model.config.view_size)
        yield some, seen.to(model.device, model.dtype)


def show_masks(
    masks: Mapping[int, NDArray[np.bool_]], views: Sequence[View], frames: Sequence[ImageFrame]
) -> Tensor:
    """What views show of masks (H,W) of the photo, by the row of the prompt; empty without one.

    Returns:
        (V,S,S) float32 in [0, 1], scaled and padded as the pixels are.
    """
    side = frames[0].padded_size
    shown = np.zeros((len(views), side, side), np.uint8)
    for target, view, frame in zip(shown, views, frames, strict=True):
        if view.row in masks:
            x0, y0, x1, y1 = view.window_xyxy
            window = Image.fromarray(masks[view.row][y0:y1, x0:x1].astype(np.uint8) * np.uint8(255))
            height, width = frame.scaled_hw
            scaled = window.resize((width, height), Image.Resampling.BILINEAR)
            target[:height, :width] = np.asarray(scaled)
    return torch.from_numpy(shown).float() / 255


def outline_regions(
    model: TAP,
    rgb: NDArray[np.uint8],
    prompts: PointPrompts,
    extents: Mapping[int, NDArray[np.floating]],
    corrected: Mapping[int, NDArray[np.bool_]] | None = None,
) -> Iterator[Outline]:
    """Outline the regions of prompts, `VIEWS_AT_ONCE` at a time, in order.

    Args:
        model: with a view segmenter, in evaluation mode.
        rgb: (H,W,3) the photo.
        prompts: original pixels, checked to lie in the photo.
        extents: points (N,2) that the region of a prompt reaches to, by the prompt's row; the
            others are left out.
        corrected: masks (H,W) that prompts correct, by row, for a segmenter that is shown them.
    """
    assert model.view_segmenter is not None
    network = model.fold_views(model.view_segmenter)
    image_hw = (rgb.shape[0], rgb.shape[1])
    for some, seen in show_views(model, rgb, prompts, extents):
        masks = show_masks(corrected or {}, some, seen.frames).to(model.device)
        with model.view_precision():
            outputs = network(seen.pixels, seen.coords_xy, seen.labels, masks, twice=True)
        for index, view in enumerate(some):
            x0, y0, x1, y1 = view.window_xyxy
            mask = np.zeros(image_hw, bool)
            logits = outputs.mask_logits[index : index + 1]
            mask[y0:y1, x0:x1] = restore_masks(logits, seen.frames[index])[0]
            score, embedding = outputs.iou_scores[index], outputs.semantic_embeddings[index]
            yield Outline(view.row, mask, score, embedding)
