"""Feature maps of a view around one prompted region, for the networks that look at such views.

They are no part of the paper. Residual blocks (He et al. 2016) at halving sizes; prompts enter as
maps beside the pixels, as in interactive segmentation (Sofiiuk et al. 2022, "RITM", section 3.1).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(in_dim: int, out_dim: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution and BatchNorm; the map's size is divided by the stride."""
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_dim),
    )


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_norm(dim, dim), conv_norm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map (R,dim,y,x); the shape stays."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ViewEncoder(nn.Module):
    """Pixels of views, and maps beside them, to features at strides 2, 4, 8, 16 and 32.

    Args:
        width: channels at stride 2; 2, 4, 8 and 8 times as many follow.
        num_maps: M, of the maps beside the pixels.
    """

    def __init__(self, width: int, num_maps: int) -> None:
        super().__init__()
        self.dims = dims = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.stem = conv_norm(3 + num_maps, width, stride=2)
        self.down = nn.ModuleList(conv_norm(a, b, stride=2) for a, b in itertools.pairwise(dims))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(dim) for _ in range(1 if level == 0 else 2)))
            for level, dim in enumerate(dims)
        )

    @property
    def pooled_dim(self) -> int:
        """Length of what `pool_levels` makes of the features: 20 times the width."""
        return sum(self.dims[2:])

    def encode(self, pixels: Tensor, maps: Tensor) -> list[Tensor]:
        """Features of views, finest first.

        Args:
            pixels: (R,3,v,v) normalised, v a multiple of 32.
            maps: (R,M,v,v) in [0, 1].
        """
        x = torch.cat([pixels, (2 * maps - 1).to(pixels.dtype)], dim=1)
        x = F.relu(self.stem(x.contiguous(memory_format=torch.channels_last)))
        levels = []
        for level, block in enumerate(self.blocks):
            x = block(F.relu(self.down[level - 1](x)) if level else x)
            levels.append(x := self.share(level, x))
        return levels

    def share(self, level: int, x: Tensor) -> Tensor:
        """What the next level, and who asked, get of a level's map: all as it is."""
        return x


def decode_levels(up: nn.ModuleList, levels: list[Tensor]) -> list[Tensor]:
    """The way back up of a U-Net (Ronneberger et al. 2015).

    Args:
        up: at each level but the last, from the sum of both dimensions to the finer one's.
        levels: see `ViewEncoder.encode`.

    Returns:
        The features again, each with what the coarser ones know.
    """
    decoded = [levels[-1]]
    for level in reversed(range(len(up))):
        larger = F.interpolate(decoded[0], scale_factor=2.0, mode="bilinear")
        decoded.insert(0, F.relu(up[level](torch.cat([levels[level], larger], dim=1))))
    return decoded


def add_mirrored(values: Tensor) -> Tensor:
    """Values (R,...,v) of views and, behind them, the same flipped left to right, (2R,...,v)."""
    return torch.cat([values, values.flip(-1)])


def mean_of_both(values: Tensor, *, flip: bool = False) -> Tensor:
    """Mean (R,...) of what was said about views and about the same mirrored, (2R,...).

    Args:
        values: the mirrored ones behind the others.
        flip: whether they are pictures, to be flipped back.
    """
    plain, mirrored = values.chunk(2)
    return (plain + (mirrored.flip(-1) if flip else mirrored)) / 2


def cover_boxes(boxes_xyxy: Tensor, side: int) -> Tensor:
    """How much of each pixel of a view a box covers.

    Args:
        boxes_xyxy: (R,4) pixels of the view.
        side: v, of the view.

    Returns:
        (R,v,v) float32 in [0, 1].
    """
    pixels = torch.arange(side, device=boxes_xyxy.device, dtype=torch.float32)
    low, high = boxes_xyxy.float()[:, :2, None], boxes_xyxy.float()[:, 2:, None]
    covered = (torch.minimum(pixels + 1, high) - torch.maximum(pixels, low)).clamp(0, 1)
    return covered[:, 1, :, None] * covered[:, 0, None, :]


def pool_levels(levels: list[Tensor], masks: Tensor) -> Tensor:
    """Means over the mask at strides 8 and 16, and over the whole view at 32.

    Args:
        levels: features of views (R,d,y,x), see `ViewEncoder.encode`.
        masks: (R,m,m) in [0, 1], covering the views, m at least the side of each map.

    Returns:
        (R,20*width).
    """
    means = []
    for x in levels[2:4]:
        weights = F.adaptive_avg_pool2d(masks.unsqueeze(1), x.shape[-1]).to(x.dtype)
        total = weights.sum(dim=(2, 3)).clamp(min=1e-3)
        means.append((x * weights).sum(dim=(2, 3)) / total)
    return torch.cat([*means, levels[4].mean(dim=(2, 3))], dim=1)
