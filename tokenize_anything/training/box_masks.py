"""Masks of boxes made larger or smaller by one number, which becomes a part of the weights.

Focal and dice loss do not ask for the threshold at which the mean IoU is best. Mask logits are the
product of upscaled channels with weights of a slot (paper section 3.2), so where some direction of
the channels is constant, a step of the weights along it moves the threshold, for one slot alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.image_transform import prepare_images
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts

NEAR_EDGE = 4.0  # logits; what is surely inside or outside does not count


@torch.no_grad()
def collect_edge_channels(model: TAP, records: Sequence[ImageRecord]) -> Tensor:
    """Upscaled channels (N,C/8) float32 of the pixels near the edges that boxes got.

    Args:
        model: in evaluation mode.
        records: photos; the boxes of each are prompts on the whole photo.

    Raises:
        FileNotFoundError, ValueError: a photo cannot be read.
    """
    decoder, found = model.image_decoder, []
    for record in tqdm(records, desc="edges", mininterval=5):
        pixels, frames = prepare_images([read_image(record)], model.config)
        context = model.prepare_regions(model.encode_images(pixels.to(model.device, model.dtype)))
        boxes = PointPrompts.from_boxes(np.stack([region.box_xyxy for region in record.regions]))
        coords = torch.from_numpy(frames[0].to_model_frame(boxes.coords_xy)).to(model.device)
        labels = torch.from_numpy(boxes.labels.copy()).to(model.device)
        attended = model.attend_prompts(context, coords.unsqueeze(0), labels.unsqueeze(0))
        channels = decoder.upscale(attended.features).flatten(1, 3)
        weights = decoder.mask_heads[0](attended.mask_tokens[:, 0])
        logits = (channels @ weights.unsqueeze(-1)).squeeze(-1)
        found.append(channels[logits.abs() < NEAR_EDGE].float().cpu())
    return torch.cat(found)


def constant_direction(channels: Tensor) -> tuple[Tensor, float]:
    """The weights whose product with channels is nearest to 1, by least squares.

    Args:
        channels: (N,C), N at least C.

    Returns:
        weights (C,), and the share of 1 they explain: 1 where the product is 1 everywhere.

    Raises:
        ValueError: fewer rows than channels.
    """
    if channels.ndim != 2 or len(channels) < channels.shape[1]:
        raise ValueError(
            f"channels: expected (N,C) with at least as many rows as channels, got "
            f"{tuple(channels.shape)}"
        )
    ones = torch.ones(len(channels), 1, dtype=torch.float64)
    weights = torch.linalg.lstsq(channels.double(), ones).solution
    share = 1 - (channels.double() @ weights - 1).square().mean().item()
    return weights[:, 0].float(), share


@torch.no_grad()
def shift_box_masks(model: TAP, direction: Tensor, offset: float) -> None:
    """Add `offset` to the mask logits of slot 0, where `direction` is constant; in place.

    Args:
        model: changed.
        direction: (C/8,), see `constant_direction`.
        offset: in logits; larger masks from above 0, smaller ones from below.
    """
    bias = model.get_parameter("image_decoder.mask_heads.0.layers.2.bias")  # of the last layer
    bias.add_((offset * direction).to(bias.device, bias.dtype))
