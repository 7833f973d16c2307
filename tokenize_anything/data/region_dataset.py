"""Augmented training samples from annotated photos; all draws follow from (seed, epoch, index)."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from tokenize_anything.config import PixelConfig
from tokenize_anything.data.augment import (
    AugmentConfig,
    Crop,
    crop_image,
    crop_mask,
    draw_crop,
    draw_zoom,
    jitter_colour,
)
from tokenize_anything.data.procedural_shapes import ShapeConfig, draw_ellipses, paint_shapes
from tokenize_anything.data.region_embeddings import RegionEmbeddings, read_present
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, RegionBatch, TextTable
from tokenize_anything.geometry import decode_rle, masks_to_boxes
from tokenize_anything.image_loading import load_image

MIN_VISIBLE = 0.4
MIN_VISIBLE_WHOLE_IMAGE = 0.9
MIN_BOX_SIDE = 3.0
MAX_CROPS = 10
MAX_BAD_IMAGES = 10

BadDataRule = Literal["stop", "skip"]

_View = list[tuple[RegionAnnotation, np.ndarray]]  # regions and their model-frame boxes (4,)


@dataclass(frozen=True, kw_only=True)
class RegionSamplingConfig:
    """Which regions of an image a step looks at.

    regions_per_image: P, drawn with replacement when an image has fewer.
    mask_stride: masks are kept at image_size / mask_stride.
    rarity_power: a region is drawn in proportion to (how often its text occurs) ** -rarity_power.
    whole_image_weight: weight of whole-image captions beside ordinary regions.
    box_only_weight: weight of regions that have a box and a name but no mask.
    shapes: painted over the image and taken as regions too, of the `regions_per_image`.
    ellipse_masks: put the ellipse inside its box in the place of each region's mask, also where
        there was none: a first lesson, in what a box means, before the outlines of things.
    """

    regions_per_image: int = 8
    mask_stride: int = 2
    rarity_power: float = 0.3
    whole_image_weight: float = 0.1
    box_only_weight: float = 0.4
    shapes: ShapeConfig = field(default_factory=ShapeConfig)
    ellipse_masks: bool = False

    def __post_init__(self) -> None:
        for name in ("regions_per_image", "mask_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("whole_image_weight", "box_only_weight"):  # 0 would leave nothing to draw
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.shapes.count >= self.regions_per_image:
            raise ValueError(
                f"shapes.count: expected less than regions_per_image {self.regions_per_image}, got "
                f"{self.shapes.count}"
            )


@dataclass(frozen=True, eq=False)
class RegionSample:
    """One row of a `RegionBatch`, as arrays."""

    image: np.ndarray
    boxes_xyxy: np.ndarray
    masks: np.ndarray
    has_mask: np.ndarray
    text_index: np.ndarray
    index: int
    has_embedding: np.ndarray
    embeddings: np.ndarray | None = None
    name: str = ""
    skipped: tuple[str, ...] = ()


@dataclass(eq=False)
class RegionDataset(Dataset[RegionSample]):
    """Photos with regions, cropped and coloured anew each epoch.

    Index with (epoch, image index), as `EpochSampler` yields them, so that a sample depends on
    nothing but the seed and its own place: any worker, any restart gives the same one.

    Args:
        records: annotated images; read when they are needed, if the sequence does so.
        texts: the text table their regions refer to.
        image_size: S, a multiple of `sampling.mask_stride`.
        keep_images: keep decoded photos in memory, of each worker for itself.
        embeddings: vectors of the regions, which a sample then carries.
        embedding_dim: D, their length.
        on_bad_data: "stop" raises. "skip" takes another image, drawn from the same place, for one
            that cannot be used, leaves out a region whose mask cannot, and says so in the sample.
    """

    records: Sequence[ImageRecord]
    texts: TextTable
    image_size: int
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampling: RegionSamplingConfig = field(default_factory=RegionSamplingConfig)
    pixels: PixelConfig = field(default_factory=PixelConfig)
    seed: int = 0
    keep_images: bool = False
    embeddings: RegionEmbeddings | None = None
    embedding_dim: int = 0
    on_bad_data: BadDataRule = "stop"
    _cache: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.image_size % self.sampling.mask_stride:
            raise ValueError(
                f"mask_stride: expected a divisor of image_size {self.image_size}, got "
                f"{self.sampling.mask_stride}"
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> RegionSample:
        """Draw one sample.

        Raises:
            FileNotFoundError: the image is missing.
            ValueError: the image cannot be decoded or has another size than its annotation says, a
                mask is empty or damaged, a region has no embedding; or, where such are skipped,
                too many images in a row.
        """
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        if self.on_bad_data == "stop":
            return self._draw_sample(index, rng)
        skipped: list[str] = []
        while len(skipped) < MAX_BAD_IMAGES:
            try:
                sample = self._draw_sample(index, rng)
            except (OSError, ValueError) as error:
                skipped.append(str(error))
                index = int(rng.integers(len(self.records)))
            else:
                return dataclasses.replace(sample, skipped=(*skipped, *sample.skipped))
        raise ValueError(
            f"images: {MAX_BAD_IMAGES} in a row cannot be used, the last because of {skipped[-1]}"
        )

    def _draw_sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        record = self.records[index]
        problems = list(record.skipped)
        image = self._read(index, record)
        crop, regions = self._draw_view(image, record.regions, rng)
        regions = self._choose(regions, rng)
        boxes, masks, has_mask, text_index = self._region_arrays(regions, crop, record, problems)
        embeddings, has_embedding = self._region_embeddings(regions, record, problems)
        if problems and self.on_bad_data == "stop":
            raise ValueError(f"{problems[0]}; mend it, or set data.on_bad_data to skip")
        if self.augment.colour:  # before the padding, whose colour is always the same
            image = jitter_colour(image, rng, self.augment.colour)
        square = crop_image(image, crop, self.image_size, self.pixels)
        if self.sampling.shapes.count:
            square = self._add_shapes(square, boxes, masks, has_mask, rng)
        if self.sampling.ellipse_masks:
            masks = draw_ellipses(boxes / self.sampling.mask_stride, masks.shape[-1])
            has_mask[:] = masks.any(axis=(1, 2))
        return RegionSample(
            square, boxes, masks, has_mask, text_index, index, has_embedding, embeddings,
            record.path.name, tuple(problems),
        )  # fmt: skip

    def _draw_view(
        self, image: np.ndarray, regions: Sequence[RegionAnnotation], rng: np.random.Generator
    ) -> tuple[Crop, _View]:
        """A crop that shows some region, if one of a few draws does."""
        for attempt in range(MAX_CROPS):
            crop = self._draw_crop(image.shape[0], image.shape[1], regions, rng)
            visible = self._visible_regions(regions, crop)
            if visible or attempt == MAX_CROPS - 1:
                break
        return crop, visible

    def _draw_crop(
        self,
        height: int,
        width: int,
        regions: Sequence[RegionAnnotation],
        rng: np.random.Generator,
    ) -> Crop:
        """A view around one of the regions that have a mask, or of anything."""
        targets = [region for region in regions if region.rle is not None]
        if targets and self.augment.zoom_probability:
            if rng.random() < self.augment.zoom_probability:
                weights = np.array([self._weight(region) for region in targets])
                chosen = targets[int(rng.choice(len(targets), p=weights / weights.sum()))]
                box = np.array(chosen.box_xyxy, dtype=np.float64)
                return draw_zoom(rng, box, (height, width), self.image_size, self.augment)
        return draw_crop(rng, height, width, self.image_size, self.augment)

    def _region_arrays(
        self, regions: _View, crop: Crop, record: ImageRecord, problems: list[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, masks, `has_mask` and text rows; a region with a bad mask adds to `problems`."""
        count, stride = self.sampling.regions_per_image, self.sampling.mask_stride
        size = self.image_size // stride
        everything = np.array([0, 0, self.image_size, self.image_size], dtype=np.float32)
        boxes = np.tile(everything, (count, 1))
        masks = np.zeros((count, size, size), dtype=bool)
        has_mask = np.zeros(count, dtype=bool)
        text_index = np.full(count, -1, dtype=np.int64)
        for slot, (region, box) in enumerate(regions):
            if region.rle is not None:
                try:
                    mask = decode_region(region, record)
                except (ValueError, TypeError) as error:
                    problems.append(f"{record.path}: region {region.region_id}: {error}")
                    continue
                masks[slot] = crop_mask(mask, crop, self.image_size, size)
            boxes[slot], text_index[slot] = box, region.text_index
            has_mask[slot] = masks[slot].any()
            if has_mask[slot]:
                boxes[slot] = masks_to_boxes(masks[slot : slot + 1])[0] * stride
        return boxes, masks, has_mask, text_index

    def _region_embeddings(
        self, regions: _View, record: ImageRecord, problems: list[str]
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """(P,D) vectors and (P,) whether there is one; a missing one adds to `problems`."""
        count = self.sampling.regions_per_image
        has_embedding = np.zeros(count, dtype=bool)
        if self.embeddings is None:
            return None, has_embedding
        ids = [region.region_id for region, _ in regions]
        wanted = sorted({region_id for region_id in ids if region_id is not None})
        present, missing = read_present(self.embeddings, wanted)
        problems += [f"{record.path}: region {one}: no embedding is stored" for one in missing]
        vectors = np.zeros((count, self.embedding_dim), dtype=np.float32)
        for slot, region_id in enumerate(ids):
            if region_id in present:
                vectors[slot], has_embedding[slot] = present[region_id], True
        return vectors, has_embedding

    def _add_shapes(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        masks: np.ndarray,
        has_mask: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Paint shapes and put them into the last rows of the arrays. Returns the painted image."""
        shapes = self.sampling.shapes
        last = len(masks) - shapes.count
        image, visible, painted = paint_shapes(image, masks[:last], rng, shapes)
        masks[:] = np.concatenate([visible, painted])
        has_mask[:] = masks.any(axis=(1, 2))
        boxes[has_mask] = masks_to_boxes(masks[has_mask]) * self.sampling.mask_stride
        return image

    def _visible_regions(self, regions: Sequence[RegionAnnotation], crop: Crop) -> _View:
        """Regions of which enough lies inside the crop, with their model-frame boxes."""
        boxes = np.array([region.box_xyxy for region in regions], dtype=np.float64).reshape(-1, 4)
        inside = crop.boxes_to_model(boxes)
        sides = inside[:, 2:] - inside[:, :2]
        full = np.prod((boxes[:, 2:] - boxes[:, :2]) * crop.scale_xy, axis=1)
        visible = np.prod(sides, axis=1) / full.clip(1e-6)
        needed = np.array(
            [
                MIN_VISIBLE_WHOLE_IMAGE if region.is_whole_image else MIN_VISIBLE
                for region in regions
            ]
        )
        keep = (visible >= needed) & (sides.min(axis=1) >= MIN_BOX_SIDE)
        return [(regions[i], inside[i].astype(np.float32)) for i in np.flatnonzero(keep).tolist()]

    def _choose(self, regions: _View, rng: np.random.Generator) -> _View:
        if not regions:
            return []
        weights = np.array([self._weight(region) for region, _ in regions])
        count = self.sampling.regions_per_image - self.sampling.shapes.count
        replace = len(regions) < count
        picks = rng.choice(len(regions), count, replace=replace, p=weights / weights.sum())
        return [regions[pick] for pick in picks]

    def _weight(self, region: RegionAnnotation) -> float:
        if region.is_whole_image:
            return self.sampling.whole_image_weight
        weight = self.sampling.box_only_weight if region.rle is None else 1.0
        return weight * text_weight(region, self.texts, self.sampling.rarity_power)

    def _read(self, index: int, record: ImageRecord) -> np.ndarray:
        if index in self._cache:
            return self._cache[index]
        image = read_image(record)
        if self.keep_images:
            self._cache[index] = image
        return image


def text_weight(region: RegionAnnotation, texts: TextTable, rarity_power: float) -> float:
    """How often its text occurs, to the power of -rarity_power; 1 for a region without a text."""
    if region.text_index < 0:
        return 1.0
    return float(texts.counts[region.text_index]) ** -rarity_power


def read_image(record: ImageRecord) -> np.ndarray:
    """The image of a record, (H,W,3) uint8 RGB.

    Raises:
        FileNotFoundError: the image is missing.
        ValueError: the image cannot be decoded or has another size than its annotation says.
    """
    if record.encoded is None:
        image = load_image(record.path)
    else:
        image = load_image(_open_encoded(record.encoded, record), name=f"image: {record.path}")
    if image.shape[:2] != (record.height, record.width):
        raise ValueError(
            f"image: {record.path} is {image.shape[:2]}, its annotation says "
            f"{(record.height, record.width)} (height, width)"
        )
    return image


def _open_encoded(encoded: bytes, record: ImageRecord) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image: {record.path} cannot be decoded ({error})") from error


def decode_region(region: RegionAnnotation, record: ImageRecord) -> np.ndarray:
    """The mask of a region, (H,W) bool of the image's size, with at least one pixel.

    Raises:
        TypeError, ValueError: damaged, of another size, or empty.
    """
    assert region.rle is not None
    mask = decode_rle(region.rle)
    if mask.shape != (record.height, record.width):
        raise ValueError(
            f"expected a mask of the image's size {(record.height, record.width)} (height, width), "
            f"got {mask.shape}"
        )
    if not mask.any():
        raise ValueError("expected a mask with at least one pixel, got an empty one")
    return mask


def collate(samples: Sequence[RegionSample]) -> RegionBatch:
    """Stack samples along B."""
    stacked = {
        name: torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))
        for name in ("boxes_xyxy", "masks", "has_mask", "text_index", "has_embedding")
    }
    vectors = [sample.embeddings for sample in samples if sample.embeddings is not None]
    return RegionBatch(
        images=torch.from_numpy(np.stack([sample.image for sample in samples])),
        indices=torch.tensor([sample.index for sample in samples]),
        embeddings=torch.from_numpy(np.stack(vectors)) if vectors else None,
        names=tuple(sample.name for sample in samples),
        skipped=tuple(line for sample in samples for line in sample.skipped),
        **stacked,
    )
