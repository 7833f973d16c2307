"""Masks of clicks from the click segmenter, each from the window that scores highest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenize_anything.centred_views import CentredView, ImagePyramid
from tokenize_anything.click_windows import list_windows, show_windows
from tokenize_anything.config import PointLabel
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import DecodedImage

PROMPTS_AT_ONCE = 16


def clicked_rows(prompts: PointPrompts) -> NDArray[np.intp]:
    """Rows of prompts with a foreground click and no box."""
    return np.flatnonzero((prompts.labels == PointLabel.FOREGROUND).any(axis=1) & ~prompts.is_box)


def write_click_masks(
    model: TAP,
    rgb: NDArray[np.uint8],
    prompts: PointPrompts,
    rows: NDArray[np.intp],
    target: DecodedImage,
) -> None:
    """Put masks and scores of the click segmenter in the place of those there are.

    Args:
        model: with a click segmenter, in evaluation mode.
        rgb: (H,W,3) the photo.
        prompts: original pixels, checked to lie in the photo.
        rows: of the prompts to answer, see `clicked_rows`.
        target: changed in place.
    """
    photo = ImagePyramid(rgb)
    for num_points in np.unique(prompts.num_points[rows]).tolist():
        alike = rows[prompts.num_points[rows] == num_points]
        for start in range(0, len(alike), PROMPTS_AT_ONCE):
            some = alike[start : start + PROMPTS_AT_ONCE]
            part = prompts[some]
            for row, mask, score in zip(
                some, *_answer(model, photo, part, num_points), strict=True
            ):
                target.masks[row], target.iou_scores[row] = mask, score


def _answer(
    model: TAP, photo: ImagePyramid, prompts: PointPrompts, num_points: int
) -> tuple[Iterator[NDArray[np.bool_]], Tensor]:
    """Masks (H,W) and scores (R,) of prompts that have so many points."""
    assert model.click_segmenter is not None
    network, config = model.fold_views(model.click_segmenter), model.config
    image_hw = photo.shape[:2]
    windows = [
        list_windows(middle_click(prompts, row), image_hw, config.click_size)
        for row in range(len(prompts))
    ]
    coords = [
        [window.points_in_view(prompts.coords_xy[row, :num_points]) for window in some]
        for row, some in enumerate(windows)
    ]
    pixels = show_windows(model, photo, [window for some in windows for window in some])
    with model.view_precision():
        outputs = network(
            pixels.unflatten(0, (len(windows), -1)),
            torch.from_numpy(np.array(coords)).to(model.device),
            torch.from_numpy(prompts.labels[:, :num_points].copy()).to(model.device),
        )
    scores, best = outputs.iou_scores.max(dim=1)
    logits = outputs.mask_logits[torch.arange(len(best)), best.cpu()].float().cpu().numpy()
    return _restore(logits, windows, best.tolist(), image_hw), scores


def _restore(
    logits: NDArray[np.float32],
    windows: Sequence[Sequence[CentredView]],
    best: Sequence[int],
    image_hw: Sequence[int],
) -> Iterator[NDArray[np.bool_]]:
    for row, place in enumerate(best):
        yield windows[row][place].restore_mask(logits[row], image_hw)


def middle_click(prompts: PointPrompts, row: int) -> NDArray[np.float32]:
    """The foreground click (2,) of a prompt that is nearest to the mean of them all."""
    clicks = prompts.coords_xy[row][prompts.labels[row] == PointLabel.FOREGROUND]
    distances = np.linalg.norm(clicks - clicks.mean(axis=0), axis=1)
    middle: NDArray[np.float32] = clicks[distances.argmin()]
    return middle
