"""LMDB and zarr for bench_region_store."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import zarr
from bench_store_lance import DIM, Batch, Lance
from bench_store_parquet import Parquet


class Lmdb:
    """One transaction a batch; the id is the key."""

    def __init__(self, path: Path) -> None:
        self.environment = lmdb.open(str(path), map_size=2**36, sync=False)

    def append(self, batch: Batch) -> None:
        """One commit."""
        with self.environment.begin(write=True) as transaction:
            for i, box, rle, embedding in zip(*batch, strict=True):
                value = embedding.tobytes() + box.tobytes() + bytes(rle)
                transaction.put(int(i).to_bytes(8, "big"), value)

    def finish(self) -> None:
        """Nothing to do."""

    def ids(self) -> np.ndarray:
        """Open for reading; all ids, in any order."""
        with self.environment.begin() as transaction:
            keys = transaction.cursor().iternext(values=False)
            return np.array([int.from_bytes(key, "big") for key in keys])

    def read(self, ids: np.ndarray) -> np.ndarray:
        """(n,DIM) embeddings of ids, in their order."""
        with self.environment.begin(buffers=True) as transaction:
            values = (transaction.get(int(i).to_bytes(8, "big"))[: 2 * DIM] for i in ids)
            return np.stack([np.frombuffer(value, np.float16) for value in values])


class Zarr:
    """Arrays that grow by a shard a batch; the place of each id in memory."""

    def __init__(self, path: Path) -> None:
        self.group = zarr.open_group(path, mode="a")

    def append(self, batch: Batch) -> None:
        """One commit."""
        ids, boxes, rles, embeddings = batch
        bytes_of_rles = rles.view(np.uint8).reshape(len(ids), -1)
        arrays = {"region_id": ids, "box": boxes, "rle": bytes_of_rles, "embedding": embeddings}
        for name, values in arrays.items():
            if name not in self.group:
                shape, count = values.shape[1:], len(values)
                self.group.create_array(
                    name, shape=(0, *shape), chunks=(64, *shape), shards=(count, *shape),
                    dtype=values.dtype, compressors=None,
                )  # fmt: skip
            self.group[name].append(values)

    def finish(self) -> None:
        """Nothing to do."""

    def ids(self) -> np.ndarray:
        """Open for reading; all ids, in any order."""
        ids = self.group["region_id"][:]
        self.order = np.argsort(ids)
        self.sorted = ids[self.order]
        return ids

    def read(self, ids: np.ndarray) -> np.ndarray:
        """(n,DIM) embeddings of ids, in their order."""
        rows = self.order[np.searchsorted(self.sorted, ids)]
        return self.group["embedding"].oindex[rows]


FORMATS = {"lance": Lance, "parquet": Parquet, "lmdb": Lmdb, "zarr": Zarr}
