"""A small convolutional network that answers clicks, which do not say how large their region is.

It is no part of the paper. It sees windows around the click, each half as large as the one before,
all at once: what a thing is shows in the large ones, where it ends in the small ones. Each window
gets a mask and an estimate of how well that covers the region; the highest estimate counts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling.layers import MLP, PredictionHead
from tokenize_anything.modeling.view_encoder import (
    ViewEncoder,
    conv_norm,
    decode_levels,
    pool_levels,
)
from tokenize_anything.modeling.view_segmenter import (
    HEAD_DIM,
    NUM_PROMPT_MAPS,
    draw_prompt_maps,
)

NUM_WINDOWS = 5
SHARED_LEVELS = (1, 2, 3)  # where maps go from window to window


@dataclass(frozen=True)
class ClickOutputs:
    """What the segmenter says about R prompts in P windows each, the largest first.

    mask_logits: (R,P,v/2,v/2), covering each window.
    iou_scores: (R,P) float32 estimates of the IoU with the whole region, also beyond the window.
    """

    mask_logits: Tensor
    iou_scores: Tensor


class WindowExchange(nn.Module):
    """What windows tell those of twice and of half their size; nothing before training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inward, self.outward = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (R*P,dim,y,y), y a multiple of 4; the shape stays."""
        maps, quarter = x.unflatten(0, (-1, NUM_WINDOWS)), x.shape[-1] // 4
        middle = slice(quarter, x.shape[-1] - quarter)
        larger = F.interpolate(
            maps[:, :-1, :, middle, middle].flatten(0, 1), scale_factor=2.0, mode="bilinear"
        )
        smaller = F.avg_pool2d(maps[:, 1:].flatten(0, 1), 2)
        inward = self.inward(larger).unflatten(0, (-1, NUM_WINDOWS - 1))
        outward = self.outward(smaller).unflatten(0, (-1, NUM_WINDOWS - 1))
        told = F.pad(inward, (0,) * 6 + (1, 0)) + F.pad(outward, (quarter,) * 4 + (0, 0, 0, 1))
        return x + told.flatten(0, 1)


class ClickSegmenter(ViewEncoder):
    """Pixels and clicks in concentric windows to a mask and a score for each window."""

    def __init__(self, config: TAPConfig) -> None:
        super().__init__(config.view_dim, NUM_PROMPT_MAPS)
        self.exchanges = nn.ModuleDict(
            {str(level): WindowExchange(self.dims[level]) for level in SHARED_LEVELS}
        )
        self.mixer = MLP(NUM_WINDOWS * self.dims[-1], 2 * HEAD_DIM)
        for parameter in self.mixer.fc2.parameters():
            nn.init.zeros_(parameter)
        self.up = nn.ModuleList(conv_norm(a + b, a) for a, b in itertools.pairwise(self.dims))
        self.mask_head = nn.Conv2d(config.view_dim, 1, 1)
        self.iou_head = PredictionHead(self.pooled_dim, HEAD_DIM, 1)

    def share(self, level: int, x: Tensor) -> Tensor:
        """A level's map with what the maps of the other windows say."""
        if str(level) in self.exchanges:
            return self.exchanges[str(level)](x)
        if level < len(self.dims) - 1:
            return x
        means = x.mean(dim=(2, 3)).unflatten(0, (-1, NUM_WINDOWS))
        told = self.mixer(means.flatten(1)).unflatten(1, (NUM_WINDOWS, -1))
        return x + told.flatten(0, 1)[..., None, None]

    def forward(self, pixels: Tensor, coords_xy: Tensor, labels: Tensor) -> ClickOutputs:
        """Answer prompts of clicks.

        Args:
            pixels: (R,P,3,v,v) normalised, v a multiple of 64; P windows with one middle, each half
                as large as the one before.
            coords_xy: (R,P,N,2) pixels of each window, also beyond it.
            labels: (R,N) point labels; no box.
        """
        side = pixels.shape[-1]
        all_labels = labels[:, None].expand(-1, NUM_WINDOWS, -1).flatten(0, 1)
        pixels = pixels.flatten(0, 1)
        maps = draw_prompt_maps(coords_xy.flatten(0, 1), all_labels, side)
        levels = decode_levels(self.up, self.encode(pixels, maps))
        logits = self.mask_head(levels[0])[:, 0]
        scores = self.iou_head(pool_levels(levels, logits.detach().sigmoid()))[:, 0].float()
        return ClickOutputs(
            logits.unflatten(0, (-1, NUM_WINDOWS)), scores.unflatten(0, (-1, NUM_WINDOWS))
        )
