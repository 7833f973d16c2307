"""Which image comes when: endless epochs, the same on every machine and after every restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

# Images of so many shards are mixed, so that few files are read at a time and neighbours part.
MIXED_SHARDS = 16


@dataclass(frozen=True)
class BatchShare:
    """The part of each batch that one of several processes computes.

    batch_size: images of a batch, over all processes.
    rank: number of this process, from 0.
    world: how many processes there are; a divisor of `batch_size`.
    """

    batch_size: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            raise ValueError(
                f"batch_size: expected a multiple of the {self.world} processes, got "
                f"{self.batch_size}"
            )

    @property
    def positions(self) -> range:
        """Positions in the batch that are this process's."""
        count = self.batch_size // self.world
        return range(self.rank * count, (self.rank + 1) * count)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) forever, each epoch in its own order; starts at any sample.

    Args:
        num_samples: size of the data set.
        seed: of the orders.
        start: how many samples were already consumed, by all processes together.
        share: yields only this part of each batch; None yields everything.
        shard_sizes: images per shard, where neighbours in the data set lie in one file: shards are
            then shuffled, and the images of `MIXED_SHARDS` shards at a time among themselves.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        start: int = 0,
        share: BatchShare | None = None,
        shard_sizes: Sequence[int] = (),
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
        if shard_sizes and sum(shard_sizes) != num_samples:
            raise ValueError(
                f"shard_sizes: expected a sum of {num_samples}, got {sum(shard_sizes)}"
            )
        self.num_samples, self.seed, self.start = num_samples, seed, start
        self.share = share or BatchShare(1)
        self.shard_sizes = tuple(shard_sizes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, skip = divmod(self.start, self.num_samples)
        position = self.start
        while True:
            for index in self._order(epoch)[skip:].tolist():
                if position % self.share.batch_size in self.share.positions:
                    yield epoch, index
                position += 1
            epoch, skip = epoch + 1, 0

    def _order(self, epoch: int) -> np.ndarray:
        """All indices (num_samples,) in the order of an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        if not self.shard_sizes:
            return rng.permutation(self.num_samples)
        shards = np.split(np.arange(self.num_samples), np.cumsum(self.shard_sizes)[:-1])
        order = rng.permutation(len(shards))
        groups = [order[i : i + MIXED_SHARDS] for i in range(0, len(order), MIXED_SHARDS)]
        mixed = [rng.permutation(np.concatenate([shards[s] for s in group])) for group in groups]
        return np.concatenate(mixed)
