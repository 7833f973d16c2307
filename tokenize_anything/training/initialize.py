"""Start a model from the weights of another one."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.build import load_model
from tokenize_anything.modeling import TAP

POSITION_TABLE = "image_encoder.pos_embed"


def resize_position_table(table: Tensor, grid_size: int) -> Tensor:
    """Resize a (g², E) row-major position table to (grid_size², E), bicubic."""
    side = round(len(table) ** 0.5)
    if side == grid_size:
        return table
    grid = table.unflatten(0, (side, side)).permute(2, 0, 1).unsqueeze(0).float()
    grid = F.interpolate(grid, size=(grid_size,) * 2, mode="bicubic", align_corners=False)
    return grid[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)


def initialize_from(model: TAP, path: str | Path) -> None:
    """Copy weights from a model file; only the image size may differ.

    Raises:
        RuntimeError: a weight is missing or has another shape.
    """
    state = load_model(path).state_dict()
    state[POSITION_TABLE] = resize_position_table(state[POSITION_TABLE], model.config.grid_size)
    model.load_state_dict(state)
