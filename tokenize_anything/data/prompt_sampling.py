"""Training prompts from masks: a box or a click first, then corrections (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenize_anything.config import PointLabel

PADDING_COORD = -0.5

# One for all regions; or one for each image, whose regions follow each other. The second way, what
# an image's regions draw depends on its own generator alone, whatever else is in the batch.
Generators = torch.Generator | Sequence[torch.Generator]


@dataclass(frozen=True, kw_only=True)
class PromptSamplingConfig:
    """How prompts are drawn.

    box_probability: how often a prompt starts from its box instead of a click.
    box_noise: standard deviation of the outward corner shift, as a fraction of the box's side.
    max_box_shift: largest corner shift, model pixels.
    max_corrections: most corrective clicks of the second stage.
    interactive_probability: how often the second stage corrects the first prediction; otherwise
        it clicks 2 to max_corrections + 1 points of the true mask.
    """

    box_probability: float = 0.5
    box_noise: float = 0.1
    max_box_shift: float = 20.0
    max_corrections: int = 8
    interactive_probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("box_probability", "interactive_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        for name, least in (("box_noise", 0), ("max_box_shift", 0), ("max_corrections", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class SampledPrompts:
    """Prompts for R regions: coords_xy (R,N,2) model pixels, labels (R,N), is_box (R,)."""

    coords_xy: Tensor
    labels: Tensor
    is_box: Tensor


def sample_mask_pixels(masks: Tensor, count: int, generator: Generators) -> Tensor:
    """Draw pixels of each mask, uniformly and without replacement where there are enough.

    A mask with fewer pixels gives each of them before any a second time; the positions of a mask
    without pixels mean nothing.

    Args:
        masks: (R,m,m) bool.
        count: how many.
        generator: one or more, on the device of the masks.

    Returns:
        (R,count) int64 flat row-major positions.
    """
    flat = masks.flatten(1)
    noise = _noise(torch.rand, flat, generator, torch.float32)
    noise = torch.where(flat, noise, -1.0)
    top = noise.topk(min(count, flat.shape[1]), dim=1).indices
    available = flat.sum(dim=1, keepdim=True).clamp(min=1)
    order = torch.arange(count, device=flat.device).expand(len(flat), -1) % available
    return top.gather(1, order)


def pixels_to_coords(positions: Tensor, mask_size: int, image_size: int) -> Tensor:
    """Flat positions (R,n) in an m×m mask to (R,n,2) x, y pixels of the S×S model frame."""
    ratio = image_size / mask_size
    xy = torch.stack([positions % mask_size, positions // mask_size], dim=-1)
    return (xy + 0.5) * ratio - 0.5


def jitter_boxes(boxes_xyxy: Tensor, config: PromptSamplingConfig, generator: Generators) -> Tensor:
    """Move the corners of (R,4) boxes outward by Gaussian noise cut at zero; never inward."""
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).repeat(1, 2)
    noise = _noise(torch.randn, boxes_xyxy, generator, boxes_xyxy.dtype)
    limit = config.max_box_shift
    shift = (noise * sides * config.box_noise).clamp(-limit, limit)
    return boxes_xyxy + torch.cat([shift[:, :2].clamp(max=0), shift[:, 2:].clamp(min=0)], dim=1)


@dataclass(frozen=True)
class PromptSampler:
    """Draws both stages of prompts for R regions with boxes (R,4) and masks (R,m,m).

    Boxes and the coordinates of prompts are pixels of the S×S model frame, S = image_size; the
    masks cover that frame. Generators live on the device of the masks.
    """

    image_size: int
    config: PromptSamplingConfig

    def draw_is_box(self, boxes_xyxy: Tensor, generator: Generators) -> Tensor:
        """Which regions (R,4) start from their box: (R,) bool, a coin for each."""
        coins = _noise(torch.rand, boxes_xyxy[:, 0], generator, torch.float32)
        return coins < self.config.box_probability

    def first(
        self, boxes_xyxy: Tensor, masks: Tensor, is_box: Tensor, generator: Generators
    ) -> SampledPrompts:
        """Two points per region: jittered corners where `is_box`, else a click and a pad.

        A region without mask pixels always starts from its box.
        """
        is_box = is_box | ~masks.flatten(1).any(dim=1)
        corners = jitter_boxes(boxes_xyxy, self.config, generator).reshape(-1, 2, 2)
        clicks = self._draw_clicks(masks, 1, generator)
        clicks = torch.cat([clicks, torch.full_like(clicks, PADDING_COORD)], dim=1)
        coords = torch.where(is_box[:, None, None], corners, clicks)
        box_labels = torch.tensor(
            [PointLabel.TOP_LEFT, PointLabel.BOTTOM_RIGHT], device=masks.device
        )
        click_labels = torch.tensor(
            [PointLabel.FOREGROUND, PointLabel.PADDING], device=masks.device
        )
        labels = torch.where(is_box[:, None], box_labels, click_labels)
        return SampledPrompts(coords, labels, is_box)

    def corrections(
        self,
        first: SampledPrompts,
        predicted: Tensor,
        masks: Tensor,
        generator: Generators,
        count: int | None = None,
    ) -> SampledPrompts:
        """The first prompt plus 1 to 8 clicks where `predicted` and `masks` differ.

        The count is the same for all regions. A box keeps its corners in front; a click has the new
        ones behind it and its pad last.

        Args:
            first: what the prediction answered.
            predicted: (R,m,m) bool masks of the first stage.
            masks: (R,m,m) bool truth. Where both agree everywhere, the clicks fall on the truth;
                where both are empty, they are pads.
            generator: of the draws.
            count: how many clicks; None draws it, from the first generator.
        """
        if count is None:
            count = self._draw_count(1, self.config.max_corrections, generator)
        clicks, labels = self.draw_errors(predicted, masks, generator, count)
        return self._append(first, clicks, labels)

    def draw_errors(
        self, predicted: Tensor, masks: Tensor, generator: Generators, count: int
    ) -> tuple[Tensor, Tensor]:
        """The clicks (R,count,2) of `corrections` alone, and their labels (R,count)."""
        errors = predicted ^ masks
        has_error = errors.flatten(1).any(dim=1)
        source = torch.where(has_error[:, None, None], errors, masks)
        positions = sample_mask_pixels(source, count, generator)
        clicks = pixels_to_coords(positions, masks.shape[-1], self.image_size)
        labels = masks.flatten(1).gather(1, positions).long()
        return _pad_rows(~source.flatten(1).any(dim=1), clicks, labels)

    def clicks(
        self, masks: Tensor, generator: Generators, count: int | None = None
    ) -> SampledPrompts:
        """2 to 9 clicks on each true mask and a pad, whatever the first stage was.

        The count is the same for all regions; None draws it, from the first generator.
        """
        if count is None:
            count = self._draw_count(2, self.config.max_corrections + 1, generator)
        coords = self._draw_clicks(masks, count, generator)
        labels = torch.full(coords.shape[:2], int(PointLabel.FOREGROUND), device=masks.device)
        is_empty = ~masks.flatten(1).any(dim=1)
        coords, labels = _pad_rows(is_empty, coords, labels)
        coords = torch.cat([coords, torch.full_like(coords[:, :1], PADDING_COORD)], dim=1)
        pad = torch.full_like(labels[:, :1], int(PointLabel.PADDING))
        return SampledPrompts(coords, torch.cat([labels, pad], dim=1), torch.zeros_like(is_empty))

    def _draw_clicks(self, masks: Tensor, count: int, generator: Generators) -> Tensor:
        positions = sample_mask_pixels(masks, count, generator)
        return pixels_to_coords(positions, masks.shape[-1], self.image_size)

    def _append(self, first: SampledPrompts, clicks: Tensor, labels: Tensor) -> SampledPrompts:
        """Corners then clicks; or first click, clicks, and the pad last."""
        coords = torch.cat([first.coords_xy, clicks], dim=1)
        all_labels = torch.cat([first.labels, labels], dim=1)
        order = torch.arange(coords.shape[1], device=coords.device)
        pad_last = torch.cat([order[:1], order[2:], order[1:2]])
        order = torch.where(first.is_box[:, None], order, pad_last)
        coords = coords.gather(1, order[..., None].expand(-1, -1, 2))
        return SampledPrompts(coords, all_labels.gather(1, order), first.is_box)

    def _draw_count(self, low: int, high: int, generator: Generators) -> int:
        first = generator if isinstance(generator, torch.Generator) else generator[0]
        return int(torch.randint(low, high + 1, (1,), generator=first, device=first.device))


def _noise(draw: Any, like: Tensor, generator: Generators, dtype: torch.dtype) -> Tensor:
    """Random numbers of the shape of `like` (R,…); each generator fills the rows of its image."""
    options = {"device": like.device, "dtype": dtype}
    if isinstance(generator, torch.Generator):
        return draw(like.shape, generator=generator, **options)
    rows = (len(like) // len(generator), *like.shape[1:])
    return torch.cat([draw(rows, generator=one, **options) for one in generator])


def _pad_rows(is_padding: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turn all points of the marked rows (R,) into pads."""
    coords = torch.where(is_padding[:, None, None], PADDING_COORD, coords)
    return coords, torch.where(is_padding[:, None], int(PointLabel.PADDING), labels)
