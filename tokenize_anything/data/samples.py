"""What a training image is, before and after augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
    region_id: what stored vectors of the region are filed under, None where it has none.
    """

    box_xyxy: tuple[float, float, float, float]
    rle: dict[str, Any] | None = None
    text_index: int = -1
    captions: tuple[str, ...] = ()
    is_whole_image: bool = False
    region_id: int | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One annotated image on disk.

    encoded: content of the image file, for an image that is no file of its own; `path` then says
        where it came from.
    skipped: what was left out of `regions` and why, a line each.
    """

    path: Path
    height: int
    width: int
    regions: tuple[RegionAnnotation, ...]
    encoded: bytes | None = None
    skipped: tuple[str, ...] = ()


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
    indices: (B,) int64 positions in the data set.
    embeddings: (B,P,D) float32 stored vectors of the regions, or None where nothing is stored.
    has_embedding: (B,P) bool, all False where nothing is stored.
    names: of the B images, for error messages.
    skipped: what was left out on the way here and why, a line each.
    """

    images: Tensor
    boxes_xyxy: Tensor
    masks: Tensor
    has_mask: Tensor
    text_index: Tensor
    indices: Tensor
    has_embedding: Tensor
    embeddings: Tensor | None = None
    names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> RegionBatch:
        """The same batch on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> RegionBatch:
        """The same batch in memory that copies to a GPU fast; data loaders call this."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> RegionBatch:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed: dict[str, Any] = {
            n: change(v) if isinstance(v, Tensor) else v for n, v in values.items()
        }
        return RegionBatch(**changed)
