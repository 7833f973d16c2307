"""Parquet for bench_region_store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_store_lance import DIM, Batch, to_arrow

ROW_GROUP = 256


class Parquet:
    """One file a batch, renamed when whole; small row groups; the place of each id in memory.

    Vectors are fixed-size binary: as lists of numbers they were several times slower.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def append(self, batch: Batch) -> None:
        """One commit."""
        name = self.path / f"{len(list(self.path.glob('*.parquet'))):06d}.parquet"
        part, plain = name.with_suffix(".part"), {"compression": "none", "use_dictionary": False}
        vectors = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(2 * DIM), len(batch[0]), [None, pa.py_buffer(batch[3])]
        )
        pq.write_table(to_arrow(batch, vectors), part, row_group_size=ROW_GROUP, **plain)
        part.rename(name)

    def finish(self) -> None:
        """Nothing to do."""

    def ids(self) -> np.ndarray:
        """Open for reading; all ids, in any order."""
        self.files = [pq.ParquetFile(file) for file in sorted(self.path.glob("*.parquet"))]
        parts = [file.read(columns=["region_id"])["region_id"].to_numpy() for file in self.files]
        self.place = {i: (f, row) for f, part in enumerate(parts) for row, i in enumerate(part)}
        return np.concatenate(parts)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """(n,DIM) embeddings of ids, in their order."""
        groups: dict[tuple[int, int], np.ndarray] = {}
        for file, group in {(f, row // ROW_GROUP) for f, row in (self.place[i] for i in ids)}:
            table = self.files[file].read_row_group(group, columns=["embedding"], use_threads=False)
            data = table["embedding"].combine_chunks().buffers()[1]
            groups[file, group] = np.frombuffer(data, np.float16).reshape(-1, DIM)
        places = [self.place[i] for i in ids]
        return np.stack([groups[f, row // ROW_GROUP][row % ROW_GROUP] for f, row in places])
