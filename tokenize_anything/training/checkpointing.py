"""Everything a training run needs to go on as if it had not stopped."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn


class ModelAverage:
    """Exponential moving average of a model's parameters; buffers are copied.

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that early
    averages do not remember the initialisation.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average one step towards `model`."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages = [p for p in self.model.parameters() if p.is_floating_point()]
        sources = [p for p in model.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(averages, sources, 1.0 - decay)
        for average, source in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(source)


def save_training_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_training_state` wrote; tensors and plain values only, no code."""
    return torch.load(path, map_location="cpu", weights_only=True)
