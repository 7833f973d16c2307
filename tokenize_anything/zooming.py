"""A second, closer look at small regions: the photo is encoded once more around each of them.

A region that is a small part of the photo covers a few cells of the feature grid, too few for its
outline. A view in which it fills a fixed share has cells enough. Interactive segmentation knows the
step as Zoom-In (Sofiiuk et al. 2020, "f-BRS", section 3.3). It costs an encoding for each region,
so that it suits small encoders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenize_anything.config import PointLabel
from tokenize_anything.geometry import masks_to_boxes, zoom_window
from tokenize_anything.image_transform import ImageFrame, load_image, prepare_images, restore_masks
from tokenize_anything.modeling import TAP, RegionOutputs
from tokenize_anything.prompt_arguments import PromptArguments
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import (
    DecodedImage,
    EncodedImage,
    check_encoded,
    decode_image,
    encode_photo,
)

VIEWS_AT_ONCE = 8
MANY_CLICKS = 5  # foreground clicks from which on they show how large a region is
WIDENING = 0.25
MAX_VIEW = 0.85  # a view this much of the photo's long side, or more, would show little that is new


@torch.inference_mode()
def decode_source(
    model: TAP, source: Any, arguments: PromptArguments, *, chunk: int, zoom: float | None
) -> DecodedImage:
    """Check one photo against its prompts, encode it where that is not done yet, and decode.

    Args:
        model: in evaluation mode.
        source: a photo, as `load_image` reads it, or an EncodedImage.
        arguments: the prompts of this photo.
        chunk: see `decode_closely`.
        zoom: see `decode_closely`.

    Raises:
        FileNotFoundError, TypeError, ValueError: not a photo, or prompts that do not fit it.
    """
    if isinstance(source, EncodedImage):
        check_encoded(source, model.config)
        prompts = arguments.join(*source.original_hw)
    else:
        rgb = load_image(source, name=arguments.where or "image")
        prompts = arguments.join(*rgb.shape[:2])
        source = dataclasses.replace(encode_photo(model, rgb), rgb=rgb)
    return decode_closely(model, source, prompts, chunk=chunk, zoom=zoom)


def decode_closely(
    model: TAP, encoded: EncodedImage, prompts: PointPrompts, *, chunk: int, zoom: float | None
) -> DecodedImage:
    """Decode prompts on the whole photo, then those of small regions again in a view of their own.

    What a region gets does not depend on the other prompts.

    Args:
        model: in evaluation mode.
        encoded: with its photo, if there is to be a second look.
        prompts: original pixels, checked to lie in the photo.
        chunk: regions decoded at once on the whole photo.
        zoom: share of a view's side that the long side of a region fills; 0 for no second look,
            None for what the model's configuration says.

    Raises:
        ValueError: a second look was asked for, and `encoded` does not hold its photo.
    """
    zoom = model.config.zoom if zoom is None else zoom
    if zoom and encoded.rgb is None:
        raise ValueError(
            "zoom: expected a photo, got an EncodedImage without one, since its model looks once; "
            "pass the photo itself, or zoom=0"
        )
    first = decode_image(model, encoded, prompts, chunk=chunk)
    if not zoom or encoded.rgb is None:
        return first
    extents = region_extents(prompts, first.masks)
    windows = choose_windows(extents, encoded.original_hw, zoom)
    for views in decode_views(model, encoded.rgb, prompts, windows):
        for index, row in enumerate(views.rows):
            x0, y0, x1, y1 = windows[row]
            logits = views.outputs.mask_logits[index : index + 1]
            first.masks[row] = False
            first.masks[row, y0:y1, x0:x1] = restore_masks(logits, views.frames[index])[0]
        for name in ("iou_scores", "semantic_tokens", "semantic_embeddings", "mask_tokens"):
            values = getattr(views.outputs, name)
            getattr(first, name)[views.rows] = views.outputs.select(values)
        first.mask_index[views.rows] = views.outputs.mask_index
    return first


def region_extents(prompts: PointPrompts, masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Boxes (R,4) x0, y0, x1, y1 around each region, original pixels.

    A box prompt says itself how large its region is, and so do many clicks inside of it, as a mask
    or sketch becomes: their bounding box, made wider by a quarter. Otherwise it is the first mask
    and all clicks together.
    """
    is_real = (prompts.labels != PointLabel.PADDING)[:, :, None]
    low = np.where(is_real, prompts.coords_xy, np.inf).min(axis=1)
    high = np.where(is_real, prompts.coords_xy, -np.inf).max(axis=1)
    is_spread = (prompts.labels == PointLabel.FOREGROUND).sum(axis=1) >= MANY_CLICKS
    margin = (high - low) * (WIDENING / 2 * is_spread)[:, None]
    extents = masks_to_boxes(masks)
    is_known = prompts.is_box | is_spread | (extents[:, 2] == 0)
    extents[is_known] = (np.inf, np.inf, -np.inf, -np.inf)
    return np.concatenate(
        [np.minimum(extents[:, :2], low - margin), np.maximum(extents[:, 2:], high + margin)],
        axis=1,
    ).astype(np.float32)


def choose_windows(
    extents: NDArray[np.float32], image_hw: tuple[int, int], zoom: float
) -> dict[int, tuple[int, int, int, int]]:
    """The windows of the regions that deserve one, x0, y0, x1, y1 in original pixels, by row."""
    windows = {}
    for row, box in enumerate(extents.astype(np.float64)):
        side = max(box[2:] - box[:2]) / zoom if np.isfinite(box).all() else np.inf
        if side < MAX_VIEW * max(image_hw):
            windows[row] = zoom_window((box[:2] + box[2:]) / 2, side, image_hw)
    return windows


@dataclass(frozen=True, eq=False)
class DecodedViews:
    """Regions as decoded in their windows: `rows` of the prompts, a frame and an output each."""

    rows: list[int]
    frames: list[ImageFrame]
    outputs: RegionOutputs


def decode_views(
    model: TAP,
    rgb: NDArray[np.uint8],
    prompts: PointPrompts,
    windows: dict[int, tuple[int, int, int, int]],
) -> Iterator[DecodedViews]:
    """Encode the windows of a photo and decode one prompt in each.

    Args:
        model: in evaluation mode.
        rgb: (H,W,3) the photo.
        prompts: original pixels.
        windows: by row of `prompts`.
    """
    rows = np.array(sorted(windows), dtype=np.int64)
    for num_points in np.unique(prompts.num_points[rows]).tolist():
        alike = rows[prompts.num_points[rows] == num_points].tolist()
        for start in range(0, len(alike), VIEWS_AT_ONCE):
            part = alike[start : start + VIEWS_AT_ONCE]
            corners = [windows[row] for row in part]
            pixels, frames = prepare_images(
                [rgb[y0:y1, x0:x1] for x0, y0, x1, y1 in corners], model.config
            )
            coords = [
                frame.to_model_frame(
                    prompts.coords_xy[row, :num_points] - np.array(corner[:2], np.float32)
                )
                for row, corner, frame in zip(part, corners, frames, strict=True)
            ]
            features = model.encode_images(pixels.to(model.device, model.dtype))
            outputs = model.decode_regions(
                model.prepare_regions(features),
                torch.from_numpy(np.stack(coords)).to(model.device).unsqueeze(1),
                torch.from_numpy(prompts.labels[part, :num_points]).to(model.device).unsqueeze(1),
                all_slots=False,
            )
            yield DecodedViews(part, frames, outputs)
