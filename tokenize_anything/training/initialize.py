"""Start a model from the weights of another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import check_state
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


def initialize_from(model: TAP, path: str | Path, *, fresh: Sequence[str] = ()) -> None:
    """Copy the weights of a model file or known model into `model`; only the image size may differ.

    Args:
        model: changed in place.
        path: of a model file, or the name of a known model.
        fresh: parts of the model, such as "image_decoder", that keep what they have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights are missing or have other shapes (all are listed), or they expect other
            pixels.
    """
    source = load_model(path, device="cpu", dtype="float32")
    if source.config.pixels != model.config.pixels:
        raise ValueError(
            f"init_from: {path} expects {source.config.pixels}, the configuration says "
            f"{model.config.pixels}"
        )
    state = source.state_dict()
    state[POSITION_TABLE] = resize_position_table(state[POSITION_TABLE], model.config.grid_size)
    kept = {
        name: value for name, value in model.state_dict().items() if name.partition(".")[0] in fresh
    }
    state |= kept
    check_state(model.state_dict(), state, where=f"init_from: {path}")
    model.load_state_dict(state)


def sine_position_table(grid_size: int, dim: int) -> Tensor:
    """Sines and cosines of column and row, (grid_size², dim) float32 (He et al. 2022, MAE).

    The image decoder carves masks out of encoder features, so these must say where they are. An
    encoder that starts from MAE weights knows; one that starts from noise learns it very slowly.

    Raises:
        ValueError: dim is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim: expected a multiple of 4, got {dim}")
    frequencies = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(grid_size)[:, None] * frequencies  # (g, dim/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (g, dim/2)
    columns = axis.expand(grid_size, -1, -1)
    rows = axis[:, None].expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


@torch.no_grad()
def add_sine_positions(model: TAP, scale: float) -> None:
    """Add `scale` times the sine table to the encoder's position table, in place."""
    config = model.config
    table = sine_position_table(config.grid_size, config.encoder_dim)
    model.image_encoder.pos_embed.add_(table.to(model.device, model.dtype), alpha=scale)
