"""Textured shapes painted over training images: extra regions whose masks are exact.

A few thousand photos show few objects each. Shapes of any size add regions whose outline is a real
edge in the image, which is what a prompt must learn to follow before it can follow objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

MAX_TRIES = 6
MAX_HIDDEN = 0.3
NUM_CORNERS = 48


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """Shapes painted over each image.

    count: how many.
    size_range: long side as a fraction of the image's side, drawn log-uniformly.
    """

    count: int = 0
    size_range: tuple[float, float] = (0.04, 0.5)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count: expected at least 0, got {self.count}")
        low, high = self.size_range
        if not 0 < low <= high <= 1:
            raise ValueError(f"size_range: expected 0 < low <= high <= 1, got {self.size_range}")


def paint_shapes(
    image: np.ndarray, masks: np.ndarray, rng: np.random.Generator, config: ShapeConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint shapes over an image and cut them out of the masks of what lies behind.

    A shape finds a place where it hides at most 30 % of any mask and of any earlier shape, or is
    left out.

    Args:
        image: (S,S,3) uint8.
        masks: (R,m,m) bool, m a divisor of S, covering the image.
        rng: of the draws.
        config: of the shapes.

    Returns:
        The painted image, the visible part of `masks`, and (count,m,m) bool masks of the shapes,
        all False for a shape that found no place. New arrays.
    """
    image = image.copy()
    size, mask_size = image.shape[0], masks.shape[-1]
    shapes = np.zeros((config.count, mask_size, mask_size), dtype=bool)
    visible = np.concatenate([masks, shapes])
    areas = np.count_nonzero(visible, axis=(1, 2))
    for index in range(len(masks), len(visible)):
        for _ in range(MAX_TRIES):
            alpha = draw_outline(rng, size, config.size_range)
            covered = cv2.resize(alpha, (mask_size, mask_size), interpolation=cv2.INTER_AREA) > 0.5
            window = _bounds(covered)
            behind = visible[:, *window] & ~covered[window]
            hidden = np.count_nonzero(visible[:, *window], axis=(1, 2)) - np.count_nonzero(
                behind, axis=(1, 2)
            )
            remaining = np.count_nonzero(visible, axis=(1, 2)) - hidden
            if covered.any() and np.all(remaining >= (1 - MAX_HIDDEN) * areas):
                blend(image, alpha, rng)
                visible[:, *window] = behind
                visible[index] = covered
                areas[index] = np.count_nonzero(covered)
                break
    return image, visible[: len(masks)], visible[len(masks) :]


def draw_ellipses(boxes: np.ndarray, size: int) -> np.ndarray:
    """The largest ellipse in each box: the pixels whose centres lie in it.

    Args:
        boxes: (R,4) x0, y0, x1, y1 in pixels of the masks, where pixel i covers i to i + 1.
        size: m.

    Returns:
        (R,m,m) bool.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    radius = (boxes[:, 2:] - boxes[:, :2]).clip(1e-6) / 2
    offsets = np.arange(size, dtype=np.float32) + 0.5 - middle[:, :, None]
    x, y = np.moveaxis((offsets / radius[:, :, None]) ** 2, 1, 0)
    return x[:, None, :] + y[:, :, None] <= 1


def _bounds(array: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of an (H,W) array that hold anything but zeros."""
    rows, columns = (np.flatnonzero(array.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def draw_outline(
    rng: np.random.Generator, size: int, size_range: tuple[float, float]
) -> np.ndarray:
    """A filled star-convex shape as (S,S) float32 opacity, anywhere with its centre inside.

    Its radius is a random Fourier series of the angle, cut to few corners half of the time, then
    squeezed and turned: blobs, ellipses, polygons and bars.
    """
    angles = np.linspace(0, 2 * np.pi, NUM_CORNERS, endpoint=False)
    if rng.random() < 0.5:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    waves = np.arange(2, 6)
    amplitudes = rng.normal(0, rng.uniform(0, 0.5), len(waves)) / waves
    phases = rng.uniform(0, 2 * np.pi, len(waves))
    radius = (1 + (amplitudes * np.cos(angles[:, None] * waves + phases)).sum(axis=1)).clip(0.2)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
    points[:, 1] *= np.exp(rng.uniform(np.log(0.25), 0))
    turn = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(turn), np.sin(turn)
    points = points @ np.array([[cosine, sine], [-sine, cosine]])
    long_side = size * np.exp(rng.uniform(*np.log(size_range)))
    points *= long_side / np.ptp(points, axis=0).max().clip(1e-6)
    points += rng.uniform(0, size, 2) - (points.max(axis=0) + points.min(axis=0)) / 2
    alpha = np.zeros((size, size), dtype=np.uint8)
    cv2.fillPoly(alpha, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return alpha.astype(np.float32) / 255


def draw_texture(
    rng: np.random.Generator, image: np.ndarray, height: int, width: int
) -> np.ndarray:
    """(height,width,3) float32: one colour, a gradient, stripes, or a bit of the image."""
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(
        rng.uniform(0, 25)
    )
    kind = rng.integers(4)
    if kind == 3:
        top = int(rng.integers(0, image.shape[0] - height + 1))
        left = int(rng.integers(0, image.shape[1] - width + 1))
        tint = rng.normal(0, 20, 3).astype(np.float32)
        window = image[top : top + height, left : left + width]
        return (window * np.float32(rng.uniform(0.6, 1.3)) + tint).clip(0, 255)
    colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    if kind == 0:
        return (colours[0] + noise).clip(0, 255)
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.ogrid[:height, :width]
    ramp = (rows * np.sin(angle) + columns * np.cos(angle)).astype(np.float32)
    period = max(height, width) if kind == 1 else np.exp(rng.uniform(np.log(4), np.log(60)))
    phase = 0.5 + 0.5 * np.sin(2 * np.pi / period * ramp + rng.uniform(0, 2 * np.pi))
    mix = phase.astype(np.float32)[..., None]
    return (colours[0] * mix + colours[1] * (1 - mix) + noise).clip(0, 255)


def blend(image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> None:
    """Paint a random texture into `image` (S,S,3) uint8, as far as `alpha` (S,S) in [0, 1] says."""
    window = _bounds(alpha)
    opacity = alpha[window][..., None]
    texture = draw_texture(rng, image, *opacity.shape[:2])
    image[window] = np.round(image[window] * (1 - opacity) + texture * opacity).astype(np.uint8)
