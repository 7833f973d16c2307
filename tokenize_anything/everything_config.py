"""Options of the automatic mode, and where they put its clicks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTS_PER_ROUND = 128  # after so many clicks duplicates are dropped


@dataclass(frozen=True, kw_only=True)
class EverythingConfig:
    """How the automatic mode searches a photo, and which of the masks it finds are kept.

    The options are those of SAM's automatic masks (Kirillov et al. 2023, appendix B). What a good
    score is depends on the weights. The usual values suit the built-in model, whose predicted IoUs
    are low and whose logits are too shallow for a test of stability; for weights of SA-1B start
    with those of SAM: points_per_side=32, min_iou=0.88 and min_stability=0.95.

    Args:
        points_per_side: clicks along each side of the photo; their square is the number of clicks.
        crop_layers: how often the search is repeated on smaller crops: layer i cuts the photo into
            2^i x 2^i. Finds small regions; each crop is encoded anew.
        crop_overlap: of crops, as a share of the shorter side of the photo in the first layer and
            half as much in each further one.
        crop_points_divisor: layer i has points_per_side / divisor^i clicks along each side of a
            crop.
        min_iou: least predicted IoU of a mask.
        min_stability: least share of a mask that is left when its threshold rises from
            -stability_offset to +stability_offset.
        stability_offset: in logits.
        max_overlap: of two masks with a larger IoU the one of lower predicted IoU is dropped.
        min_region_area: specks and holes of fewer pixels of the photo are cleaned away, and so is
            a mask that has no larger part.
        min_containment: a region is a part of a larger one that holds at least this share of it.
        max_regions: most regions of one photo, the best by predicted IoU. Bounds memory: each
            takes height x width bytes.
        points_per_batch: clicks decoded at once; None lets memory decide. The result is the same.

    Raises:
        TypeError, ValueError: naming every option that is no such number.
    """

    points_per_side: int = 16
    crop_layers: int = 0
    crop_overlap: float = 0.34
    crop_points_divisor: int = 2
    min_iou: float = 0.3
    min_stability: float = 0.0
    stability_offset: float = 1.0
    max_overlap: float = 0.7
    min_region_area: int = 16
    min_containment: float = 0.9
    max_regions: int = 256
    points_per_batch: int | None = None

    def __post_init__(self) -> None:
        counts = {"points_per_side": 1, "crop_layers": 0, "crop_points_divisor": 1}
        counts |= {"min_region_area": 0, "max_regions": 1}
        if self.points_per_batch is not None:
            counts["points_per_batch"] = 1
        shares = ("crop_overlap", "min_iou", "min_stability", "max_overlap", "min_containment")
        problems = [
            f"{name} must be a whole number from {least}, got {getattr(self, name)!r}"
            for name, least in counts.items()
            if not _is_number(getattr(self, name), int) or getattr(self, name) < least
        ]
        problems += [
            f"{name} must lie in 0..1, got {getattr(self, name)!r}"
            for name in shares
            if not _is_number(getattr(self, name), int, float) or not 0 <= getattr(self, name) <= 1
        ]
        offset = self.stability_offset
        if not _is_number(offset, int, float) or not 0 <= offset < math.inf:
            problems.append(f"stability_offset must be a number from 0, got {offset!r}")
        if not problems and self.crop_overlap >= 1:
            problems.append("crop_overlap must be less than 1, or every crop is the whole photo")
        if problems:
            raise ValueError("EverythingConfig: " + "; ".join(problems))

    def points_of_layer(self, layer: int) -> int:
        """Clicks along each side of a crop of layer 0, 1, ...; at least 1."""
        return max(1, self.points_per_side // self.crop_points_divisor**layer)

    @property
    def num_points(self) -> int:
        """Clicks on one photo, over all crops."""
        return sum(
            4**layer * self.points_of_layer(layer) ** 2 for layer in range(self.crop_layers + 1)
        )


@dataclass(frozen=True)
class PhotoView:
    """The photo, or a crop of it, that is searched on its own.

    box_xyxy: whole pixels of the photo, right and bottom exclusive.
    points_per_side: clicks along each of its sides.
    layer: 0 for the whole photo.
    """

    box_xyxy: tuple[int, int, int, int]
    points_per_side: int
    layer: int = 0

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        x0, y0, x1, y1 = self.box_xyxy
        return y1 - y0, x1 - x0

    def cut_sides(self, height: int, width: int) -> tuple[bool, bool, bool, bool]:
        """Whether left, top, right and bottom side go through the photo of this size."""
        x0, y0, x1, y1 = self.box_xyxy
        return x0 > 0, y0 > 0, x1 < width, y1 < height

    def grid_points(self) -> NDArray[np.float64]:
        """(P,2) x, y of the clicks in pixels of the view, row by row: the middles of equal cells.

        A click at x points at the middle of pixel x, hence the half pixel.
        """
        height, width = self.size_hw
        shares = (np.arange(self.points_per_side) + 0.5) / self.points_per_side
        x, y = np.meshgrid(shares * width - 0.5, shares * height - 0.5)
        return np.maximum(np.stack([x.ravel(), y.ravel()], axis=-1), 0.0)


def plan_views(height: int, width: int, config: EverythingConfig) -> list[PhotoView]:
    """The views of a photo of this size: the whole, then the crops, layer by layer, row by row.

    Layers that would cut a side into more crops than it has pixels are left out.
    """
    views = []
    for layer in range(config.crop_layers + 1):
        count = 2**layer
        if count > min(height, width):
            break
        overlap = round(config.crop_overlap * min(height, width) * 2 / count) if layer else 0
        views += [
            PhotoView((x0, y0, x1, y1), config.points_of_layer(layer), layer)
            for y0, y1 in _cut(height, count, overlap)
            for x0, x1 in _cut(width, count, overlap)
        ]
    return views


def check_everything_config(config: Any) -> EverythingConfig:
    """The given options, or the usual ones for None.

    Raises:
        TypeError: something else.
    """
    if config is None:
        return EverythingConfig()
    if not isinstance(config, EverythingConfig):
        raise TypeError(
            f"config: expected an EverythingConfig, got {type(config).__name__}; write "
            f"EverythingConfig(points_per_side=16), for instance"
        )
    return config


def _cut(length: int, count: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Start and end of `count` equal pieces that overlap and cover the whole length."""
    piece = min(length, math.ceil((length + (count - 1) * overlap) / count))
    for index in range(count):
        start = round(index * (length - piece) / max(count - 1, 1))
        yield start, start + piece


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
