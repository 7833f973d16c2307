"""Windowed ViT with convolutional cross-window blocks (paper section 3.2, appendix A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling.layers import MLP, ConvNorm, DropPath

NUM_CROSS_WINDOW_BLOCKS = 4


def partition_windows(tokens: Tensor, window_size: int) -> Tensor:
    """Cut a map into square windows.

    Args:
        tokens: (B,h,w,E), h and w multiples of the window size.
        window_size: cells on a side.

    Returns:
        (B * windows, window_size², E); windows and the tokens inside them are row-major.
    """
    batch, height, width, dim = tokens.shape
    rows, columns = height // window_size, width // window_size
    tokens = tokens.reshape(batch, rows, window_size, columns, window_size, dim)
    return tokens.transpose(2, 3).reshape(batch * rows * columns, window_size**2, dim)


def merge_windows(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Put windows back together; the inverse of `partition_windows`. Returns (B,h,w,E)."""
    rows, columns, dim = height // window_size, width // window_size, windows.shape[-1]
    windows = windows.reshape(-1, rows, columns, window_size, window_size, dim)
    return windows.transpose(2, 3).reshape(-1, height, width, dim)


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each pair of window positions, (w², w²) int64.

    Entry (q, k) is (dy + w - 1) * (2w - 1) + (dx + w - 1), with dy, dx = query minus key position.
    """
    axis = torch.arange(window_size)
    positions = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    offsets = positions[:, None] - positions[None] + window_size - 1
    return offsets[..., 0] * (2 * window_size - 1) + offsets[..., 1]


class RelativePositionBias(nn.Module):
    """Learned bias per head for every offset inside a window, looked up by index."""

    index: Tensor

    def __init__(self, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, (2 * window_size - 1) ** 2))
        self.register_buffer("index", relative_position_index(window_size), persistent=False)

    def forward(self) -> Tensor:
        """Returns (heads, w², w²)."""
        num_tokens = self.index.shape[0]
        return self.weight[:, self.index.reshape(-1)].reshape(-1, num_tokens, num_tokens)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside one window, with relative position bias."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.position_bias = RelativePositionBias(num_heads, window_size)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window (B * windows, w², E)."""
        batch, num_tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, num_tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (windows, heads, tokens, head_dim)
        bias = self.position_bias().to(query.dtype).unsqueeze(0)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(batch, num_tokens, dim))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block on windows (B * windows, w², E)."""

    def __init__(self, config: TAPConfig, drop_path: float) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.encoder_heads, config.window_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, config.encoder_mlp_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Transform windows; the shape stays."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CrossWindowBlock(nn.Module):
    """Bottleneck convolution with residual that carries information across windows, (B,E,h,w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim // 2, 1)
        self.conv2 = ConvNorm(dim // 2, dim // 2, 3)
        self.conv3 = ConvNorm(dim // 2, dim, 1)
        self.conv3.set_scale(0.0)  # each bottleneck starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map; the shape stays."""
        return x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class ImageEncoder(nn.Module):
    """Normalised pixels to one feature map of stride `patch_size`."""

    def __init__(self, config: TAPConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        dim, depth = config.encoder_dim, config.encoder_depth
        self.window_size = config.window_size
        self.patch_embed = nn.Conv2d(3, dim, config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Parameter(torch.empty(config.grid_size**2, dim).normal_(std=0.02))
        rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(EncoderBlock(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.cross_window = nn.ModuleList(
            CrossWindowBlock(dim) for _ in range(NUM_CROSS_WINDOW_BLOCKS)
        )
        self.neck = nn.Sequential(
            ConvNorm(dim, config.decoder_dim, 1),
            ConvNorm(config.decoder_dim, config.decoder_dim, 3),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixels: (B,3,S,S) normalised, in the channel order of the weights.

        Returns:
            image_features (B,C,h,w) with h = w = S / patch_size.
        """
        x = self.patch_embed(pixels).permute(0, 2, 3, 1)
        height, width = x.shape[1:3]
        x = partition_windows(x + self.pos_embed.reshape(height, width, -1), self.window_size)
        blocks_per_stage = len(self.blocks) // NUM_CROSS_WINDOW_BLOCKS
        for stage, cross_window in enumerate(self.cross_window):
            for block in self.blocks[stage * blocks_per_stage : (stage + 1) * blocks_per_stage]:
                x = block(x)
            if stage == NUM_CROSS_WINDOW_BLOCKS - 1:
                x = self.norm(x)  # before the last convolution, as published
            feature_map = merge_windows(x, self.window_size, height, width).permute(0, 3, 1, 2)
            feature_map = cross_window(feature_map)
            if stage < NUM_CROSS_WINDOW_BLOCKS - 1:
                x = partition_windows(feature_map.permute(0, 2, 3, 1), self.window_size)
        return self.neck(feature_map)
