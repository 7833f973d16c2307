"""Named regions as crops in memory, with the outlines that the view segmenter gives them.

Crops leave room around a region, so that views of it can be drawn again and again without its
photo, many at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.centred_views import CentredView
from tokenize_anything.config import PointLabel
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable
from tokenize_anything.image_transform import normalize_pixels, pixel_padding
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import count_regions_in_memory, decode_image, encode_photo
from tokenize_anything.training.view_variation import warp_matrices
from tokenize_anything.view_names import NAMING_ZOOM, wide_zoom
from tokenize_anything.view_outlines import OUTLINE_ZOOM

CROP_ZOOM = 0.5  # long side of a box as a share of its crop
OUTLINED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class RegionCrops:
    """S crops of c x c pixels, one region in each.

    images: (S,c,c,3) uint8 RGB, the box of the region in the middle.
    boxes_xyxy: (S,4) float32, pixels of the crop.
    masks: (S,c/2,c/2) bool, outlines; empty until `outline_crops` has drawn them.
    """

    images: Tensor
    boxes_xyxy: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class NamedViews(RegionCrops):
    """Crops of named regions.

    tokens: (S,C) float32, semantic tokens of the boxes on the whole photo; see `named_tokens`.
    has_mask: (S,) bool, whether the data has a mask of the region.
    names: (S,) int64, rows of the text table.
    photos: of the S regions.
    wide: crops for the wider views of the same regions, without outlines.
    """

    tokens: Tensor
    has_mask: Tensor
    names: Tensor
    photos: tuple[str, ...]
    wide: RegionCrops | None = None


@dataclass(frozen=True, eq=False)
class Looks:
    """R views of v x v pixels.

    images: (R,3,v,v) float32 RGB, 0 to 255.
    boxes, masks: (R,v,v) float32 in [0, 1].
    """

    images: Tensor
    boxes: Tensor
    masks: Tensor

    def mix(self, share: float, order: Tensor) -> Looks:
        """A share of each view (R,), the rest from the view `order` names (Zhang et al. 2018)."""
        values = (self.images, self.boxes, self.masks)
        return Looks(*(share * value + (1 - share) * value[order] for value in values))

    def paste(self, rectangle: Sequence[float], order: Tensor) -> Looks:
        """Each view (R,) with a rectangle of the view `order` names (Yun et al. 2019).

        Args:
            rectangle: left, top, right, bottom as shares of the side.
            order: (R,) rows.
        """
        side = self.images.shape[-1]
        x0, y0, x1, y1 = (round(side * share) for share in rectangle)
        is_pasted = torch.zeros(side, side, dtype=torch.bool)
        is_pasted[y0:y1, x0:x1] = True
        values = (self.images, self.boxes, self.masks)
        return Looks(*(torch.where(is_pasted, value[order], value) for value in values))

    def to(self, device: torch.device) -> Looks:
        """The same on another device."""
        return Looks(self.images.to(device), self.boxes.to(device), self.masks.to(device))


def crop_regions(
    records: Sequence[ImageRecord],
    texts: TextTable,
    names: Sequence[str],
    model: TAP,
    size: int,
    *,
    wide_size: int = 0,
) -> NamedViews:
    """Cut out all regions of photos whose text is one of the names; no outlines yet.

    Args:
        records: annotated photos.
        texts: the table their regions refer to.
        names: of concepts.
        model: whose pixel facts say what lies beyond a photo.
        size: c.
        wide_size: c of the crops for wider views, 0 for none.

    Raises:
        FileNotFoundError: a photo is missing.
        ValueError: it cannot be decoded or has another size than its annotation says; or no region
            has one of the names.
    """
    known = set(names)
    found = [(record, named_regions(record, texts, known)) for record in records]
    count = sum(len(regions) for _, regions in found)
    if not count:
        raise ValueError("data: expected regions with the name of a concept, got none")
    close, wide = _empty_crops(count, size), _empty_crops(count, wide_size)
    photos: list[str] = []
    padding = pixel_padding(model.config.pixels)
    for record, regions in tqdm(found, desc="crops", mininterval=5):
        rgb = read_image(record) if regions else np.zeros((1, 1, 3), np.uint8)
        for region in regions:
            box, row = region.box_xyxy, len(photos)
            around = CROP_ZOOM / NAMING_ZOOM * wide_zoom(box, rgb.shape[:2])
            for crops, side, zoom in ((close, size, CROP_ZOOM), (wide, wide_size, around)):
                if side:
                    view = CentredView.around(box, rgb.shape[:2], side, zoom)
                    crops.images[row] = torch.from_numpy(view.show(rgb, padding))
                    crops.boxes_xyxy[row] = torch.from_numpy(view.box_in_view(box))
            photos.append(record.path.name)
    regions = [region for _, some in found for region in some]
    return NamedViews(
        images=close.images,
        boxes_xyxy=close.boxes_xyxy,
        masks=close.masks,
        tokens=torch.zeros(count, model.config.decoder_dim),
        has_mask=torch.tensor([region.rle is not None for region in regions]),
        names=torch.tensor([region.text_index for region in regions]),
        photos=tuple(photos),
        wide=wide if wide_size else None,
    )


def _empty_crops(count: int, size: int) -> RegionCrops:
    return RegionCrops(
        images=torch.zeros(count, size, size, 3, dtype=torch.uint8),
        boxes_xyxy=torch.zeros(count, 4),
        masks=torch.zeros(count, size // 2, size // 2, dtype=torch.bool),
    )


@torch.no_grad()
def outline_crops(model: TAP, views: NamedViews, autocast: torch.autocast) -> NamedViews:
    """The same crops with outlines of their boxes, by the view segmenter of a model.

    Args:
        model: with a view segmenter.
        views: of its concepts.
        autocast: the precision to run in.
    """
    segmenter, side = model.view_segmenter, model.config.view_size
    assert segmenter is not None
    was_training = segmenter.training
    segmenter.eval()
    masks = torch.empty_like(views.masks)
    cells, crop_size = masks.shape[-1], views.images.shape[1]
    for start in tqdm(range(0, len(views), OUTLINED_AT_ONCE), desc="outlines", mininterval=5):
        rows = torch.arange(start, min(start + OUTLINED_AT_ONCE, len(views)))
        windows = choose_windows(views, torch.full((len(rows),), OUTLINE_ZOOM))
        looks = draw_looks(views, rows, windows, side)
        corners, sides = windows[:, :2], windows[:, 2]
        scale = (side / sides)[:, None, None]
        coords = (views.boxes_xyxy[rows].reshape(-1, 2, 2) - corners[:, None]) * scale
        labels = torch.tensor([[PointLabel.TOP_LEFT, PointLabel.BOTTOM_RIGHT]]).repeat(len(rows), 1)
        pixels = normalize_pixels(looks.images.movedim(1, -1).to(model.device), model.config.pixels)
        with autocast:
            logits = segmenter(pixels, coords.to(model.device), labels.to(model.device)).mask_logits
        probabilities = logits.float().sigmoid().cpu()[:, None]
        # back into the frame of the crop: the inverse of what `draw_looks` did
        theta = torch.zeros(len(rows), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = crop_size / sides
        theta[:, :, 2] = (crop_size - 2 * corners - sides[:, None]) / sides[:, None]
        grid = F.affine_grid(theta, [len(rows), 1, cells, cells], align_corners=False)
        found = F.grid_sample(probabilities, grid, align_corners=False)
        masks[rows] = found[:, 0] > 0.5
    segmenter.train(was_training)
    return dataclasses.replace(views, masks=masks)


@torch.no_grad()
def named_tokens(
    model: TAP, records: Sequence[ImageRecord], texts: TextTable, names: Sequence[str]
) -> Tensor:
    """Semantic tokens (S,C) float32 of the boxes that `crop_regions` cuts out, in its order.

    Each photo is looked at once, so that nothing of the namer is in them.

    Args:
        model: in evaluation mode.
        records: annotated photos.
        texts: the table their regions refer to.
        names: of concepts.

    Raises:
        FileNotFoundError, ValueError: a photo cannot be read.
    """
    chunk = count_regions_in_memory(model)
    parts = [torch.zeros(0)]
    for record in tqdm(records, desc="tokens", mininterval=5):
        regions = named_regions(record, texts, set(names))
        if regions:
            boxes = PointPrompts.from_boxes(np.array([region.box_xyxy for region in regions]))
            encoded = encode_photo(model, read_image(record))
            parts.append(decode_image(model, encoded, boxes, chunk=chunk).semantic_tokens.float())
    return torch.cat(parts[1:] or parts)


def choose_windows(views: RegionCrops, zoom: Tensor, shifts: Tensor | None = None) -> Tensor:
    """Windows in which the boxes of crops fill a share, moved inside where they would stick out.

    Args:
        views: crops, all of one size.
        zoom: (R,) long side of the box as a share of the window's side.
        shifts: (R,2) of the middle, as shares of the window's side.

    Returns:
        (R,3) left, top and side, pixels of the crop.
    """
    size = views.images.shape[1]
    sides = (size * CROP_ZOOM / zoom).clamp(max=size)[:, None]
    corners = (size - sides) / 2 + (0 if shifts is None else shifts * sides)
    return torch.cat([torch.minimum(corners, size - sides).clamp(min=0).expand(-1, 2), sides], 1)


def draw_looks(
    views: RegionCrops,
    rows: Tensor,
    windows: Tensor,
    view_size: int,
    warps: Mapping[str, Tensor] | None = None,
) -> Looks:
    """Views of windows of crops.

    Args:
        views: S crops.
        rows: (R,) of them.
        windows: (R,3) left, top and side, pixels of the crop.
        view_size: v.
        warps: (R,) each, about the middle of the window: "flip", 1 or -1; "turn", radians;
            "stretch", by which the width shown is multiplied and the height divided.
    """
    size, sides, ones = views.images.shape[1], windows[:, 2], torch.ones(len(rows))
    warps = warps or {}
    flip, stretch = warps.get("flip", ones), warps.get("stretch", ones)
    turn, share = warps.get("turn", 0 * ones), sides / size
    theta = F.pad(share[:, None, None] * warp_matrices(turn, stretch), (0, 1))
    theta[:, :, 0] *= flip[:, None]
    theta[:, :, 2] = (2 * windows[:, :2] + sides[:, None]) / size - 1
    grid = F.affine_grid(theta, [len(rows), 3, view_size, view_size], align_corners=False)
    images = views.images[rows].movedim(-1, 1).float()
    shown = F.grid_sample(images, grid, align_corners=False, padding_mode="border")
    masks = F.grid_sample(views.masks[rows].float()[:, None], grid, align_corners=False)
    places = (grid + 1) * (size / 2)  # of the pixels' centres, in the crop
    pixel = (sides / view_size)[:, None, None, None]
    low, high = views.boxes_xyxy[rows][:, None, None].split(2, dim=-1)
    covered = torch.minimum(places + pixel / 2, high) - torch.maximum(places - pixel / 2, low)
    return Looks(shown, (covered / pixel).clamp(0, 1).prod(dim=-1), masks[:, 0])


def named_regions(record: ImageRecord, texts: TextTable, names: set[str]) -> list[RegionAnnotation]:
    """Regions of a photo whose text is one of the names."""
    return [
        region
        for region in record.regions
        if not region.is_whole_image
        and region.text_index >= 0
        and texts.texts[region.text_index] in names
    ]
