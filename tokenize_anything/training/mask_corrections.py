"""Rounds of clicks that correct a network's own masks, each of which it is shown.

So Sofiiuk et al. 2022 ("Reviving iterative training with mask guidance", section 3.2) teach
networks to correct masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.config import PointLabel
from tokenize_anything.corrective_clicks import next_click
from tokenize_anything.data.prompt_sampling import PADDING_COORD, PromptSampler, SampledPrompts

MAX_ROUNDS = 4
BLOT_PROBABILITY = 0.25  # that a first mask is an ellipse around the click and not the network's
BLOT_SIZES = (0.1, 1.2)  # of its diameters, of the view's side
WORST_PROBABILITY = 0.5  # that a click falls into the middle of what is most wrong
FORGET_PROBABILITY = 0.15  # that a network is not shown the mask it corrects

# Prompts of views and the masks (R,v,v) to be corrected, to logits (R,v/2,v/2)
Segment = Callable[[SampledPrompts, Tensor], Tensor]


def correct_masks(
    segment: Segment,
    first: SampledPrompts,
    truths: Tensor,
    generator: torch.Generator,
    *,
    sampler: PromptSampler,
    num_clicks: int,
) -> tuple[SampledPrompts, Tensor]:
    """Answer prompts, click where the answers are wrong, and so on.

    Args:
        segment: the network; no gradient is taken.
        first: (R,2) boxes, or a click and a pad each.
        truths: (R,v,v) bool.
        generator: of the draws, on the device of the masks.
        sampler: of the clicks.
        num_clicks: of all rounds together.

    Returns:
        the prompts with these clicks behind them, and the masks (R,v,v) float32 that the last of
        them correct; empty ones where the network is to answer without.
    """
    prompts, shown = first, torch.zeros(truths.shape, device=truths.device)
    rounds = min(MAX_ROUNDS, num_clicks)
    for number in range(rounds):
        with torch.no_grad():
            logits = segment(prompts, shown).float()
        found = F.interpolate(logits[:, None], size=truths.shape[-2:], mode="bilinear")[:, 0] > 0
        if number == 0:
            found = blot_masks(found, first, generator)
        count = math.ceil((num_clicks - _num_clicks(prompts, first)) / (rounds - number))
        clicks, labels = sampler.draw_errors(found, truths, generator, count)
        move_to_worst(clicks, labels, found, truths, generator)
        prompts = SampledPrompts(
            torch.cat([prompts.coords_xy, clicks], dim=1),
            torch.cat([prompts.labels, labels], dim=1),
            first.is_box,
        )
        shown = found.float()
    is_shown = _coins(shown, generator) >= FORGET_PROBABILITY
    return prompts, shown * is_shown[:, None, None]


def _num_clicks(prompts: SampledPrompts, first: SampledPrompts) -> int:
    return prompts.coords_xy.shape[1] - first.coords_xy.shape[1]


def blot_masks(found: Tensor, first: SampledPrompts, generator: torch.Generator) -> Tensor:
    """Put ellipses of any size in the place of some masks (R,v,v) that answer a click."""
    side, rows = found.shape[-1], (len(found), 2)
    low, high = math.log(BLOT_SIZES[0]), math.log(BLOT_SIZES[1])
    noise = torch.rand(rows, generator=generator, device=found.device)
    radii = side / 2 * (low + (high - low) * noise).exp()
    shift = torch.rand(rows, generator=generator, device=found.device) - 0.5
    middle = first.coords_xy[:, 0] + shift * radii
    pixels = torch.arange(side, device=found.device)
    offsets = ((pixels - middle[..., None]) / radii[..., None]) ** 2  # (R,2,v)
    ellipses = offsets[:, 1, :, None] + offsets[:, 0, None, :] < 1
    is_blotted = (_coins(found, generator) < BLOT_PROBABILITY) & ~first.is_box
    return torch.where(is_blotted[:, None, None], ellipses, found)


def move_to_worst(
    clicks: Tensor, labels: Tensor, found: Tensor, truths: Tensor, generator: torch.Generator
) -> None:
    """Move the first click of some prompts to where `next_click` has it.

    Args:
        clicks: (R,n,2) pixels of the view, changed in place.
        labels: (R,n), changed in place.
        found: (R,v,v) bool, what the clicks correct.
        truths: (R,v,v) bool.
        generator: of the draws.
    """
    is_moved = _coins(found, generator) < WORST_PROBABILITY
    is_moved &= (found ^ truths).flatten(1).any(dim=1)
    for row in torch.nonzero(is_moved).flatten().tolist():
        xy, label = next_click(found[row].cpu().numpy(), truths[row].cpu().numpy())
        clicks[row, 0], labels[row, 0] = torch.tensor(xy, dtype=clicks.dtype), label


def _coins(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(like), generator=generator, device=like.device)


def choose_rows(prompts: SampledPrompts, rows: Tensor) -> SampledPrompts:
    """Some of R prompts, by (R,) bool."""
    return SampledPrompts(prompts.coords_xy[rows], prompts.labels[rows], prompts.is_box[rows])


def replace_rows(prompts: SampledPrompts, rows: Tensor, others: SampledPrompts) -> SampledPrompts:
    """Others, of no fewer points, in the place of the rows (R,) bool; pads behind the rest."""
    missing = others.coords_xy.shape[1] - prompts.coords_xy.shape[1]
    coords = F.pad(prompts.coords_xy, (0, 0, 0, missing), value=PADDING_COORD)
    labels = F.pad(prompts.labels, (0, missing), value=int(PointLabel.PADDING))
    coords[rows], labels[rows] = others.coords_xy, others.labels
    is_box = prompts.is_box.clone()
    is_box[rows] = others.is_box
    return SampledPrompts(coords, labels, is_box)
