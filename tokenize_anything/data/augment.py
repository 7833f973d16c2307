"""Scale jitter, flip, crop and colour for one image with regions (paper section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from tokenize_anything.config import PixelConfig

# Masks that shrink more than this are averaged before they are sampled, or thin parts vanish.
MAX_SAMPLED_SHRINK = 1.5


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How images vary during training.

    scale_range: the long side becomes image_size times a log-uniform draw from this range.
    flip: probability of a horizontal flip.
    colour: strength in [0, 1]: the contrast changes by up to this fraction, the gain of each
        channel by half of it, the brightness by up to 64 levels times it. 0 leaves colours alone.
    anchored: place the image at the top left, as at inference, instead of anywhere.
    """

    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    colour: float = 0.2
    anchored: bool = False

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range: expected 0 < low <= high, got {self.scale_range}")
        for name in ("flip", "colour"):
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
    low, high = np.log(config.scale_range[0]), np.log(config.scale_range[1])
    scale = image_size * float(np.exp(rng.uniform(low, high))) / max(height, width)
    fitting = max(1, round(image_size / scale))
    window_w, window_h = min(width, fitting), min(height, fitting)
    x0 = int(rng.integers(0, width - window_w + 1))
    y0 = int(rng.integers(0, height - window_h + 1))
    target_w = min(image_size, max(1, round(window_w * scale)))
    target_h = min(image_size, max(1, round(window_h * scale)))
    offset = (0, 0)
    if not config.anchored:
        offset = (
            int(rng.integers(0, image_size - target_w + 1)),
            int(rng.integers(0, image_size - target_h + 1)),
        )
    is_mirrored = bool(rng.random() < config.flip)
    window = (x0, y0, x0 + window_w, y0 + window_h)
    return Crop(window, offset, (target_w, target_h), is_mirrored)


def crop_image(image: np.ndarray, crop: Crop, image_size: int, pixels: PixelConfig) -> np.ndarray:
    """(H,W,3) uint8 RGB to (S,S,3), padded with the pixel mean cut to whole numbers."""
    x0, y0, x1, y1 = crop.source_xyxy
    window = _resize(image[y0:y1, x0:x1], crop.target_wh)
    if crop.is_mirrored:
        window = window[:, ::-1]
    mean = pixels.mean[::-1] if pixels.channel_order == "BGR" else pixels.mean
    square = np.empty((image_size, image_size, 3), dtype=np.uint8)
    square[:] = np.array(mean).astype(np.uint8)
    (left, top), (width, height) = crop.offset_xy, crop.target_wh
    square[top : top + height, left : left + width] = window
    return square


def crop_mask(mask: np.ndarray, crop: Crop, image_size: int, mask_size: int) -> np.ndarray:
    """(H,W) bool to (m,m) bool, m = mask_size, covering the model frame; False on the padding."""
    x0, y0, x1, y1 = crop.source_xyxy
    window = mask[y0:y1, x0:x1].astype(np.uint8) * 255
    if crop.is_mirrored:
        window = window[:, ::-1]
    ratio = mask_size / image_size
    left, top = (offset * ratio for offset in crop.offset_xy)
    width, height = (side * ratio for side in crop.target_wh)
    if max((x1 - x0) / width, (y1 - y0) / height) > MAX_SAMPLED_SHRINK:
        window = _resize(window, (max(1, round(width)), max(1, round(height))))
    scale_x, scale_y = width / window.shape[1], height / window.shape[0]
    # cv2 counts from pixel centres, hence the half-pixel terms.
    matrix = np.array(
        [
            [scale_x, 0, left + 0.5 * scale_x - 0.5],
            [0, scale_y, top + 0.5 * scale_y - 0.5],
        ]
    )
    out = cv2.warpAffine(
        np.ascontiguousarray(window),
        matrix,
        (mask_size, mask_size),
        borderMode=cv2.BORDER_REPLICATE,
    )
    rows, columns = _centres_inside(top, height), _centres_inside(left, width)
    inside = np.zeros((mask_size, mask_size), dtype=bool)
    inside[rows, columns] = out[rows, columns] >= 128
    return inside


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
