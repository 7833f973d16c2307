"""Scale jitter, flip, crop and colour for one image with regions (paper section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from tokenize_anything.config import PixelConfig


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How images vary during training.

    scale_range: the long side becomes image_size times a log-uniform draw from this range.
    flip: probability of a horizontal flip.
    colour: largest relative change of each channel's gain, and of the common contrast.
    anchored: place the image at the top left, as at inference, instead of anywhere.
    """

    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    colour: float = 0.2
    anchored: bool = False


@dataclass(frozen=True)
class Crop:
    """A window of the scaled image: model = (original - shift_xy) * scale, then maybe mirrored.

    `target_wh` is the part of the square that holds pixels, `offset_xy` its corner.
    """

    scale: float
    source_xyxy: tuple[int, int, int, int]
    offset_xy: tuple[int, int]
    target_wh: tuple[int, int]
    is_mirrored: bool

    def boxes_to_model(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """(R,4) original pixels to the model frame, clipped to the window."""
        x0, y0 = self.source_xyxy[:2]
        width, height = self.target_wh
        boxes = (boxes_xyxy - np.array([x0, y0, x0, y0])) * self.scale
        boxes = boxes.clip(0, np.array([width, height, width, height]))
        if self.is_mirrored:
            boxes = np.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
            )
        return boxes + np.array(self.offset_xy * 2)


def draw_crop(
    rng: np.random.Generator, height: int, width: int, image_size: int, config: AugmentConfig
) -> Crop:
    """Draw scale, window and flip for an image of (height, width)."""
    low, high = np.log(config.scale_range[0]), np.log(config.scale_range[1])
    scale = image_size * float(np.exp(rng.uniform(low, high))) / max(height, width)
    window_w, window_h = min(width, round(image_size / scale)), min(height, round(image_size / scale))
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
    return Crop(scale, window, offset, (target_w, target_h), is_mirrored)


def crop_image(image: np.ndarray, crop: Crop, image_size: int, pixels: PixelConfig) -> np.ndarray:
    """(H,W,3) uint8 RGB to (S,S,3), padded with the pixel mean."""
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
    """(H,W) bool to (m,m) bool in the model frame, m = mask_size."""
    x0, y0, x1, y1 = crop.source_xyxy
    window = mask[y0:y1, x0:x1].astype(np.uint8) * 255
    if crop.is_mirrored:
        window = window[:, ::-1]
    ratio = mask_size / image_size
    (width, height), (left, top) = crop.target_wh, crop.offset_xy
    grid_x0, grid_y0 = left * ratio, top * ratio
    matrix = np.array(  # cv2 works with pixel centres, hence the half-pixel terms
        [
            [width * ratio / (x1 - x0), 0, grid_x0],
            [0, height * ratio / (y1 - y0), grid_y0],
        ]
    )
    matrix[:, 2] += 0.5 * matrix[:, :2].sum(axis=1) - 0.5
    shrink = (x1 - x0) / max(width * ratio, 1e-6)
    if shrink > 1.5:  # average before sampling, or thin parts vanish
        small = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        window = _resize(window, small)
        matrix = np.array([[1.0, 0, grid_x0], [0, 1.0, grid_y0]])
    out = cv2.warpAffine(np.ascontiguousarray(window), matrix, (mask_size, mask_size))
    return out >= 128


def jitter_colour(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Change the gain of each channel and the contrast around the mean of (H,W,3) uint8."""
    gains = 1.0 + rng.uniform(-amount, amount, size=3) * 0.5
    contrast = 1.0 + rng.uniform(-amount, amount)
    brightness = rng.uniform(-amount, amount) * 64
    levels = np.arange(256)[:, None]
    table = ((levels - 128) * contrast + 128 + brightness) * gains
    return cv2.LUT(image, table.clip(0, 255).astype(np.uint8)[:, None])


def _resize(image: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    shrinks = size_wh[0] < image.shape[1] or size_wh[1] < image.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), size_wh, interpolation=method)
