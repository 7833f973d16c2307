"""Scale jitter, flip, crop and colour for one image with regions (paper section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from tokenize_anything.config import PixelConfig
from tokenize_anything.geometry import zoom_window
from tokenize_anything.image_transform import pixel_padding

# Masks that shrink more than this are averaged before they are sampled, or thin parts vanish.
MAX_SAMPLED_SHRINK = 1.5
MAX_ZOOM_SHIFT = 0.12  # of the view's side, of the middle of the region it is drawn around


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How images vary during training.

    scale_range: the long side becomes image_size times a log-uniform draw from this range.
    flip: probability of a horizontal flip.
    colour: strength in [0, 1]: the contrast changes by up to this fraction, the gain of each
        channel by half of it, the brightness by up to 64 levels times it. 0 leaves colours alone.
    anchored: place the image at the top left, as at inference, instead of anywhere.
    zoom_probability: how often a view is drawn around one region, whatever `scale_range` says.
    zoom_range: long side of that region's box as a fraction of the view's side, log-uniform.
    """

    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    colour: float = 0.2
    anchored: bool = False
    zoom_probability: float = 0.0
    zoom_range: tuple[float, float] = (0.35, 0.8)

    def __post_init__(self) -> None:
        for name in ("scale_range", "zoom_range"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected 0 < low <= high, got {(low, high)}")
        if self.zoom_range[1] > 1:
            raise ValueError(f"zoom_range: expected at most 1, got {self.zoom_range}")
        for name in ("flip", "colour", "zoom_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Crop:
    """A window of the original image and its place in the S×S model frame.

    source_xyxy: the window, original pixels, right and bottom exclusive.
    offset_xy: where its top left corner lands, model pixels.
    target_wh: its size there; the rest of the square is padding.
    is_mirrored: flipped left to right, inside its place.
    """

    source_xyxy: tuple[int, int, int, int]
    offset_xy: tuple[int, int]
    target_wh: tuple[int, int]
    is_mirrored: bool = False

    @property
    def scale_xy(self) -> np.ndarray:
        """(2,) model pixels per original pixel; the axes differ by the rounding to whole pixels."""
        x0, y0, x1, y1 = self.source_xyxy
        return np.array(self.target_wh) / (x1 - x0, y1 - y0)

    def boxes_to_model(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """(R,4) original pixels to the model frame, clipped to the window."""
        x0, y0 = self.source_xyxy[:2]
        width, height = self.target_wh
        boxes = (boxes_xyxy - np.array([x0, y0, x0, y0])) * np.tile(self.scale_xy, 2)
        boxes = boxes.clip(0, np.array([width, height, width, height]))
        if self.is_mirrored:
            boxes = np.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
            )
        return boxes + np.array(self.offset_xy * 2)


def draw_crop(
    rng: np.random.Generator, height: int, width: int, image_size: int, config: AugmentConfig
) -> Crop:
    """Draw scale, window and flip for an image of (height, width) original pixels."""
    scale = image_size * draw_log_uniform(rng, config.scale_range) / max(height, width)
    fitting = max(1, round(image_size / scale))
    window_w, window_h = min(width, fitting), min(height, fitting)
    x0 = int(rng.integers(0, width - window_w + 1))
    y0 = int(rng.integers(0, height - window_h + 1))
    window = (x0, y0, x0 + window_w, y0 + window_h)
    return _place(rng, window, scale, image_size, config)


def draw_zoom(
    rng: np.random.Generator,
    box_xyxy: np.ndarray,
    image_hw: tuple[int, int],
    image_size: int,
    config: AugmentConfig,
) -> Crop:
    """Draw a view around one region: its size in the view, its place, and the flip.

    Args:
        rng: of the draws.
        box_xyxy: (4,) the region, original pixels.
        image_hw: of the image.
        image_size: S.
        config: of the draws.
    """
    occupancy = draw_log_uniform(rng, config.zoom_range)
    shift = rng.uniform(-MAX_ZOOM_SHIFT, MAX_ZOOM_SHIFT, size=2)
    side = max(box_xyxy[2:] - box_xyxy[:2]) / occupancy
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2 + shift * side
    return place_window(rng, zoom_window(centre, side, image_hw), image_size, config)


def place_window(
    rng: np.random.Generator,
    window_xyxy: tuple[int, int, int, int],
    image_size: int,
    config: AugmentConfig,
) -> Crop:
    """Put a window into the model frame, its long side as long as that; draw place and flip.

    Args:
        rng: of the draws.
        window_xyxy: original pixels.
        image_size: S.
        config: of the draws.
    """
    x0, y0, x1, y1 = window_xyxy
    scale = image_size / max(x1 - x0, y1 - y0)
    return _place(rng, window_xyxy, scale, image_size, config)


def draw_log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A number between two positive bounds, its logarithm uniform."""
    low, high = np.log(bounds[0]), np.log(bounds[1])
    return float(np.exp(rng.uniform(low, high)))


def _place(
    rng: np.random.Generator,
    window_xyxy: tuple[int, int, int, int],
    scale: float,
    image_size: int,
    config: AugmentConfig,
) -> Crop:
    x0, y0, x1, y1 = window_xyxy
    target_w = min(image_size, max(1, round((x1 - x0) * scale)))
    target_h = min(image_size, max(1, round((y1 - y0) * scale)))
    offset = (0, 0)
    if not config.anchored:
        offset = (
            int(rng.integers(0, image_size - target_w + 1)),
            int(rng.integers(0, image_size - target_h + 1)),
        )
    is_mirrored = bool(rng.random() < config.flip)
    return Crop(window_xyxy, offset, (target_w, target_h), is_mirrored)


def crop_image(image: np.ndarray, crop: Crop, image_size: int, pixels: PixelConfig) -> np.ndarray:
    """(H,W,3) uint8 RGB to (S,S,3), padded with the pixel mean cut to whole numbers."""
    x0, y0, x1, y1 = crop.source_xyxy
    window = _resize(image[y0:y1, x0:x1], crop.target_wh)
    if crop.is_mirrored:
        window = window[:, ::-1]
    square = np.empty((image_size, image_size, 3), dtype=np.uint8)
    square[:] = pixel_padding(pixels)
    (left, top), (width, height) = crop.offset_xy, crop.target_wh
    square[top : top + height, left : left + width] = window
    return square


def crop_mask(mask: np.ndarray, crop: Crop, image_size: int, mask_size: int) -> np.ndarray:
    """(H,W) bool to (m,m) bool, m = mask_size, covering the model frame; False on the padding."""
    x0, y0, x1, y1 = crop.source_xyxy
    window = mask[y0:y1, x0:x1]
    if crop.is_mirrored:
        window = window[:, ::-1]
    ratio = mask_size / image_size
    left, top = (offset * ratio for offset in crop.offset_xy)
    width, height = (side * ratio for side in crop.target_wh)
    cell_w, cell_h = (x1 - x0) / width, (y1 - y0) / height  # of a cell, original pixels
    rows, columns = _around(window, axis=1, cell=cell_h), _around(window, axis=0, cell=cell_w)
    window = np.ascontiguousarray(window[rows, columns]).astype(np.uint8) * 255
    if not window.size:
        return np.zeros((mask_size, mask_size), dtype=bool)
    part_w, part_h = window.shape[1] / cell_w, window.shape[0] / cell_h
    if max(cell_w, cell_h) > MAX_SAMPLED_SHRINK:
        window = _resize(window, (max(1, round(part_w)), max(1, round(part_h))))
    part_left, part_top = left + columns.start / cell_w, top + rows.start / cell_h
    cells_x, cells_y = _covered(part_left, part_w, mask_size), _covered(part_top, part_h, mask_size)
    scale_x, scale_y = part_w / window.shape[1], part_h / window.shape[0]
    # cv2 counts from pixel centres, hence the half-pixel terms.
    matrix = np.array(
        [
            [scale_x, 0, part_left - cells_x.start + 0.5 * scale_x - 0.5],
            [0, scale_y, part_top - cells_y.start + 0.5 * scale_y - 0.5],
        ]
    )
    out = cv2.warpAffine(
        window,
        matrix,
        (cells_x.stop - cells_x.start, cells_y.stop - cells_y.start),
        borderMode=cv2.BORDER_REPLICATE,
    )
    painted, inside = np.zeros((2, mask_size, mask_size), dtype=bool)
    painted[cells_y, cells_x] = out >= 128
    rows, columns = _centres_inside(top, height), _centres_inside(left, width)
    inside[rows, columns] = painted[rows, columns]
    return inside


def _covered(start: float, length: float, count: int) -> slice:
    """Those of `count` cells of a line that [start, start + length) touches, at least one."""
    first = min(max(0, math.floor(start)), count - 1)
    return slice(first, max(first + 1, min(count, math.ceil(start + length))))


def _around(mask: np.ndarray, *, axis: int, cell: float) -> slice:
    """Where (H,W) bool holds anything, along the other axis, and the cells beside it.

    Most regions are small, and the work on one is in proportion to what is cut out.
    """
    used = np.flatnonzero(mask.any(axis=axis))
    if not used.size:
        return slice(0, 0)
    margin = math.ceil(2 * cell) + 2
    return slice(
        max(0, int(used[0]) - margin), min(mask.shape[1 - axis], int(used[-1]) + 1 + margin)
    )


def jitter_colour(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Change contrast, brightness and channel gains of (H,W,3) uint8; see `AugmentConfig`."""
    gains = 1.0 + rng.uniform(-amount, amount, size=3) * 0.5
    contrast = 1.0 + rng.uniform(-amount, amount)
    brightness = rng.uniform(-amount, amount) * 64
    levels = np.arange(256)[:, None]
    table = ((levels - 128) * contrast + 128 + brightness) * gains
    return cv2.LUT(image, table.clip(0, 255).astype(np.uint8)[:, None])


def _centres_inside(start: float, length: float) -> slice:
    """Cells of a line whose centres lie in [start, start + length)."""
    return slice(math.ceil(start - 0.5), math.ceil(start + length - 0.5))


def _resize(image: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    shrinks = size_wh[0] < image.shape[1] or size_wh[1] < image.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), size_wh, interpolation=method)
