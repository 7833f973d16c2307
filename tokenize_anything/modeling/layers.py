"""Small blocks shared by the encoders and decoders."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with an activation between them: `fc1`, activation, `fc2`."""

    def __init__(self, dim: int, hidden_dim: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Transform vectors (…,dim); the shape stays."""
        return self.fc2(self.activation(self.fc1(x)))


class PredictionHead(nn.Module):
    """Three linear layers with ReLU between them, from a token to a prediction."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        dims = (dim, hidden_dim, hidden_dim, out_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Predict from tokens (…,dim): (…,out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DropPath(nn.Module):
    """Drop whole samples of a residual branch during training (stochastic depth).

    Each element of the leading axis is zeroed with probability `p` and the kept ones are scaled by
    1 / (1 - p).
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of a branch (Z,…); the identity in evaluation mode."""
        if self.p == 0.0 or not self.training:
            return x
        keep = 1.0 - self.p
        mask = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * mask.bernoulli_(keep).div_(keep)


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm; keeps the map's size."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int) -> None:
        super().__init__(
            nn.Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_dim),
        )

    def set_scale(self, scale: float) -> None:
        """Set the scale of the norm for all channels."""
        nn.init.constant_(self.get_submodule("1").get_parameter("weight"), scale)
