"""The processes of one evaluation: which of them this is, and waiting for the others."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

_PATIENCE = datetime.timedelta(days=7)  # one process may have far more to do than the others


@dataclass(frozen=True)
class ProcessShare:
    """Number `rank` of `world` processes that share the work; alone by default."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> ProcessShare:
        """What `torchrun` says in RANK and WORLD_SIZE; alone without it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that joins the results and prints."""
        return self.rank == 0

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Hold a process group while the block runs; one that is there already is used."""
        is_ours = self.world > 1 and not dist.is_initialized()
        if is_ours:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield
        finally:
            if is_ours:
                dist.destroy_process_group()

    def wait_for_others(self) -> None:
        """Return when all processes got here; call it inside `connected`."""
        if self.world > 1:
            dist.barrier()
