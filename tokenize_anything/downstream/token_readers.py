"""Stored tokens for other programs: NumPy arrays, and samples for PyTorch.

A store is a Lance data set, so Arrow, pandas and Hugging Face read it as it is; docs/tokens.md has
a line for each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokenize_anything.data.lance_files import damage_reported
from tokenize_anything.data.region_rows import RegionRows, to_numpy_column
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.token_rows import (
    MASK_TOKEN,
    SEMANTIC_EMBEDDING,
    SEMANTIC_TOKEN,
    require_token_columns,
)


class TokenSample(NamedTuple):
    """One region, or a batch of them once `default_collate` has stacked them.

    semantic_token, mask_token: (C,) float32; semantic_embedding: (D,) float32.
    concept, caption: empty where there is none.
    source: the path of its photo under the folder of all photos.
    """

    region_id: int
    semantic_token: Tensor
    semantic_embedding: Tensor
    mask_token: Tensor
    concept: str
    caption: str
    source: str


class TokenDataset(Dataset[TokenSample]):
    """All regions of a token store, in its order, for a PyTorch `DataLoader`.

    With worker processes the loader needs `multiprocessing_context="forkserver"`.

    Args:
        path: of the store, a folder or a URL.

    Raises:
        FileNotFoundError, ImportError, ValueError: no token store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.store = _open(path)
        self.region_ids = read_column(path, "region_id")

    def __len__(self) -> int:
        return len(self.region_ids)

    def __getitem__(self, index: int) -> TokenSample:
        """One region.

        Raises:
            IndexError: no such row.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[TokenSample]:
        """Several regions with one read, as the `DataLoader` asks for them."""
        rows = self.store.read(self.region_ids[np.asarray(indices, np.int64)])
        return [_to_sample(rows, row) for row in range(len(rows))]


def read_column(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """One column of all regions of a token store, in its order.

    Args:
        path: of the store, a folder or a URL.
        name: `semantic_token`, `mask_token` (R,C), `semantic_embedding` (R,D), `region_id`,
            `iou_score`, `concept_score`, `caption_score` (R,), `box_xyxy` (R,4) in pixels, right
            and bottom exclusive, or a column of texts (R,).

    Raises:
        FileNotFoundError, ImportError, ValueError: no token store, or no such column.
        OSError: files of the store are damaged or missing.
    """
    store = _open(path)
    if name not in store.dataset.schema.names:
        raise ValueError(f"name: expected one of {store.dataset.schema.names}, got {name!r}")
    with damage_reported(store.path):
        return to_numpy_column(store.dataset.to_table(columns=[name]), name)


def _open(path: str | os.PathLike[str]) -> RegionStore:
    store = RegionStore.open(path)
    require_token_columns(store.columns, store.path)
    return store


def _to_sample(rows: RegionRows, row: int) -> TokenSample:
    def vector(name: str) -> Tensor:
        return torch.from_numpy(rows.vectors[name][row].astype(np.float32))

    return TokenSample(
        region_id=int(rows.region_ids[row]),
        semantic_token=vector(SEMANTIC_TOKEN),
        semantic_embedding=vector(SEMANTIC_EMBEDDING),
        mask_token=vector(MASK_TOKEN),
        concept=rows.texts["concept"][row],
        caption=rows.texts["caption"][row],
        source=rows.texts["source"][row],
    )
