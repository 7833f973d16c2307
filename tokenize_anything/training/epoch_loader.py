"""Batches of a data set of views, photo by photo, in another order each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from tokenize_anything.data.epoch_sampler import EpochSampler
from tokenize_anything.data.row_batches import RowBatch

BatchT = TypeVar("BatchT", bound=RowBatch)


def load_epochs(
    dataset: Dataset[BatchT],
    kind: type[BatchT],
    *,
    batch_size: int,
    seed: int,
    step: int,
    num_workers: int,
) -> Iterator[BatchT]:
    """Yield batches without end.

    Args:
        dataset: of photos, indexed as `EpochSampler` says.
        kind: of what it holds.
        batch_size: photos of a step.
        seed: of the orders.
        step: the first one.
        num_workers: processes that prepare photos.
    """
    count = len(dataset)  # type: ignore[arg-type]
    loader: DataLoader[BatchT] = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(count, seed=seed, start=step * batch_size),
        collate_fn=kind.join,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator(),
    )
    return iter(loader)
