"""What batches of views have in common: tensors with a row for each view, and names of photos."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Base of batches whose fields are tensors (R,…) or tuples of names."""

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return type(self)(**(values | moved))

    @classmethod
    def join(cls, batches: Sequence[Self]) -> Self:
        """All rows of some batches, in order."""
        values: dict[str, Any] = {}
        for one in dataclasses.fields(cls):
            parts = [getattr(batch, one.name) for batch in batches]
            is_tensor = isinstance(parts[0], Tensor)
            values[one.name] = torch.cat(parts) if is_tensor else sum(parts, ())
        return cls(**values)
