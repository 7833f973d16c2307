"""Everything a training run needs to go on as if it had not stopped."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from tokenize_anything.checkpoints import replace_on_success

ModelT = TypeVar("ModelT", bound=nn.Module)


class ModelAverage(Generic[ModelT]):
    """Exponential moving average of a model's parameters; buffers are copied.

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that early
    averages do not remember the initialisation.
    """

    def __init__(self, model: ModelT, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: ModelT) -> None:
        """Move the average one step towards `model`."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages: list[Tensor] = list(self.model.parameters())
        sources: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(averages, sources, 1.0 - decay)
        for average, source in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(source)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of torch's random numbers on the CPU and on `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `random_state` gave; a state of another kind of device is left aside."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def save_training_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_on_success(path) as temporary:
        torch.save(state, temporary)


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_training_state` wrote, to the CPU; tensors and plain values only, no code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or a pickle that asks for more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"training state: no file at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"training state: {path} is damaged or was not written by this library; delete it to "
            f"start the run anew ({error})"
        ) from error
