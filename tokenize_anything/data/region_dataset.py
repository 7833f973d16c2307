"""Augmented training samples from annotated photos; all draws follow from (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from tokenize_anything.config import PixelConfig
from tokenize_anything.data.augment import (
    AugmentConfig,
    Crop,
    crop_image,
    crop_mask,
    draw_crop,
    jitter_colour,
)
from tokenize_anything.data.procedural_shapes import ShapeConfig, paint_shapes
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, RegionBatch, TextTable
from tokenize_anything.geometry import decode_rle, masks_to_boxes
from tokenize_anything.image_loading import load_image

MIN_VISIBLE = 0.4
MIN_VISIBLE_WHOLE_IMAGE = 0.9
MIN_BOX_SIDE = 3.0
MAX_CROPS = 10

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
    """

    regions_per_image: int = 8
    mask_stride: int = 2
    rarity_power: float = 0.3
    whole_image_weight: float = 0.1
    box_only_weight: float = 0.4
    shapes: ShapeConfig = field(default_factory=ShapeConfig)

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


@dataclass(eq=False)
class RegionDataset(Dataset[RegionSample]):
    """Photos with regions, cropped and coloured anew each epoch.

    Index with (epoch, image index), as `EpochSampler` yields them, so that a sample depends on
    nothing but the seed and its own place: any worker, any restart gives the same one.

    Args:
        records: annotated images.
        texts: the text table their regions refer to.
        image_size: S, a multiple of `sampling.mask_stride`.
        keep_images: keep decoded photos in memory, of each worker for itself.
    """

    records: Sequence[ImageRecord]
    texts: TextTable
    image_size: int
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampling: RegionSamplingConfig = field(default_factory=RegionSamplingConfig)
    pixels: PixelConfig = field(default_factory=PixelConfig)
    seed: int = 0
    keep_images: bool = False
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
            ValueError: the image cannot be decoded or has another size than its annotation says.
        """
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        image = self._read(index)
        crop, regions = self._draw_view(image, self.records[index].regions, rng)
        return self._make_sample(image, crop, self._choose(regions, rng), rng, index)

    def _draw_view(
        self, image: np.ndarray, regions: Sequence[RegionAnnotation], rng: np.random.Generator
    ) -> tuple[Crop, _View]:
        """A crop that shows some region, if one of a few draws does."""
        for attempt in range(MAX_CROPS):
            height, width = image.shape[:2]
            crop = draw_crop(rng, height, width, self.image_size, self.augment)
            visible = self._visible_regions(regions, crop)
            if visible or attempt == MAX_CROPS - 1:
                break
        return crop, visible

    def _make_sample(
        self, image: np.ndarray, crop: Crop, regions: _View, rng: np.random.Generator, index: int
    ) -> RegionSample:
        count, stride = self.sampling.regions_per_image, self.sampling.mask_stride
        size = self.image_size // stride
        everything = np.array([0, 0, self.image_size, self.image_size], dtype=np.float32)
        boxes = np.tile(everything, (count, 1))
        masks = np.zeros((count, size, size), dtype=bool)
        has_mask = np.zeros(count, dtype=bool)
        text_index = np.full(count, -1, dtype=np.int64)
        for slot, (region, box) in enumerate(regions):
            boxes[slot], text_index[slot] = box, region.text_index
            if region.rle is None:
                continue
            masks[slot] = crop_mask(decode_rle(region.rle), crop, self.image_size, size)
            has_mask[slot] = masks[slot].any()
            if has_mask[slot]:
                boxes[slot] = masks_to_boxes(masks[slot : slot + 1])[0] * stride
        if self.augment.colour:  # before the padding, whose colour is always the same
            image = jitter_colour(image, rng, self.augment.colour)
        square = crop_image(image, crop, self.image_size, self.pixels)
        if self.sampling.shapes.count:
            square = self._add_shapes(square, boxes, masks, has_mask, rng)
        return RegionSample(square, boxes, masks, has_mask, text_index, index)

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
        if region.text_index < 0:
            return weight
        return weight * float(self.texts.counts[region.text_index]) ** -self.sampling.rarity_power

    def _read(self, index: int) -> np.ndarray:
        if index in self._cache:
            return self._cache[index]
        image = read_image(self.records[index])
        if self.keep_images:
            self._cache[index] = image
        return image


def read_image(record: ImageRecord) -> np.ndarray:
    """The image of a record, (H,W,3) uint8 RGB.

    Raises:
        FileNotFoundError: the image is missing.
        ValueError: the image cannot be decoded or has another size than its annotation says.
    """
    image = load_image(record.path)
    if image.shape[:2] != (record.height, record.width):
        raise ValueError(
            f"image: {record.path} is {image.shape[:2]}, its annotation says "
            f"{(record.height, record.width)} (height, width)"
        )
    return image


def collate(samples: Sequence[RegionSample]) -> RegionBatch:
    """Stack samples along B."""
    return RegionBatch(
        images=torch.from_numpy(np.stack([sample.image for sample in samples])),
        boxes_xyxy=torch.from_numpy(np.stack([sample.boxes_xyxy for sample in samples])),
        masks=torch.from_numpy(np.stack([sample.masks for sample in samples])),
        has_mask=torch.from_numpy(np.stack([sample.has_mask for sample in samples])),
        text_index=torch.from_numpy(np.stack([sample.text_index for sample in samples])),
        indices=torch.tensor([sample.index for sample in samples]),
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) forever, each epoch in its own order; starts at any sample.

    Args:
        num_samples: size of the data set.
        seed: of the orders.
        start: how many samples were already consumed.
    """

    def __init__(self, num_samples: int, *, seed: int = 0, start: int = 0) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
        self.num_samples, self.seed, self.start = num_samples, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, skip = divmod(self.start, self.num_samples)
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
            for index in order[skip:]:
                yield epoch, int(index)
            epoch, skip = epoch + 1, 0
