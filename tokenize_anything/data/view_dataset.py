"""Views around single regions, drawn anew each epoch, to train the network that outlines them.

A view is drawn as the predictor will draw it (see `zooming`): around a box, in which the region has
a known size; or around a click, in which it may have any size, even one beyond the view.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokenize_anything.config import PixelConfig
from tokenize_anything.data.augment import (
    AugmentConfig,
    Crop,
    crop_image,
    crop_mask,
    draw_log_uniform,
    draw_zoom,
    jitter_colour,
    place_window,
)
from tokenize_anything.data.region_dataset import decode_region, read_image, text_weight
from tokenize_anything.data.row_batches import RowBatch
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable
from tokenize_anything.geometry import innermost_point, masks_to_boxes, zoom_window


@dataclass(frozen=True, kw_only=True)
class ViewSamplingConfig:
    """Which views of a photo a step looks at.

    views_per_image: K, each of one region, drawn with replacement.
    box_probability: how often a view is drawn around the box of a region and not around a click.
    box_zoom_range: long side of the box as a share of the view's side, log-uniform.
    click_zoom_range: the same around a click; over 1 the region is larger than the view.
    innermost_probability: how often a click is the innermost pixel and not just any.
    rarity_power: a region is drawn in proportion to (how often its text occurs) ** -rarity_power.
    box_only_weight: weight of regions that have a box and a name but no mask.
    colour, flip: see `AugmentConfig`.
    """

    views_per_image: int = 2
    box_probability: float = 0.5
    box_zoom_range: tuple[float, float] = (0.4, 0.9)
    click_zoom_range: tuple[float, float] = (0.12, 1.5)
    innermost_probability: float = 0.5
    rarity_power: float = 0.2
    box_only_weight: float = 0.3
    colour: float = 0.3
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.views_per_image < 1:
            raise ValueError(f"views_per_image: expected at least 1, got {self.views_per_image}")
        if self.box_only_weight <= 0:
            raise ValueError(f"box_only_weight: expected more than 0, got {self.box_only_weight}")
        for name in ("box_probability", "innermost_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        low, high = self.click_zoom_range
        if not 0 < low <= high:
            raise ValueError(f"click_zoom_range: expected 0 < low <= high, got {(low, high)}")
        self.around_boxes()

    def around_boxes(self) -> AugmentConfig:
        """How the pixels of a view vary, and the size of boxes in it."""
        return AugmentConfig(
            flip=self.flip, colour=self.colour, anchored=True, zoom_range=self.box_zoom_range
        )


@dataclass(frozen=True, eq=False)
class ViewBatch(RowBatch):
    """R views of v×v pixels, one region in each, in the frame of the view.

    images: (R,v,v,3) uint8 RGB.
    boxes_xyxy: (R,4) float32, of what the view shows of the region.
    clicks_xy: (R,2) float32, a pixel of the region; meaningless where `has_mask` is False.
    is_box: (R,) bool, whether the view was drawn around the box.
    masks: (R,v,v) bool, all False where `has_mask` is False.
    has_mask: (R,) bool.
    areas: (R,) float32, of the whole region, also beyond the view, in pixels of the view.
    text_index: (R,) int64 row of the text table, -1 for none.
    names: of the photos, for error messages.
    """

    images: Tensor
    boxes_xyxy: Tensor
    clicks_xy: Tensor
    is_box: Tensor
    masks: Tensor
    has_mask: Tensor
    areas: Tensor
    text_index: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(eq=False)
class ViewDataset(Dataset[ViewBatch]):
    """K views of a photo; index with (epoch, image index), as `EpochSampler` yields them.

    A sample depends on the seed and its own place alone.

    Args:
        records: annotated photos, each with a region that is not the whole photo.
        texts: the text table their regions refer to.
        view_size: v.
        sampling: of the draws.
        pixels: whose mean fills what lies beyond the photo.
        seed: of the draws.
    """

    records: Sequence[ImageRecord]
    texts: TextTable
    view_size: int
    sampling: ViewSamplingConfig = field(default_factory=ViewSamplingConfig)
    pixels: PixelConfig = field(default_factory=PixelConfig)
    seed: int = 0
    _cache: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> ViewBatch:
        """Draw the views of one photo.

        Raises:
            FileNotFoundError: the photo is missing.
            ValueError: it cannot be decoded or has another size than its annotation says, or a
                mask is empty or damaged; the message names it.
        """
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        record = self.records[index]
        if index not in self._cache:
            self._cache[index] = read_image(record)
        regions = [region for region in record.regions if not region.is_whole_image]
        weights = np.array([self._weight(region) for region in regions])
        count = self.sampling.views_per_image
        picks = rng.choice(len(regions), count, p=weights / weights.sum())
        views = [self._draw_view(self._cache[index], record, regions[i], rng) for i in picks]
        return ViewBatch.join(views)

    def _weight(self, region: RegionAnnotation) -> float:
        weight = self.sampling.box_only_weight if region.rle is None else 1.0
        return weight * text_weight(region, self.texts, self.sampling.rarity_power)

    def _draw_view(
        self,
        image: np.ndarray,
        record: ImageRecord,
        region: RegionAnnotation,
        rng: np.random.Generator,
    ) -> ViewBatch:
        mask = self._mask(record, region)
        click = _draw_click(mask, self.sampling, rng) if mask is not None else (0, 0)
        is_box = mask is None or bool(rng.random() < self.sampling.box_probability)
        crop = self._draw_crop(np.array(region.box_xyxy), click, image.shape[:2], is_box, rng)
        box = crop.boxes_to_model(np.array([region.box_xyxy], dtype=np.float64))[0]
        inside = np.zeros((self.view_size,) * 2, dtype=bool)
        area = 0.0
        if mask is not None:
            inside = crop_mask(mask, crop, self.view_size, self.view_size)
            area = float(mask.sum() * np.prod(crop.scale_xy))
        if inside.any():
            box = masks_to_boxes(inside[None])[0]
        middle = np.array([[*click, *click]], dtype=np.float64) + 0.5
        image = jitter_colour(image_window(image, crop), rng, self.sampling.colour)
        whole = dataclasses.replace(crop, source_xyxy=(0, 0, image.shape[1], image.shape[0]))
        return ViewBatch(
            images=torch.from_numpy(crop_image(image, whole, self.view_size, self.pixels))[None],
            boxes_xyxy=torch.from_numpy(box.astype(np.float32))[None],
            clicks_xy=torch.from_numpy(crop.boxes_to_model(middle)[:, :2].astype(np.float32)),
            is_box=torch.tensor([is_box]),
            masks=torch.from_numpy(inside)[None],
            has_mask=torch.tensor([bool(inside.any())]),
            areas=torch.tensor([area]),
            text_index=torch.tensor([region.text_index]),
            names=(record.path.name,),
        )

    def _draw_crop(
        self,
        box_xyxy: np.ndarray,
        click_xy: tuple[int, int],
        image_hw: tuple[int, ...],
        is_box: bool,
        rng: np.random.Generator,
    ) -> Crop:
        config, size = self.sampling.around_boxes(), (image_hw[0], image_hw[1])
        if is_box:
            return draw_zoom(rng, box_xyxy, size, self.view_size, config)
        share = draw_log_uniform(rng, self.sampling.click_zoom_range)
        side = min(float(max(box_xyxy[2:] - box_xyxy[:2])) / share, float(max(size)))
        window = zoom_window(np.array(click_xy), side, size)
        return place_window(rng, window, self.view_size, config)

    def _mask(self, record: ImageRecord, region: RegionAnnotation) -> np.ndarray | None:
        if region.rle is None:
            return None
        try:
            return decode_region(region, record)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{record.path}: region {region.region_id}: {error}") from error


def image_window(image: np.ndarray, crop: Crop) -> np.ndarray:
    """The part (h,w,3) of an image that a crop shows, a copy."""
    x0, y0, x1, y1 = crop.source_xyxy
    return np.ascontiguousarray(image[y0:y1, x0:x1])


def _draw_click(
    mask: np.ndarray, sampling: ViewSamplingConfig, rng: np.random.Generator
) -> tuple[int, int]:
    """A pixel (x, y) of a mask."""
    if rng.random() < sampling.innermost_probability:
        return innermost_point(mask)
    pixels = np.flatnonzero(mask)
    row, column = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
    return column, row
