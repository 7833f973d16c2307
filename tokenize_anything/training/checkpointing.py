"""Everything a training run needs to go on as if it had not stopped."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import uuid
from collections.abc import Sequence
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
        averages = [_local(parameter) for parameter in self.model.parameters()]
        sources = [_local(parameter) for parameter in model.parameters()]
        torch._foreach_lerp_(averages, sources, 1.0 - decay)
        for average, source in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(source)


def _local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter that may be spread over several."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def save_training_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state`, whole or not at all.

    Raises:
        OSError: the disk is full, or refuses to be written; an earlier state stays as it is.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_on_success(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        raise OSError(
            f"training state: {path} could not be written ({error}); free some space and start the "
            f"run again, it goes on from the state that was saved before"
        ) from error


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


def keep_copy(folder: str | Path, names: Sequence[str], step: int, keep_last: int) -> None:
    """Keep files of a run as they are now in `checkpoints/step_…`, and only the last few of those.

    Args:
        folder: of the run.
        names: of files in it that later ones replace; they are linked, so they take space once.
        step: names the copy; one of the same step is replaced.
        keep_last: how many copies stay; 0 keeps none.
    """
    copies = Path(folder) / "checkpoints"
    if keep_last:
        target = copies / f"step_{step:08d}"
        temporary = copies / f".{target.name}.{uuid.uuid4().hex}.tmp"
        temporary.mkdir(parents=True)
        try:
            for name in names:
                _link(Path(folder) / name, temporary / name)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    kept = sorted(copies.glob("step_*"))
    for old in kept[: max(0, len(kept) - keep_last)]:
        shutil.rmtree(old)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copy2(source, target)
