"""Random Fourier position codes for points and for the feature grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class PositionEncoding(nn.Module):
    """Gaussian Fourier features of normalised (x, y) positions (Tancik et al. 2020; SAM).

    The random matrix is a buffer that is never trained. It stays in float32 whatever the dtype of
    the model, because rounding it moves every position code.
    """

    coord_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("coord_matrix", torch.randn(2, dim // 2))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PositionEncoding:
        exact = self.coord_matrix
        super()._apply(fn, recurse)
        if self.coord_matrix.dtype != exact.dtype:
            self.coord_matrix = exact.to(device=self.coord_matrix.device)
        return self

    def forward(self, positions_xy: Tensor) -> Tensor:
        """Encode positions.

        Args:
            positions_xy: (…,2), x then y, as fractions of the image in [0, 1].

        Returns:
            (…,C) float32: sines, then cosines.
        """
        x, y = ((2.0 * positions_xy.float() - 1.0) * (2.0 * math.pi)).split(1, dim=-1)
        # Written out, because a matrix product would be rounded to bfloat16 under autocast.
        angles = x * self.coord_matrix[0] + y * self.coord_matrix[1]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def encode_grid(self, height: int, width: int) -> Tensor:
        """Encode the centres of a grid's cells. Returns (C,h,w) float32."""
        device = self.coord_matrix.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        return self(torch.stack([grid_x, grid_y], dim=-1)).permute(2, 0, 1)
