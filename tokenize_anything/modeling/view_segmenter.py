"""A small convolutional network that outlines one prompted region in a view of a photo.

It is no part of the paper. Views in which a region has a known size make its outline a local
question, which convolutions learn from thousands of masks where a transformer wants millions. Its
form is that of a U-Net (Ronneberger et al. 2015) on a `ViewEncoder`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenize_anything.config import PointLabel, TAPConfig
from tokenize_anything.modeling.layers import PredictionHead
from tokenize_anything.modeling.view_encoder import (
    ViewEncoder,
    add_mirrored,
    conv_norm,
    cover_boxes,
    decode_levels,
    mean_of_both,
    pool_levels,
)

NUM_PROMPT_MAPS = 3
CLICK_RADIUS = 3.0  # standard deviation of the spot that a click becomes, pixels
HEAD_DIM = 256


@dataclass(frozen=True)
class ViewOutputs:
    """What the segmenter says about R views, one region in each.

    mask_logits: (R,v/2,v/2), covering the view.
    iou_scores: (R,) float32 estimates of the IoU with the whole region, also beyond the view.
    semantic_embeddings: (R,D) in the concept space.
    """

    mask_logits: Tensor
    iou_scores: Tensor
    semantic_embeddings: Tensor

    def mean_of_both(self) -> ViewOutputs:
        """The mean of what was said about R/2 views and, behind them, the same mirrored."""
        return ViewOutputs(
            mask_logits=mean_of_both(self.mask_logits, flip=True),
            iou_scores=mean_of_both(self.iou_scores),
            semantic_embeddings=mean_of_both(self.semantic_embeddings),
        )


def draw_prompt_maps(coords_xy: Tensor, labels: Tensor, side: int) -> Tensor:
    """Prompts as pictures: inside of the box, foreground clicks, background clicks.

    A pixel of the first map holds how much of it the box covers; of the others a Gaussian spot for
    each click, the strongest where they overlap.

    Args:
        coords_xy: (R,N,2) pixels of the view.
        labels: (R,N) point labels 0..4; the first two may be box corners.
        side: v, of the view.

    Returns:
        (R,3,v,v) float32 in [0, 1].
    """
    pixels = torch.arange(side, device=coords_xy.device, dtype=torch.float32)
    coords = coords_xy.float()
    squares = (coords[..., None] - pixels) ** 2  # (R,N,2,v)
    spots = torch.exp(squares / (-2 * CLICK_RADIUS**2))
    spots = spots[:, :, 1, :, None] * spots[:, :, 0, None, :]  # (R,N,v,v)
    clicks = [
        (spots * (labels == label)[..., None, None]).amax(dim=1)
        for label in (PointLabel.FOREGROUND, PointLabel.BACKGROUND)
    ]
    is_box = labels[:, 0] == PointLabel.TOP_LEFT
    corners = torch.cat([coords[:, 0], coords[:, min(1, coords.shape[1] - 1)]], dim=1)
    box = cover_boxes(corners, side) * is_box[:, None, None]
    return torch.stack([box, *clicks], dim=1)


class ViewSegmenter(ViewEncoder):
    """Pixels and prompt of each view to a mask, its IoU score and a semantic embedding."""

    def __init__(self, config: TAPConfig) -> None:
        super().__init__(config.view_dim, NUM_PROMPT_MAPS + int(config.view_corrects))
        self.corrects = config.view_corrects
        self.up = nn.ModuleList(conv_norm(a + b, a) for a, b in itertools.pairwise(self.dims))
        self.mask_head = nn.Conv2d(config.view_dim, 1, 1)
        self.iou_head = PredictionHead(self.pooled_dim, HEAD_DIM, 1)
        self.semantic_head = PredictionHead(self.pooled_dim, HEAD_DIM, config.semantic_dim)

    def forward(
        self,
        pixels: Tensor,
        coords_xy: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
        *,
        twice: bool = False,
    ) -> ViewOutputs:
        """Outline one region in each view.

        Args:
            pixels: (R,3,v,v) normalised, v a multiple of 32.
            coords_xy: (R,N,2) pixels of the view.
            labels: (R,N) point labels 0..4.
            masks: (R,v,v) in [0, 1], what the clicks correct, for a network that `corrects`; empty
                ones, or None, where there is nothing to correct.
            twice: look at everything flipped left to right too, and take the mean of both.
        """
        maps = draw_prompt_maps(coords_xy, labels, pixels.shape[-1])
        if self.corrects:
            masks = torch.zeros_like(maps[:, 0]) if masks is None else masks.to(maps.dtype)
            maps = torch.cat([maps, masks[:, None]], dim=1)
        if twice:
            pixels, maps = add_mirrored(pixels), add_mirrored(maps)
        levels = decode_levels(self.up, self.encode(pixels, maps))
        logits = self.mask_head(levels[0])[:, 0]
        features = pool_levels(levels, logits.detach().sigmoid())
        outputs = ViewOutputs(
            mask_logits=logits,
            iou_scores=self.iou_head(features)[:, 0].float(),
            semantic_embeddings=self.semantic_head(features),
        )
        return outputs.mean_of_both() if twice else outputs
