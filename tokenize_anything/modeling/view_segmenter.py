"""A small convolutional network that outlines one prompted region in a view of a photo.

It is no part of the paper. Views in which a region has a known size make its outline a local
question, which convolutions learn from thousands of masks where a transformer wants millions. Its
form is that of a U-Net (Ronneberger et al. 2015) with residual blocks; prompts enter as maps beside
the pixels, as in interactive segmentation (Sofiiuk et al. 2022, "RITM", section 3.1).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_anything.config import PointLabel, TAPConfig
from tokenize_anything.modeling.layers import PredictionHead

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

    @classmethod
    def mean(cls, parts: Sequence[ViewOutputs]) -> ViewOutputs:
        """The mean of what was said about the same views several times."""
        stacked = {
            field.name: torch.stack([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(cls)
        }
        return cls(**{name: values.mean(dim=0) for name, values in stacked.items()})


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
    low, high = coords[:, 0, :, None], coords[:, min(1, coords.shape[1] - 1), :, None]
    covered = (torch.minimum(pixels + 1, high) - torch.maximum(pixels, low)).clamp(0, 1)
    box = covered[:, 1, :, None] * covered[:, 0, None, :] * is_box[:, None, None]
    return torch.stack([box, *clicks], dim=1)


def _conv(in_dim: int, out_dim: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_dim),
    )


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity (He et al. 2016)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(dim, dim), _conv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map (R,dim,y,x); the shape stays."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ViewSegmenter(nn.Module):
    """Pixels and prompt of each view to a mask, its IoU score and a semantic embedding."""

    def __init__(self, config: TAPConfig) -> None:
        super().__init__()
        width = config.view_dim
        dims = [width, 2 * width, 4 * width, 8 * width, 8 * width]  # at strides 2, 4, 8, 16, 32
        self.stem = _conv(3 + NUM_PROMPT_MAPS, width, stride=2)
        self.down = nn.ModuleList(_conv(a, b, stride=2) for a, b in itertools.pairwise(dims))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(dim) for _ in range(1 if level == 0 else 2)))
            for level, dim in enumerate(dims)
        )
        self.up = nn.ModuleList(_conv(a + b, a) for a, b in itertools.pairwise(dims))
        self.mask_head = nn.Conv2d(width, 1, 1)
        pooled = dims[2] + dims[3] + dims[4]
        self.iou_head = PredictionHead(pooled, HEAD_DIM, 1)
        self.semantic_head = PredictionHead(pooled, HEAD_DIM, config.semantic_dim)

    def forward(
        self, pixels: Tensor, coords_xy: Tensor, labels: Tensor, *, mirrored: bool = False
    ) -> ViewOutputs:
        """Outline one region in each view.

        Args:
            pixels: (R,3,v,v) normalised, v a multiple of 32.
            coords_xy: (R,N,2) pixels of the view.
            labels: (R,N) point labels 0..4.
            mirrored: look at everything flipped left to right, and flip the masks back.
        """
        mask_logits, features = self.describe(pixels, coords_xy, labels, mirrored=mirrored)
        return ViewOutputs(
            mask_logits=mask_logits,
            iou_scores=self.iou_head(features)[:, 0].float(),
            semantic_embeddings=self.semantic_head(features),
        )

    def describe(
        self, pixels: Tensor, coords_xy: Tensor, labels: Tensor, *, mirrored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (R,v/2,v/2), and the features (R,20*width) that the other heads read."""
        maps = draw_prompt_maps(coords_xy, labels, pixels.shape[-1]).to(pixels.dtype)
        x = torch.cat([pixels, 2 * maps - 1], dim=1)
        x = x.flip(-1) if mirrored else x
        x = F.relu(self.stem(x.contiguous(memory_format=torch.channels_last)))
        levels = []
        for level, block in enumerate(self.blocks):
            x = block(F.relu(self.down[level - 1](x)) if level else x)
            levels.append(x)
        for level in reversed(range(len(self.up))):
            larger = F.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = F.relu(self.up[level](torch.cat([levels[level], larger], dim=1)))
            levels[level] = x
        logits = self.mask_head(x)
        return (logits.flip(-1) if mirrored else logits)[:, 0], _pool(levels, logits)


def _pool(levels: list[Tensor], logits: Tensor) -> Tensor:
    """Means over the mask at strides 8 and 16, and over the whole view at 32: (R,20*width)."""
    mask = logits.detach().sigmoid()
    means = []
    for x in levels[2:4]:
        weights = F.adaptive_avg_pool2d(mask, x.shape[-1])
        total = weights.sum(dim=(2, 3)).clamp(min=1e-3)
        means.append((x * weights).sum(dim=(2, 3)) / total)
    return torch.cat([*means, levels[4].mean(dim=(2, 3))], dim=1)
