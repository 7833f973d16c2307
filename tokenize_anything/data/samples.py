"""What a training image is, before and after augmentation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RegionAnnotation:
    """One annotated region of an image, in original pixels.

    box_xyxy: corners, right and bottom exclusive.
    rle: COCO run-length mask of the image's size, or None when only the box is known.
    text_index: row of the text table that names or describes the region, -1 when nothing does.
    captions: texts that describe the region.
    is_whole_image: the region is the image itself.
    """

    box_xyxy: tuple[float, float, float, float]
    rle: dict[str, Any] | None = None
    text_index: int = -1
    captions: tuple[str, ...] = ()
    is_whole_image: bool = False


@dataclass(frozen=True)
class ImageRecord:
    """One annotated image on disk."""

    path: Path
    height: int
    width: int
    regions: tuple[RegionAnnotation, ...]


@dataclass(frozen=True, eq=False)
class TextTable:
    """Distinct texts that regions refer to by row, so that each is embedded once.

    counts: (texts,) how many regions refer to each row.
    """

    texts: tuple[str, ...]
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class RegionBatch:
    """Augmented images with P regions each, in the model frame.

    images: (B,S,S,3) uint8 RGB.
    boxes_xyxy: (B,P,4) float32.
    masks: (B,P,m,m) bool, m a divisor of S; all False where `has_mask` is False.
    has_mask: (B,P) bool.
    text_index: (B,P) int64 row of the text table, -1 for none.
    indices: (B,) int64 positions in the data set, to name a batch in error messages.
    """

    images: Tensor
    boxes_xyxy: Tensor
    masks: Tensor
    has_mask: Tensor
    text_index: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> RegionBatch:
        """The same batch on another device."""
        names = [field.name for field in dataclasses.fields(self)]
        return RegionBatch(**{name: getattr(self, name).to(device) for name in names})
