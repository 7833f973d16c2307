"""The automatic mode of models with a network for clicks: all windows of all clicks are candidates.

A window's mask is known by its logits and its box until the end, so that the size of the photo
costs memory for what is kept alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tokenize_anything.centred_views import CentredView, ImagePyramid
from tokenize_anything.click_windows import list_windows, show_windows
from tokenize_anything.config import PointLabel
from tokenize_anything.everything_config import POINTS_PER_ROUND, EverythingConfig, plan_views
from tokenize_anything.mask_filtering import (
    box_iou,
    clean_mask,
    pick_distinct,
    pick_regions,
    stability_scores,
)
from tokenize_anything.modeling import TAP
from tokenize_anything.modeling.click_segmenter import NUM_WINDOWS
from tokenize_anything.region_decoding import (
    DecodedImage,
    EncodedImage,
    tell_boxes,
)
from tokenize_anything.view_names import write_names

CLICKS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class WindowMasks:
    """K masks of windows that are still in the race.

    mask_logits: (K,m,m) float32, covering each window.
    windows: K of them.
    iou_scores: (K,) float32, predicted.
    boxes_xyxy: (K,4) of the masks, original pixels, as fine as their cells.
    """

    mask_logits: NDArray[np.float32]
    windows: list[CentredView]
    iou_scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.windows)

    def select(self, rows: NDArray[np.int64]) -> WindowMasks:
        """Some of the masks, in the order of `rows`."""
        return WindowMasks(
            self.mask_logits[rows], [self.windows[row] for row in rows], self.iou_scores[rows],
            self.boxes_xyxy[rows],
        )  # fmt: skip

    @classmethod
    def concatenate(cls, parts: Sequence[WindowMasks]) -> WindowMasks:
        """Join masks of one photo."""
        return cls(
            np.concatenate([part.mask_logits for part in parts]),
            [window for part in parts for window in part.windows],
            np.concatenate([part.iou_scores for part in parts]),
            np.concatenate([part.boxes_xyxy for part in parts]),
        )

    def restore(self, image_hw: Sequence[int], min_area: int) -> NDArray[np.bool_]:
        """All masks at the size of the photo, (K,H,W), without specks and holes."""
        masks = np.zeros((len(self), image_hw[0], image_hw[1]), bool)
        for mask, window, logits in zip(masks, self.windows, self.mask_logits, strict=True):
            mask[:] = clean_mask(window.restore_mask(logits, image_hw), min_area)
        return masks


@torch.inference_mode()
def find_by_clicks(
    model: TAP,
    encoded: EncodedImage,
    config: EverythingConfig,
    *,
    chunk: int,
    advance: Callable[[int], object] | None = None,
) -> tuple[DecodedImage, NDArray[np.int64]]:
    """The regions of a photo, best first, and the row of the region each is part of, or -1.

    Their tokens are those of their boxes on the whole photo, with names where there is a namer.

    Args:
        model: with a click segmenter, in evaluation mode.
        encoded: with its photo.
        config: what to search and what to keep.
        chunk: boxes decoded at once.
        advance: called with the number of clicks that were just done.
    """
    assert encoded.rgb is not None
    views = plan_views(*encoded.original_hw, config)
    clicks = np.concatenate([view.grid_points() + view.box_xyxy[:2] for view in views])
    found = search_by_clicks(model, encoded.rgb, clicks, config, advance)
    masks = found.restore(encoded.original_hw, config.min_region_area)
    rows, parents = pick_regions(
        masks, found.iou_scores, config.max_overlap, config.min_containment
    )
    decoded = dataclasses.replace(
        DecodedImage.blank(model, masks[rows]),
        iou_scores=torch.from_numpy(found.iou_scores[rows]).to(model.device),
    )
    tell_boxes(model, encoded, np.arange(len(rows)), decoded, chunk=chunk)
    if model.view_namer is not None:
        write_names(model, encoded.rgb, decoded)
    return decoded, parents


@torch.inference_mode()
def search_by_clicks(
    model: TAP,
    rgb: NDArray[np.uint8],
    clicks_xy: NDArray[np.floating],
    config: EverythingConfig,
    advance: Callable[[int], object] | None = None,
) -> WindowMasks:
    """Distinct masks of windows around clicks, the highest predicted IoU first.

    Duplicates are told by their boxes.

    Args:
        model: with a click segmenter, in evaluation mode.
        rgb: (H,W,3) the photo.
        clicks_xy: (P,2) original pixels.
        config: `min_iou`, `min_stability`, `max_overlap`, `max_regions` and `points_per_batch`.
        advance: called with the number of clicks that were just done.

    Returns:
        at most `max_regions` masks.
    """
    at_once = config.points_per_batch or CLICKS_AT_ONCE
    photo = ImagePyramid(rgb)
    found = _judge_clicks(model, photo, clicks_xy[:0], config)
    for first in range(0, len(clicks_xy), POINTS_PER_ROUND):
        end = min(first + POINTS_PER_ROUND, len(clicks_xy))
        parts = [found]
        for start in range(first, end, at_once):
            some = clicks_xy[start : min(start + at_once, end)]
            parts.append(_judge_clicks(model, photo, some, config))
            if advance is not None:
                advance(len(some))
        found = _drop_duplicates(WindowMasks.concatenate(parts), config)
    return found


def _judge_clicks(
    model: TAP, photo: ImagePyramid, clicks_xy: NDArray[np.floating], config: EverythingConfig
) -> WindowMasks:
    """Masks of some clicks that pass on their own."""
    assert model.click_segmenter is not None
    network, side = model.fold_views(model.click_segmenter), model.config.click_size
    image_hw = photo.shape[:2]
    windows = [window for click in clicks_xy for window in list_windows(click, image_hw, side)]
    if not windows:
        empty = np.zeros((0, side // 2, side // 2), np.float32)
        return WindowMasks(empty, [], np.zeros(0, np.float32), np.zeros((0, 4)))
    pixels = show_windows(model, photo, windows)
    shape = (len(clicks_xy), NUM_WINDOWS, 1, 2)
    middles = torch.full(shape, (side - 1) / 2, device=model.device)
    labels = torch.full((len(clicks_xy), 1), int(PointLabel.FOREGROUND), device=model.device)
    with model.view_precision():
        outputs = network(pixels.unflatten(0, shape[:2]), middles, labels)
    logits, scores = outputs.mask_logits.float().flatten(0, 1), outputs.iou_scores.flatten()
    is_good = scores >= config.min_iou
    is_good &= stability_scores(logits, config.stability_offset) >= config.min_stability
    is_good &= (logits > 0).any(dim=2).any(dim=1)
    rows = torch.nonzero(is_good).flatten().tolist()
    masks = logits[is_good].cpu().numpy()
    kept = [windows[row] for row in rows]
    boxes = np.array([_box_in_photo(*each) for each in zip(masks, kept, strict=True)])
    return WindowMasks(masks, kept, scores[is_good].cpu().numpy(), boxes.reshape(-1, 4))


def _box_in_photo(logits: NDArray[np.float32], window: CentredView) -> NDArray[np.float64]:
    """Box (4,) of the cells over 0, original pixels, within what the window shows of the photo."""
    rows, columns = np.nonzero(logits > 0)
    corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)
    cell = window.side / len(logits) / window.scale
    x0, y0, x1, y1 = window.source_xyxy
    box: NDArray[np.float64] = corners * cell + np.tile(window.origin_xy, 2)
    return box.clip([x0, y0, x0, y0], [x1, y1, x1, y1])


def _drop_duplicates(found: WindowMasks, config: EverythingConfig) -> WindowMasks:
    """The distinct ones, best first, at most `max_regions`; the first of equals."""
    found = found.select(np.argsort(-found.iou_scores, kind="stable"))
    rows = pick_distinct(box_iou(found.boxes_xyxy) > config.max_overlap)
    return found.select(rows[: config.max_regions])
