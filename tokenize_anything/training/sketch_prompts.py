"""Lines drawn across regions in views, as people draw them: quickly, and partly beside the region.

They become clicks as sketches do (`PointPrompts.from_sketch`), so that a network learns which of
the clicks of a sketch to believe.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenize_anything.prompts import NUM_SKETCH_POINTS

LENGTH = (0.3, 1.2)  # of what a line spans of each side of the box
MAX_SHIFT = 0.12  # of its middle, of the box's sides
MAX_BEND = 0.25  # amplitude of the sine that bends it to either side, of its length
PERIODS = (0.2, 1.2)  # of that sine
MIN_INSIDE = 0.3  # share of the clicks in the region; lines with fewer are no sketches of it


def draw_sketches(
    boxes_xyxy: Tensor, masks: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A line across each region, and nine clicks at even steps along it.

    Args:
        boxes_xyxy: (R,4) pixels of the view.
        masks: (R,v,v) bool truth.
        generator: of the draws, on the device of the masks.

    Returns:
        clicks (R,9,2), pixels of the view and inside of it; and which of the lines (R,) show their
        region well enough.
    """
    count, side, device = len(masks), masks.shape[-1], masks.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        noise = torch.rand(count, *shape, generator=generator, device=device)
        return low + (high - low) * noise

    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    middle = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 - 0.5
    middle = middle + uniform(-MAX_SHIFT, MAX_SHIFT, 2) * sides
    along = uniform(*LENGTH, 2) * sides
    along[:, 1] *= torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    across = torch.stack([-along[:, 1], along[:, 0]], dim=1)  # as long as the line
    steps = torch.arange(1, NUM_SKETCH_POINTS + 1, device=device) / (NUM_SKETCH_POINTS + 1)
    phase = 2 * math.pi * uniform(*PERIODS, 1) * steps
    bend = uniform(-MAX_BEND, MAX_BEND, 1) * torch.sin(phase)
    clicks = (
        middle[:, None]
        + (steps - 0.5)[:, None] * along[:, None]
        + bend[..., None] * across[:, None]
    ).clamp(0, side - 1)
    x, y = clicks.round().long().unbind(dim=-1)
    inside = masks.flatten(1).gather(1, y * side + x).float().mean(dim=1)
    return clicks, inside >= MIN_INSIDE
