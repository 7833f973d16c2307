"""Training samples around clicks: concentric windows of photos, one region in each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokenize_anything.click_windows import list_windows
from tokenize_anything.config import PixelConfig
from tokenize_anything.data.augment import draw_log_uniform, jitter_colour
from tokenize_anything.data.region_dataset import decode_region, read_image, text_weight
from tokenize_anything.data.row_batches import RowBatch
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable
from tokenize_anything.geometry import innermost_point
from tokenize_anything.image_transform import pixel_padding

HOME_SLACK = 0.95  # a region of which so much, from the click on, lies in a window is at home there


@dataclass(frozen=True, kw_only=True)
class ClickSamplingConfig:
    """Which clicks on a photo a step looks at.

    clicks_per_image: K, each on one region, drawn with replacement.
    scale_range: of the sides of all windows, log-uniform.
    innermost_probability: how often a click is the innermost pixel and not just any.
    rarity_power: a region is drawn in proportion to (how often its text occurs) ** -rarity_power.
    colour, flip: see `AugmentConfig`.
    """

    clicks_per_image: int = 4
    scale_range: tuple[float, float] = (0.8, 1.6)
    innermost_probability: float = 0.5
    rarity_power: float = 0.2
    colour: float = 0.3
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.clicks_per_image < 1:
            raise ValueError(f"clicks_per_image: expected at least 1, got {self.clicks_per_image}")
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range: expected 0 < low <= high, got {(low, high)}")
        for name in ("innermost_probability", "colour", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class ClickBatch(RowBatch):
    """R clicks in P windows of v×v pixels each, the largest window first.

    images: (R,P,v,v,3) uint8 RGB.
    masks: (R,P,v,v) uint8, how much of each pixel the region covers, of 255.
    areas: (R,P) float32, of the whole region, also beyond the window, in pixels of the window.
    home: (R,) int64, the smallest window that holds nearly all of the region.
    names: of the photos, for error messages.
    """

    images: Tensor
    masks: Tensor
    areas: Tensor
    home: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(eq=False)
class ClickDataset(Dataset[ClickBatch]):
    """K clicks on a photo; index with (epoch, image index), as `EpochSampler` yields them.

    A sample depends on the seed and its own place alone. Photos and masks stay in memory.

    Args:
        records: annotated photos, each with a masked region that is not the whole photo.
        texts: the text table their regions refer to.
        side: v.
        sampling: of the draws.
        pixels: whose mean fills what lies beyond the photo.
        seed: of the draws.
    """

    records: Sequence[ImageRecord]
    texts: TextTable
    side: int
    sampling: ClickSamplingConfig = field(default_factory=ClickSamplingConfig)
    pixels: PixelConfig = field(default_factory=PixelConfig)
    seed: int = 0
    _photos: dict[Path, np.ndarray] = field(default_factory=dict, init=False, repr=False)
    _masks: dict[tuple[Path, int], _KnownMask] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> ClickBatch:
        """Draw the clicks on one photo.

        Raises:
            FileNotFoundError: the photo is missing.
            ValueError: it cannot be decoded or has another size than its annotation says, or a
                mask is damaged; the message names it.
        """
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        record = self.records[index]
        if record.path not in self._photos:
            self._photos[record.path] = read_image(record)
        regions = masked_regions(record)
        power = self.sampling.rarity_power
        weights = np.array([text_weight(region, self.texts, power) for region in regions])
        picks = rng.choice(len(regions), self.sampling.clicks_per_image, p=weights / weights.sum())
        return ClickBatch.join([self._draw(record, int(pick), rng) for pick in picks])

    def _draw(self, record: ImageRecord, pick: int, rng: np.random.Generator) -> ClickBatch:
        image, key = self._photos[record.path], (record.path, pick)
        if key not in self._masks:
            self._masks[key] = _KnownMask.of(_decode(record, masked_regions(record)[pick]))
        known = self._masks[key]
        mask = known.in_photo(image.shape[:2])
        click = known.innermost_xy
        if rng.random() >= self.sampling.innermost_probability:
            click = known.draw_pixel(rng)
        scale = draw_log_uniform(rng, self.sampling.scale_range)
        windows = list_windows(click, image.shape[:2], self.side, scale)
        padding = pixel_padding(self.pixels)
        shown = np.stack([window.show(image, padding) for window in windows])
        inside = np.stack([window.show(mask) for window in windows])
        varied = jitter_colour(shown.reshape(-1, self.side, 3), rng, self.sampling.colour)
        shown = varied.reshape(shown.shape)
        if rng.random() < self.sampling.flip:
            shown, inside = shown[:, :, ::-1], inside[:, :, ::-1]
        scales = np.array([window.scale for window in windows])
        reach = known.reach(click) * scales * HOME_SLACK
        home = max(0, int((reach <= self.side / 2).sum()) - 1)
        return ClickBatch(
            images=torch.from_numpy(np.ascontiguousarray(shown))[None],
            masks=torch.from_numpy(np.ascontiguousarray(inside))[None],
            areas=torch.from_numpy((known.crop.sum() * scales**2).astype(np.float32))[None],
            home=torch.tensor([home]),
            names=(record.path.name,),
        )


@dataclass(frozen=True, eq=False)
class _KnownMask:
    """A mask as the crop (h,w) bool that holds it, its corner, and its innermost pixel."""

    crop: np.ndarray
    corner_xy: tuple[int, int]
    innermost_xy: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray) -> _KnownMask:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y0, x0 = int(rows[0]), int(columns[0])
        crop = mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1].copy()
        return cls(crop, (x0, y0), innermost_point(mask))

    def in_photo(self, image_hw: tuple[int, ...]) -> np.ndarray:
        """(H,W) bool."""
        mask = np.zeros(image_hw, bool)
        (x0, y0), (height, width) = self.corner_xy, self.crop.shape
        mask[y0 : y0 + height, x0 : x0 + width] = self.crop
        return mask

    def draw_pixel(self, rng: np.random.Generator) -> tuple[int, int]:
        """Any pixel (x, y)."""
        pixels = np.flatnonzero(self.crop)
        row, column = divmod(int(pixels[rng.integers(len(pixels))]), self.crop.shape[1])
        return column + self.corner_xy[0], row + self.corner_xy[1]

    def reach(self, click_xy: tuple[int, int]) -> float:
        """How far the mask's box reaches from a pixel, along either axis, original pixels."""
        low = np.array(self.corner_xy)
        high = low + self.crop.shape[::-1]
        middle = np.array(click_xy) + 0.5
        return float(max((middle - low).max(), (high - middle).max()))


def repeat_crowded(records: Sequence[ImageRecord], clicks_per_image: int) -> list[ImageRecord]:
    """Photos with masks, again for every K of their regions, so that each region has its turn."""
    return [
        record
        for record in records
        for _ in range(math.ceil(len(masked_regions(record)) / clicks_per_image))
    ]


def masked_regions(record: ImageRecord) -> list[RegionAnnotation]:
    """Regions of a photo with a mask that are not the whole photo."""
    return [r for r in record.regions if r.rle is not None and not r.is_whole_image]


def _decode(record: ImageRecord, region: RegionAnnotation) -> np.ndarray:
    try:
        return decode_region(region, record)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{record.path}: region {region.region_id}: {error}") from error
