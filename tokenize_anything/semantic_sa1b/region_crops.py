"""From a photo's masks to embeddings: checks, crops in the background, and the tower."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.region_rows import RegionColumns, RegionRows, VectorColumn
from tokenize_anything.data.sa1b import AnnotatedPhotos
from tokenize_anything.data.samples import RegionAnnotation
from tokenize_anything.geometry import decode_rle, encode_rle, masks_to_boxes
from tokenize_anything.semantic_sa1b.clip_teacher import CropSettings, crop_region
from tokenize_anything.semantic_sa1b.skipped import Skipped

EMBEDDING = "embedding"
_AHEAD = 2  # photos ready or on their way, beyond one for each thread


class RegionEmbedder(Protocol):
    """An image tower, such as `ClipTeacher`.

    identity: names the space of its vectors; written into the store.
    dim: D.
    crop_settings: what its crops must be like.
    """

    identity: str
    dim: int

    @property
    def crop_settings(self) -> CropSettings:
        """What `crop_region` needs to make pictures for it."""
        ...

    def embed_images(self, pixels: Tensor, *, batch_size: int) -> Tensor:
        """(n,D) float32 on the CPU of (n,3,S,S) normalised pixels."""
        ...


@dataclass(frozen=True, eq=False)
class CroppedPhoto:
    """The usable regions of one photo: R masks and boxes, and pixels (R,3,S,S)."""

    name: str
    region_ids: tuple[int, ...]
    boxes_xyxy: np.ndarray
    rles: tuple[dict[str, Any], ...]
    pixels: Tensor
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, eq=False)
class EmbeddedPhoto:
    """What one photo adds to the store, and what of it was left out."""

    name: str
    rows: RegionRows
    skipped: tuple[Skipped, ...]


def store_columns(identity: str, dim: int) -> RegionColumns:
    """Columns of a SemanticSA-1B store: one float16 vector of length 1 a region."""
    return RegionColumns(identity, (VectorColumn(EMBEDDING, dim, "float16", is_unit=True),))


def crop_photo(photos: AnnotatedPhotos, index: int, settings: CropSettings) -> CroppedPhoto:
    """Read a photo and cut its regions out; what cannot be used is named and left out."""
    name = photos.names[index]
    try:
        record = photos.records[index]
        rgb = read_image(record)
    except (OSError, ValueError, TypeError) as error:
        skipped = Skipped("image cannot be used", _one_line(error), name)
        return _without_regions(name, skipped, settings)
    skipped_regions = [Skipped("annotation cannot be used", line, name) for line in record.skipped]
    ids: list[int] = []
    boxes, rles, crops = [], [], []
    for region in record.regions:
        try:
            region_id, mask, box = _check_region(region, rgb, ids)
        except _UnusableRegionError as error:
            entry = Skipped(error.reason, error.detail, name, region.region_id)
            skipped_regions.append(entry)
            continue
        x0, y0, x1, y1 = box.astype(int)
        crops.append(crop_region(rgb[y0:y1, x0:x1], mask[y0:y1, x0:x1], settings))
        ids.append(region_id)
        boxes.append(box)
        rles.append(_compressed(region.rle, mask))
    pixels = torch.stack([*crops]) if crops else torch.zeros(0, 3, settings.size, settings.size)
    return CroppedPhoto(
        name, tuple(ids), np.array(boxes, np.float32).reshape(-1, 4), tuple(rles), pixels,
        tuple(skipped_regions),
    )  # fmt: skip


def embed_photo(photo: CroppedPhoto, embedder: RegionEmbedder, batch_size: int) -> EmbeddedPhoto:
    """Embed the crops of one photo.

    No batch holds regions of two photos, so that a photo's vectors do not depend on which photos
    came before it: a build that was resumed, or shared among workers, has the same ones.

    Raises:
        ValueError: the embedder gives another shape than it should, or overflows.
    """
    vectors = embedder.embed_images(photo.pixels, batch_size=batch_size).numpy()
    expected = len(photo.region_ids), embedder.dim
    if vectors.shape != expected:
        raise ValueError(f"embedder: expected vectors {expected}, got {vectors.shape}")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    is_usable = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)
    picks = np.flatnonzero(is_usable)
    lost = [
        Skipped("embedding is not finite", "NaN, infinity or zero", photo.name, photo.region_ids[i])
        for i in np.flatnonzero(~is_usable)
    ]
    rows = RegionRows(
        np.array(photo.region_ids, np.int64)[picks],
        [photo.name] * len(picks),
        photo.boxes_xyxy[picks],
        [photo.rles[i] for i in picks],
        {EMBEDDING: (vectors[picks] / lengths[picks]).astype(np.float16)},
    )
    return EmbeddedPhoto(photo.name, rows, (*photo.skipped, *lost))


def embed_photos(
    photos: AnnotatedPhotos,
    indices: Sequence[int],
    embedder: RegionEmbedder,
    *,
    batch_size: int,
    threads: int,
) -> Iterator[EmbeddedPhoto]:
    """Embed photos in the order of `indices`; the next ones are cropped in the meantime."""
    settings = embedder.crop_settings
    remaining = iter(indices)
    waiting: deque[Future[CroppedPhoto]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="crop") as pool:
        try:
            while True:
                for index in remaining:
                    waiting.append(pool.submit(crop_photo, photos, index, settings))
                    if len(waiting) == threads + _AHEAD:
                        break
                if not waiting:
                    return
                yield embed_photo(waiting.popleft().result(), embedder, batch_size)
        finally:
            for future in waiting:
                future.cancel()


class _UnusableRegionError(Exception):
    """A region that must not get an embedding."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def _check_region(
    region: RegionAnnotation, rgb: np.ndarray, known: Sequence[int]
) -> tuple[int, np.ndarray, np.ndarray]:
    """Id, mask (H,W) and tight box (4,) float32."""
    if region.region_id is None:
        raise _UnusableRegionError("region without id", "nothing could find its embedding")
    if region.region_id in known:
        raise _UnusableRegionError("region id used before", "by another region of the photo")
    if region.rle is None:
        raise _UnusableRegionError("region without mask")
    try:
        mask = decode_rle(region.rle)
    except (ValueError, TypeError) as error:
        raise _UnusableRegionError("damaged mask", _one_line(error)) from error
    if mask.shape != rgb.shape[:2]:
        detail = f"expected {rgb.shape[:2]} (height, width), got {mask.shape}"
        raise _UnusableRegionError("mask of another size", detail)
    if not mask.any():
        raise _UnusableRegionError("empty mask")
    box = masks_to_boxes(mask[None])[0]
    x0, y0, x1, y1 = region.box_xyxy
    if min(x1, box[2]) <= max(x0, box[0]) or min(y1, box[3]) <= max(y0, box[1]):
        detail = f"box {region.box_xyxy}, mask within {tuple(box.tolist())}"
        raise _UnusableRegionError("mask outside its box", detail)
    return region.region_id, mask, box


def _compressed(rle: Any, mask: np.ndarray) -> dict[str, Any]:
    return dict(rle) if isinstance(rle["counts"], str) else encode_rle(mask)


def _without_regions(name: str, skipped: Skipped, settings: CropSettings) -> CroppedPhoto:
    pixels = torch.zeros(0, 3, settings.size, settings.size)
    return CroppedPhoto(name, (), np.zeros((0, 4), np.float32), (), pixels, (skipped,))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
