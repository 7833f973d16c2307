"""Lance for bench_region_store, and what a row is.

A row is a region id, a box, a run-length mask and an embedding. All formats are used the way
their manuals advise; none waits for the disk.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

DIM, RLE_BYTES = 1024, 96
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # ids, boxes (n,4), RLE, (n,DIM)


def to_arrow(batch: Batch, vectors: pa.Array) -> pa.Table:
    ids, boxes, rles, _ = batch
    corners = pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4)
    arrays = [pa.array(ids), corners, pa.array(rles.tolist(), pa.binary()), vectors]
    return pa.table(arrays, ["region_id", "box", "rle", "embedding"])


class Lance:
    """One commit a batch; once all is written, one file and a B-tree over the ids."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def append(self, batch: Batch) -> None:
        """One commit."""
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(batch[3].ravel()), DIM)
        lance.write_dataset(to_arrow(batch, vectors), self.path, mode="append")

    def finish(self) -> None:
        """Whatever makes reads fast."""
        dataset = lance.dataset(self.path)
        dataset.optimize.compact_files()
        dataset = lance.dataset(self.path)
        dataset.create_scalar_index("region_id", "BTREE")
        dataset.cleanup_old_versions(timedelta(0), delete_unverified=True)

    def ids(self) -> np.ndarray:
        """Open for reading; all ids, in any order."""
        self.dataset = lance.dataset(self.path)
        return self.dataset.to_table(columns=["region_id"])["region_id"].to_numpy()

    def read(self, ids: np.ndarray) -> np.ndarray:
        """(n,DIM) embeddings of ids, in their order."""
        wanted = f"region_id IN ({','.join(map(str, ids))})"
        table = self.dataset.to_table(columns=["region_id", "embedding"], filter=wanted)
        found = table["region_id"].to_numpy()
        order = np.argsort(found)
        vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
        return vectors[order[np.searchsorted(found[order], ids)]]
