"""Windows of a photo that single prompts are answered in, and what the networks see of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenize_anything.answer_choice import shows_extent
from tokenize_anything.config import PointLabel, TAPConfig
from tokenize_anything.geometry import MIN_WINDOW, zoom_window
from tokenize_anything.image_transform import ImageFrame, prepare_images
from tokenize_anything.prompts import PointPrompts

WIDENING = 0.25  # of their bounding box, whose clicks lie inside of the region
CLICK_VIEWS = (0.5, 0.35, 0.25, 0.18, 0.125)  # sides around fewer clicks, of the long side
MAX_VIEW = 0.85  # a view this much of the photo's long side, or more, would show little that is new


@dataclass(frozen=True)
class View:
    """A window of the photo, x0, y0, x1, y1 in original pixels, for one of the prompts."""

    row: int
    window_xyxy: tuple[int, int, int, int]


def known_extents(prompts: PointPrompts) -> dict[int, NDArray[np.floating]]:
    """Points (N,2) that the regions reach to of prompts that say how large they are, by row.

    A box says it, and so do many clicks, around whose bounding box some room is left.
    """
    extents = {}
    for row in np.flatnonzero(shows_extent(prompts)).tolist():
        points = point_array(prompts, row)
        if not prompts.is_box[row]:
            low, high = points.min(axis=0), points.max(axis=0)
            room = WIDENING / 2 * float((high - low).max())
            points = np.stack([low - room, high + room])
        extents[row] = points
    return extents


def list_views(prompts: PointPrompts, image_hw: tuple[int, int], zoom: float) -> list[View]:
    """The views that each prompt deserves; none where it would show little that is new.

    All clicks of a prompt lie in its views.
    """
    known, views = known_extents(prompts), []
    for row in range(len(prompts)):
        points = known.get(row, point_array(prompts, row))
        if row in known:
            views += view_points(row, points, image_hw, zoom)
        elif len(points):
            centre = (points.min(axis=0) + points.max(axis=0)) / 2
            least = max(float(np.ptp(points, axis=0).max()) / zoom, MIN_WINDOW)
            sides = [share * max(image_hw) for share in CLICK_VIEWS]
            sides = [side for side in sides if side >= least]
            views += _around(row, centre, sides, image_hw)
    return views


def view_points(
    row: int, points_xy: NDArray[np.floating], image_hw: tuple[int, int], zoom: float
) -> list[View]:
    """The view in which the extent of points (N,2) fills `zoom`; none if it shows little new."""
    low, high = points_xy.min(axis=0), points_xy.max(axis=0)
    return _around(row, (low + high) / 2, [float((high - low).max()) / zoom], image_hw)


def _around(
    row: int, centre_xy: NDArray[np.floating], sides: list[float], image_hw: tuple[int, int]
) -> list[View]:
    limit = MAX_VIEW * max(image_hw)
    return [View(row, zoom_window(centre_xy, side, image_hw)) for side in sides if side < limit]


def point_array(prompts: PointPrompts, row: int) -> NDArray[np.floating]:
    """Clicks and corners (N,2) of one prompt, without its padding."""
    is_real = prompts.labels[row] != PointLabel.PADDING
    return prompts.coords_xy[row][is_real].astype(np.float64)


@dataclass(frozen=True, eq=False)
class PreparedViews:
    """V views as a network takes them, one prompt in each.

    pixels: (V,3,S,S) normalised.
    frames: V, how each window was scaled and padded.
    coords_xy: (V,N,2) pixels of the S×S frame.
    labels: (V,N) point labels.
    """

    pixels: Tensor
    frames: list[ImageFrame]
    coords_xy: Tensor
    labels: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> PreparedViews:
        """The same where a model is, its pixels in the model's dtype."""
        return PreparedViews(
            self.pixels.to(device, dtype), self.frames, self.coords_xy.to(device),
            self.labels.to(device),
        )  # fmt: skip


def prepare_views(
    rgb: NDArray[np.uint8],
    prompts: PointPrompts,
    views: list[View],
    config: TAPConfig,
    *,
    side: int,
) -> PreparedViews:
    """Cut views out of a photo and bring their prompts into them.

    Args:
        rgb: (H,W,3) the photo.
        prompts: original pixels; as many points are kept as the longest of the views' prompts has.
        views: of rows of `prompts`.
        config: its pixel facts are used.
        side: S.
    """
    corners = [view.window_xyxy for view in views]
    crops = [rgb[y0:y1, x0:x1] for x0, y0, x1, y1 in corners]
    pixels, frames = prepare_images(crops, config, side=side)
    rows = [view.row for view in views]
    num_points = int(prompts.num_points[rows].max())
    coords = [
        frame.to_model_frame(
            prompts.coords_xy[view.row, :num_points] - np.array(view.window_xyxy[:2], np.float32)
        )
        for view, frame in zip(views, frames, strict=True)
    ]
    labels = prompts.labels[rows, :num_points]
    return PreparedViews(
        pixels, frames, torch.from_numpy(np.stack(coords)), torch.from_numpy(labels)
    )
