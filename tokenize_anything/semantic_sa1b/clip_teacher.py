"""The teacher of SemanticSA-1B: what CLIP's image tower says about a region on its own.

The paper (appendix B) embeds the crop of a region at 224 x 224 with everything outside its mask
blanked. It leaves three things open; here they are decided so:

- margin: none. The crop is the tight box of the mask; a margin would hold blank pixels only, and
  take resolution from the region.
- aspect: kept. The longer side of the box fills the square, the rest of the square is blank. CLIP
  was trained on undistorted pictures, and stretching makes a pole look like a plank.
- colour: the mean of the tower's training pictures, which is 0 after normalisation. Black or white
  would draw an edge of high contrast around every region, and 0 is what convolutional patch
  embeddings ignore. Pixels are normalised and blanked before they are resized, so the blank is
  exactly 0 however the crop is scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.geometry import masks_to_boxes
from tokenize_anything.open_clip_towers import ClipTowers


@dataclass(frozen=True)
class CropSettings:
    """What an image tower wants of a crop: side in pixels, and facts of RGB in [0, 1].

    The defaults are those of the CLIP models trained on OpenAI's pixel statistics, the paper's
    among them; `ClipTeacher.crop_settings` has those of a loaded tower.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


class ClipTeacher(ClipTowers):
    """CLIP towers that embed regions of photos; see `ClipTowers` for how to load them.

    Example:
        >>> teacher = ClipTeacher("EVA02-E-14-plus", towers="image")
        >>> embeddings = teacher.embed_regions(photo, masks)  # (R,D)
    """

    @property
    def crop_settings(self) -> CropSettings:
        """What `crop_region` needs to make pictures for this teacher; holds no weights."""
        return CropSettings(self.image_size, self.mean, self.std)

    def embed_regions(
        self, rgb: np.ndarray, masks: Sequence[np.ndarray] | np.ndarray, *, batch_size: int = 64
    ) -> Tensor:
        """Embed regions of one photo.

        Args:
            rgb: (H,W,3) uint8.
            masks: (R,H,W), none empty; nonzero is inside.
            batch_size: how many at once.

        Returns:
            (R,D) float32 on the CPU, L2-normalised.

        Raises:
            TypeError, ValueError: see `crop_region`.
        """
        settings = self.crop_settings
        rows = [torch.empty(0, self.dim)]
        for start in range(0, len(masks), batch_size):
            batch = masks[start : start + batch_size]
            pixels = torch.stack([crop_region(rgb, mask, settings) for mask in batch])
            rows.append(self.embed_images(pixels, batch_size=batch_size))
        return torch.cat(rows)


def crop_region(rgb: np.ndarray, mask: np.ndarray, settings: CropSettings | None = None) -> Tensor:
    """Cut a region out of its photo, blank what is not of it, and fit it into the tower's square.

    Args:
        rgb: (H,W,3) uint8.
        mask: (H,W) of any type, not empty; nonzero is inside.
        settings: of the tower; None takes CLIP's usual ones.

    Returns:
        (3,S,S) float32, normalised; 0 away from the region. Resized with antialiased bicubic
        interpolation, as CLIP's own preprocessing.

    Raises:
        TypeError: a photo that is not uint8.
        ValueError: other shapes, or an empty mask.
    """
    settings = settings or CropSettings()
    inside = _check_region(rgb, mask)
    (x0, y0, x1, y1) = (int(edge) for edge in masks_to_boxes(inside[None])[0])
    inside = inside[y0:y1, x0:x1]
    mean, std = np.array([settings.mean, settings.std], np.float32)
    values = (rgb[y0:y1, x0:x1].astype(np.float32) / 255 - mean) / std * inside[..., None]
    pixels = torch.from_numpy(values).permute(2, 0, 1)
    scale = settings.size / max(inside.shape)
    height, width = (max(1, round(side * scale)) for side in inside.shape)
    resized = F.interpolate(
        pixels[None], (height, width), mode="bicubic", align_corners=False, antialias=True
    )[0]
    square = torch.zeros(3, settings.size, settings.size)
    top, left = (settings.size - height) // 2, (settings.size - width) // 2
    square[:, top : top + height, left : left + width] = resized
    return square


def _check_region(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask as bool."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
        kind = getattr(rgb, "dtype", type(rgb).__name__)
        raise TypeError(f"rgb: expected a uint8 array (H,W,3), got {kind}")
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"rgb: expected (H,W,3), got {rgb.shape}")
    inside = np.asarray(mask) != 0
    if inside.shape != rgb.shape[:2]:
        raise ValueError(f"mask: expected the photo's {rgb.shape[:2]}, got {inside.shape}")
    if not inside.any():
        raise ValueError("mask: expected at least one pixel inside, got an empty mask")
    return inside
