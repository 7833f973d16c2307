"""Training states of two runs, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.tiny_runs import embed_by_hash
from tokenize_anything.training.checkpointing import load_training_state
from tokenize_anything.training.part_training import PartTrainer


def assert_equal_states(left: Any, right: Any, place: str = "state") -> None:
    """Bit for bit, through dicts and lists."""
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert list(left) == list(right), place
        for key in left:
            assert_equal_states(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal_states(a, b, f"{place}[{index}]")
    elif isinstance(left, Tensor):
        assert torch.equal(left, right), place
    else:
        assert left == right, place


class KilledError(Exception):
    pass


def assert_resumes(kind: type[PartTrainer[Any, Any]], whole: Any, parts: Any) -> None:
    """A run that dies at step 4 of 6 and goes on ends as one that does not, log and all."""
    kind(whole, embed_by_hash).run()

    class DiesAtStep4(kind):  # type: ignore[misc, valid-type]
        def train_step(self, batch: Any) -> dict[str, float]:
            if self.step == 4:
                raise KilledError
            row: dict[str, float] = super().train_step(batch)
            return row

    with pytest.raises(KilledError):
        DiesAtStep4(parts, embed_by_hash).run()
    resumed = kind(parts, embed_by_hash)
    torch.rand(3)
    resumed.run()
    folders = [Path(config.output_folder) for config in (whole, parts)]
    states = [load_training_state(folder / "training_state.pt") for folder in folders]
    assert states[0]["step"] == 6
    assert_equal_states(states[0], states[1])
    logs = [(folder / "log.csv").read_bytes() for folder in folders]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 1 + 6
