"""The one place that knows how images enter the model and how masks come back.

Two frames: *original* pixels, (H,W) of the image as loaded, and the *model* frame, a padded square
of S x S pixels whose top-left part holds the scaled image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokenize_anything.config import PixelConfig, TAPConfig
from tokenize_anything.image_loading import ImageSource, load_image

__all__ = [
    "ImageFrame",
    "ImageSource",
    "load_image",
    "normalize_pixels",
    "pixel_padding",
    "prepare_images",
    "restore_logits",
    "restore_masks",
]

Coords = TypeVar("Coords", np.ndarray, Tensor)

# Values of one float32 buffer while masks are resized: 16 MiB on the CPU, where what stays in
# its caches is faster; 256 MiB elsewhere, where each call has a fixed cost.
_CPU_CHUNK_VALUES = 2**22
_ACCELERATOR_CHUNK_VALUES = 2**26


@dataclass(frozen=True)
class ImageFrame:
    """How one image lies in the padded square the model sees.

    original_hw: (H,W) of the image as loaded.
    scaled_hw: (height, width) of the scaled image; it fills the top-left of the square.
    scale: the one factor of both axes from original to model pixels. It stays exact where
        rounding gave `scaled_hw`.
    padded_size: S, the side of the square.
    """

    original_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    scale: float
    padded_size: int

    @classmethod
    def for_size(cls, height: int, width: int, image_size: int) -> ImageFrame:
        """Fit an image of (height, width) pixels into a square of side `image_size`.

        The short side is scaled to `image_size`; where that makes the long side longer, the long
        side is scaled to it instead. So the long side always fills the square. Sides are rounded
        half up and are at least one pixel.

        Raises:
            ValueError: a size is not a positive integer.
        """
        for name, size in (("height", height), ("width", width), ("image_size", image_size)):
            if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        height, width, image_size = int(height), int(width), int(image_size)
        scale = image_size / min(height, width)
        # Half up here as below: half to even would let 2048 x 2049 become 1024 x 1025.
        if int(max(height, width) * scale + 0.5) > image_size:
            scale = image_size / max(height, width)
        scaled_hw = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        return cls((height, width), scaled_hw, scale, image_size)

    def to_model_frame(self, coords_xy: Coords) -> Coords:
        """Map (…,2) x, y in original pixels to the model frame; nothing is clipped.

        Returns:
            A new array or tensor, floating point, at least float32.
        """
        return _floating_xy(coords_xy) * self.scale

    def to_original_frame(self, coords_xy: Coords) -> Coords:
        """Map (…,2) x, y in the model frame to original pixels; inverse of `to_model_frame`."""
        return _floating_xy(coords_xy) / self.scale


def prepare_images(
    images: Iterable[ImageSource], config: TAPConfig, *, side: int | None = None
) -> tuple[Tensor, list[ImageFrame]]:
    """Load, scale, pad and normalise images; what an image becomes does not depend on the others.

    Scaling is Pillow's antialiased bilinear filter on uint8. The padding right and below holds the
    pixel mean cut to whole numbers. Channels leave RGB for `config.pixels.channel_order` here and
    nowhere else.

    Args:
        images: anything `load_image` reads, in any mix of sizes and kinds.
        config: `image_size` and `pixels` are used.
        side: S, in the place of `image_size`.

    Returns:
        pixels (B,3,S,S) float32 on the CPU, contiguous; and one `ImageFrame` per image.

    Raises:
        TypeError: one image instead of a sequence of images, or what `load_image` raises.
        ValueError: no images, or what `load_image` raises.
    """
    sources = _listed(images)
    side = config.image_size if side is None else side
    pixels = np.empty((len(sources), 3, side, side), np.float32)
    frames = []
    for index, image in enumerate(sources):
        rgb = load_image(image, name=f"images[{index}]")
        frame = ImageFrame.for_size(rgb.shape[0], rgb.shape[1], side)
        _write_pixels(pixels[index], _resize(rgb, frame.scaled_hw), config.pixels)
        frames.append(frame)
    return torch.from_numpy(pixels), frames


def normalize_pixels(images: Tensor, pixels: PixelConfig) -> Tensor:
    """(B,S,S,3) RGB, 0 to 255, to (B,3,S,S) float32 as a model takes it, on the same device."""
    images = images.flip(-1) if pixels.channel_order == "BGR" else images
    mean = torch.tensor(pixels.mean, device=images.device)
    std = torch.tensor(pixels.std, device=images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def pixel_padding(pixels: PixelConfig) -> tuple[int, int, int]:
    """RGB of what lies beyond an image: the pixel mean cut to whole numbers."""
    first, second, third = (int(value) for value in pixels.mean)
    return (third, second, first) if pixels.channel_order == "BGR" else (first, second, third)


def restore_masks(
    mask_logits: Tensor, frame: ImageFrame, *, threshold: float = 0.0, chunk: int | None = None
) -> np.ndarray:
    """Bring mask logits of one image back to its pixels and cut them at a threshold.

    Resized twice, as the model was trained: to the padded square, cropped to the scaled image, then
    to the original size. The threshold is applied last.

    Args:
        mask_logits: (R,h',w') or (R,1,h',w'), covering the padded square; any dtype or device.
        frame: the frame of the image, from `prepare_images`.
        threshold: a pixel belongs to the mask where its logit is greater.
        chunk: regions resized at once; it changes memory, never the result. By default as many as
            fit in 16 MiB per buffer on the CPU, 256 MiB elsewhere.

    Returns:
        masks (R,H,W) bool, original pixels.

    Raises:
        TypeError: `mask_logits` is not a tensor.
        ValueError: another shape, several masks per region, or `chunk` below 1.
    """
    logits = _one_mask_per_region(mask_logits)
    masks = np.empty((len(logits), *frame.original_hw), np.bool_)
    for start, restored in _restore_in_chunks(logits, frame, chunk):
        part = torch.from_numpy(masks[start : start + len(restored)])
        part.copy_(restored > threshold)
    return masks


def restore_logits(
    mask_logits: Tensor, frame: ImageFrame, *, chunk: int | None = None
) -> np.ndarray:
    """Like `restore_masks`, before the threshold. Returns (R,H,W) float32 logits."""
    logits = _one_mask_per_region(mask_logits)
    values = np.empty((len(logits), *frame.original_hw), np.float32)
    for start, restored in _restore_in_chunks(logits, frame, chunk):
        torch.from_numpy(values[start : start + len(restored)]).copy_(restored)
    return values


def _floating_xy(coords_xy: Coords) -> Coords:
    if not isinstance(coords_xy, np.ndarray | Tensor):
        raise TypeError(
            f"coords_xy: expected a NumPy array or a torch tensor, got {type(coords_xy).__name__}"
        )
    if coords_xy.ndim < 1 or coords_xy.shape[-1] != 2:
        raise ValueError(f"coords_xy: expected shape (…,2), x then y, got {tuple(coords_xy.shape)}")
    if isinstance(coords_xy, Tensor):
        return coords_xy.to(torch.promote_types(coords_xy.dtype, torch.float32))
    return coords_xy.astype(np.result_type(coords_xy.dtype, np.float32))


def _listed(images: Iterable[ImageSource]) -> list[ImageSource]:
    is_one_array = isinstance(images, np.ndarray | Tensor) and images.ndim < 4
    is_one_file = isinstance(images, str | bytes | os.PathLike | Image.Image)
    if is_one_array or is_one_file or not isinstance(images, Iterable):
        raise TypeError(
            f"images: expected a list of images, got {type(images).__name__}; "
            "write [image] for a single image"
        )
    sources = list(images)
    if not sources:
        raise ValueError("images: expected at least one image, got none")
    return sources


def _resize(rgb: np.ndarray, scaled_hw: tuple[int, int]) -> np.ndarray:
    if rgb.shape[:2] == scaled_hw:
        return rgb
    height, width = scaled_hw
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _write_pixels(target: np.ndarray, rgb: np.ndarray, pixels: PixelConfig) -> None:
    """Fill `target` (3,S,S) with the padded and normalised image, (h,w,3) uint8 RGB."""
    height, width = rgb.shape[:2]
    source = rgb[..., ::-1] if pixels.channel_order == "BGR" else rgb
    for channel, (mean, std) in enumerate(zip(pixels.mean, pixels.std, strict=True)):
        plane, mean32, reciprocal = target[channel], np.float32(mean), np.float32(1.0 / std)
        padding = (np.float32(np.uint8(mean)) - mean32) * reciprocal
        plane[height:] = padding
        plane[:height, width:] = padding
        image = plane[:height, :width]
        np.subtract(source[..., channel], mean32, out=image, dtype=np.float32)
        np.multiply(image, reciprocal, out=image)


def _one_mask_per_region(mask_logits: Tensor) -> Tensor:
    """Check, drop the gradient and return (R,1,h',w')."""
    if not isinstance(mask_logits, Tensor):
        raise TypeError(
            f"mask_logits: expected a torch tensor, got {type(mask_logits).__name__}; "
            "wrap an array with torch.from_numpy"
        )
    shape = tuple(mask_logits.shape)
    if mask_logits.ndim == 3:
        mask_logits = mask_logits[:, None]
    if mask_logits.ndim != 4 or mask_logits.shape[1] != 1 or 0 in shape[-2:]:
        raise ValueError(
            f"mask_logits: expected shape (R,h',w') or (R,1,h',w'), got {shape}; "
            "choose one mask per region first, for example with RegionOutputs.select"
        )
    return mask_logits.detach()


def _restore_in_chunks(
    logits: Tensor, frame: ImageFrame, chunk: int | None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first region, (n,H,W) float32 logits in original pixels)."""
    if chunk is None:
        (height, width), (scaled_height, scaled_width) = frame.original_hw, frame.scaled_hw
        is_cpu = logits.device.type == "cpu"
        values = _CPU_CHUNK_VALUES if is_cpu else _ACCELERATOR_CHUNK_VALUES
        chunk = max(1, values // max(height * width, scaled_height * scaled_width))
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 region, got {chunk}")
    for start in range(0, len(logits), chunk):
        scaled = _upscale_to_scaled(logits[start : start + chunk].float(), frame)
        yield start, _interpolate(scaled, frame.original_hw)[:, 0]


def _upscale_to_scaled(logits: Tensor, frame: ImageFrame) -> Tensor:
    """Upscale (n,1,h',w') to the padded square and crop it to the scaled image.

    Rows and columns that only feed the padding are left out beforehand. With a whole factor
    between the two sizes the positions, so the values, of all others stay the same.
    """
    height, width = frame.scaled_hw
    rows, padded_height = _cells_in_use(logits.shape[2], height, frame.padded_size)
    columns, padded_width = _cells_in_use(logits.shape[3], width, frame.padded_size)
    upscaled = _interpolate(logits[:, :, :rows, :columns], (padded_height, padded_width))
    return upscaled[:, :, :height, :width]


def _cells_in_use(num_cells: int, scaled: int, padded: int) -> tuple[int, int]:
    """Cells along one axis that reach the scaled image, and the pixels they are upscaled to."""
    factor, remainder = divmod(padded, num_cells)
    if remainder:
        return num_cells, padded
    # Pixel `scaled - 1` mixes the cell it lies in with the next one.
    needed = min(num_cells, -(-scaled // factor) + 1)
    return needed, needed * factor


def _interpolate(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    if logits.shape[-2:] == size_hw:  # the same values, without the work
        return logits
    return F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)
