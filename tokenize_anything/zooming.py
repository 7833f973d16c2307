"""A second, closer look at regions: the photo is encoded once more around each of them.

A region that is a small part of the photo covers a few cells of the feature grid, too few for its
outline. A view in which it fills a fixed share has cells enough. A box, a mask or a sketch says how
large its region is, and gets one such view. A click does not: it gets views of several sizes, and
the answer counts that has the best predicted IoU and agreement with the others. Interactive
segmentation knows the step as Zoom-In (Sofiiuk et al. 2020, "f-BRS", section 3.3). It costs an
encoding for each view, so that it suits small encoders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenize_anything.config import PointLabel
from tokenize_anything.geometry import MIN_WINDOW, mask_iou, zoom_window
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
WIDENING = 0.25  # of their bounding box, whose clicks lie inside of the region
CLICK_VIEWS = (0.5, 0.35, 0.25, 0.18, 0.125)  # sides around fewer clicks, of the long side
AGREEMENT_WEIGHT = 0.8  # of the mean IoU with the other answers, beside the predicted IoU
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
    """Decode prompts on the whole photo, then those of small regions again in views of their own.

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
    is_known = shows_extent(prompts)
    undecided: dict[int, list[tuple[DecodedViews, int]]] = {}
    for part in decode_views(model, encoded.rgb, prompts, list_views(prompts, encoded, zoom)):
        for index, view in enumerate(part.views):
            if is_known[view.row]:
                _replace(first, part, index)
            else:
                undecided.setdefault(view.row, []).append((part, index))
    for row, answers in undecided.items():
        scores = [float(first.iou_scores[row])]
        masks = np.zeros((1 + len(answers), *first.masks.shape[1:]), bool)
        masks[0] = first.masks[row]
        for place, (part, index) in enumerate(answers, start=1):
            scores.append(float(part.outputs.select(part.outputs.iou_scores)[index]))
            part.paste_mask(index, masks[place])
        best = choose_answer(scores, masks)
        if best:
            _replace(first, *answers[best - 1])
    return first


def choose_answer(scores: Sequence[float], masks: NDArray[np.bool_]) -> int:
    """Which answer to the same clicks counts: one that scores high, and that others resemble.

    Args:
        scores: n predicted IoUs.
        masks: (n,H,W) of views of several sizes, n at least 2.

    Returns:
        Its place; the first of equals.
    """
    overlaps = mask_iou(masks, masks)
    np.fill_diagonal(overlaps, 0)
    agreement = overlaps.sum(axis=1) / (len(masks) - 1)
    return int((np.asarray(scores) + AGREEMENT_WEIGHT * agreement).argmax())


def shows_extent(prompts: PointPrompts) -> NDArray[np.bool_]:
    """(R,) whether a prompt says how large its region is: a box, or many clicks inside of it."""
    num_inside = (prompts.labels == PointLabel.FOREGROUND).sum(axis=1)
    return prompts.is_box | (num_inside >= MANY_CLICKS)


@dataclass(frozen=True)
class View:
    """A window of the photo, x0, y0, x1, y1 in original pixels, for one of the prompts."""

    row: int
    window_xyxy: tuple[int, int, int, int]


def list_views(prompts: PointPrompts, encoded: EncodedImage, zoom: float) -> list[View]:
    """The views that each prompt deserves; none where it would show little that is new.

    All clicks of a prompt lie in its views.
    """
    image_hw = encoded.original_hw
    long_side = max(image_hw)
    is_real = (prompts.labels != PointLabel.PADDING)[:, :, None]
    low = np.where(is_real, prompts.coords_xy, np.inf).min(axis=1).astype(np.float64)
    high = np.where(is_real, prompts.coords_xy, -np.inf).max(axis=1).astype(np.float64)
    views = []
    for row in np.flatnonzero(is_real.any(axis=(1, 2))).tolist():
        extent = float((high[row] - low[row]).max())
        if prompts.is_box[row]:
            sides = [extent / zoom]
        elif shows_extent(prompts)[row]:
            sides = [extent * (1 + WIDENING) / zoom]
        else:
            sides = [share * long_side for share in CLICK_VIEWS]
            sides = [side for side in sides if side >= max(extent / zoom, MIN_WINDOW)]
        centre = (low[row] + high[row]) / 2
        views += [
            View(row, zoom_window(centre, side, image_hw))
            for side in sides
            if side < MAX_VIEW * long_side
        ]
    return views


@dataclass(frozen=True, eq=False)
class DecodedViews:
    """Some views, with a frame and an output each."""

    views: list[View]
    frames: list[ImageFrame]
    outputs: RegionOutputs

    def paste_mask(self, index: int, target: NDArray[np.bool_]) -> None:
        """Write the mask of one view into `target` (H,W), all False before."""
        x0, y0, x1, y1 = self.views[index].window_xyxy
        logits = self.outputs.mask_logits[index : index + 1]
        target[y0:y1, x0:x1] = restore_masks(logits, self.frames[index])[0]


def _replace(decoded: DecodedImage, part: DecodedViews, index: int) -> None:
    """Put what a view says in the place of what is known of its region."""
    row, outputs = part.views[index].row, part.outputs
    decoded.masks[row] = False
    part.paste_mask(index, decoded.masks[row])
    for name in ("iou_scores", "semantic_tokens", "semantic_embeddings", "mask_tokens"):
        getattr(decoded, name)[row] = outputs.select(getattr(outputs, name))[index]
    decoded.mask_index[row] = outputs.mask_index[index]


def decode_views(
    model: TAP, rgb: NDArray[np.uint8], prompts: PointPrompts, views: list[View]
) -> Iterator[DecodedViews]:
    """Encode views of a photo and decode one prompt in each, `VIEWS_AT_ONCE` at a time.

    Args:
        model: in evaluation mode.
        rgb: (H,W,3) the photo.
        prompts: original pixels.
        views: of rows of `prompts`.
    """
    counts = prompts.num_points
    for num_points in np.unique(counts).tolist():
        alike = [view for view in views if counts[view.row] == num_points]
        for start in range(0, len(alike), VIEWS_AT_ONCE):
            part = alike[start : start + VIEWS_AT_ONCE]
            corners = [view.window_xyxy for view in part]
            pixels, frames = prepare_images(
                [rgb[y0:y1, x0:x1] for x0, y0, x1, y1 in corners], model.config
            )
            coords = [
                frame.to_model_frame(
                    prompts.coords_xy[view.row, :num_points]
                    - np.array(view.window_xyxy[:2], np.float32)
                )
                for view, frame in zip(part, frames, strict=True)
            ]
            labels = prompts.labels[[view.row for view in part], :num_points]
            features = model.encode_images(pixels.to(model.device, model.dtype))
            outputs = model.decode_regions(
                model.prepare_regions(features),
                torch.from_numpy(np.stack(coords)).to(model.device).unsqueeze(1),
                torch.from_numpy(labels).to(model.device).unsqueeze(1),
                all_slots=False,
            )
            yield DecodedViews(part, frames, outputs)
