"""Regions and their vectors on disk, found by region id: a Lance data set with checks around it.

Lance was chosen by measurement (docs/semantic_sa1b.md). It reads in other tools as it is:
`lance.dataset(path).to_table()` is Arrow, and from there NumPy, pandas, DuckDB or Hugging Face.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenize_anything.data.lance_files import (
    damage_reported,
    failure_reported,
    import_lance,
    is_url,
    is_vacant,
    lock_path,
    match_texts,
)
from tokenize_anything.data.region_rows import (
    RegionColumns,
    RegionRows,
    describe_some,
    rows_to_table,
    table_to_rows,
    to_numpy_column,
)

if TYPE_CHECKING:
    import pyarrow as pa

IDS_PER_QUERY = 4096
_NAMES_PER_QUERY = 512
_FULL_FRAGMENT = 2**20  # rows; a read of scattered ids opens a file for each fragment
_FEW_ROWS, _MANY_FRAGMENTS = 2**16, 32  # while a build runs, so many with fewer rows are merged
_INDEX = "region_id_btree"
_INDEX_SHARE = 8  # the index is brought up to date once 1/8 of the rows is not in it, ...
_MIN_UNINDEXED = 2**20  # ... but for fewer rows than these only when a build ends
_KEEP_OLD = datetime.timedelta(hours=1)  # while a build runs, for those who read meanwhile


class RegionStore:
    """Regions of any number of images, each with an id, image, box, mask and the store's columns.

    `append` adds whole batches: after a kill at any moment the store holds all of a batch or
    nothing. One process writes at a time (`exclusive_writer`), any number read. A reader sees what
    was there when it opened the store. Lance does not survive a fork: data loaders need
    `multiprocessing_context="forkserver"`.

    Example:
        >>> store = RegionStore.open("sa1b.lance")
        >>> store.read_vectors([528340221, 528340222], "embedding")  # (2,1024) float16
    """

    def __init__(self, path: str, dataset: Any, columns: RegionColumns) -> None:
        self.path, self.columns, self._dataset = path, columns, dataset

    @classmethod
    def create(cls, path: str | os.PathLike[str], columns: RegionColumns) -> RegionStore:
        """Make an empty store.

        Raises:
            FileExistsError: there is something already.
            ImportError: Lance is missing.
            OSError: the place cannot be written.
        """
        place = os.fspath(path)
        if not is_vacant(place):
            raise FileExistsError(
                f"region store: {place} exists already; open it, or choose another place"
            )
        lance, schema = import_lance(), columns.to_schema()
        with failure_reported(place, "make a store"):
            dataset = lance.write_dataset(schema.empty_table(), place, mode="create")
        return cls(place, dataset, columns)

    @classmethod
    def open_or_create(cls, path: str | os.PathLike[str], columns: RegionColumns) -> RegionStore:
        """`open` what is there, which must be of these columns and identity, or `create` it."""
        if is_vacant(os.fspath(path)):
            return cls.create(path, columns)
        return cls.open(path, expected=columns)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, expected: RegionColumns | None = None
    ) -> RegionStore:
        """Open a store.

        Args:
            path: of a store; a folder or, where Lance knows its scheme, a URL.
            expected: what the store must hold, identity included.

        Raises:
            FileNotFoundError: nothing is there.
            ImportError: Lance is missing.
            ValueError: no region store, a damaged one, or one of other columns or identity.
        """
        place = os.fspath(path)
        lance = import_lance()
        if not is_url(place) and not os.path.isdir(place):
            raise FileNotFoundError(
                f"region store: no folder at {place}; `tap semantic build` and `tap tokens build` "
                f"make one"
            )
        try:
            dataset = lance.dataset(place)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"region store: {place} is not one, or its list of files is damaged ({error})"
            ) from error
        store = cls(place, dataset, RegionColumns.from_schema(dataset.schema, place))
        if expected is not None:
            store._require(expected)
        return store

    def __len__(self) -> int:
        return int(self.dataset.count_rows())

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.__dict__.update(RegionStore.open(path).__dict__)

    @property
    def dataset(self) -> Any:
        """The Lance data set, as of the last append through this object."""
        import_lance()
        return self._dataset

    def append(self, rows: RegionRows) -> None:
        """Add regions, all or none.

        Raises:
            OSError: the disk is full, or the place cannot be written; the store is as before.
            ValueError: rows that do not fit the columns (see `rows_to_table`), or ids the store
                has already.
        """
        if len(rows) >= _FULL_FRAGMENT:
            raise ValueError(
                f"rows: expected fewer than {_FULL_FRAGMENT} at once, got {len(rows)}; append parts"
            )
        known = self.contains(rows.region_ids)
        if known.any():
            ids = np.asarray(rows.region_ids)[known]
            raise ValueError(f"region_id: {describe_some(ids)} in {self.path} already")
        table = rows_to_table(rows, self.columns)
        with failure_reported(self.path, f"append {len(rows)} regions"):
            self._dataset = import_lance().write_dataset(table, self._dataset, mode="append")
            self._tidy()

    def delete_images(self, names: Sequence[str]) -> None:
        """Remove all regions of some images; names that have none are let pass.

        Raises:
            OSError: the place cannot be written; some of the images are still there.
        """
        import_lance()
        with failure_reported(self.path, f"delete the regions of {len(names)} images"):
            for start in range(0, len(names), _NAMES_PER_QUERY):
                self._dataset.delete(match_texts("image", names[start : start + _NAMES_PER_QUERY]))

    def contains(self, region_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) bool: which of n ids the store has."""
        ids = np.asarray(region_ids, dtype=np.int64)
        found = [to_numpy_column(t, "region_id") for t in self._find(ids, ["region_id"])]
        return np.isin(ids, np.concatenate([np.zeros(0, np.int64), *found]))

    def read(self, region_ids: Sequence[int] | np.ndarray) -> RegionRows:
        """Regions by id, in the order of the ids, which may repeat.

        Raises:
            KeyError: ids the store does not have.
            OSError: files of the store are damaged or missing.
            ValueError: the store is empty.
        """
        return table_to_rows(self._read(region_ids, None), self.columns)

    def read_vectors(self, region_ids: Sequence[int] | np.ndarray, name: str) -> np.ndarray:
        """(n,D) vectors of one column by region id; order and errors as `read`.

        Raises:
            ValueError: no such column.
        """
        vector = self.columns.vector(name)
        vectors = to_numpy_column(self._read(region_ids, ["region_id", name]), name)
        return vectors.reshape(-1, vector.dim)

    def iterate(self, batch_size: int = 4096) -> Iterator[RegionRows]:
        """All regions in the order they were appended, up to `batch_size` at once.

        Raises:
            OSError: files of the store are damaged or missing.
        """
        import pyarrow as pa

        with damage_reported(self.path):
            for batch in self.dataset.to_batches(batch_size=batch_size):
                yield table_to_rows(pa.Table.from_batches([batch]), self.columns)

    def images(self) -> set[str]:
        """Names of all images that have a region here.

        Raises:
            OSError: files of the store are damaged or missing.
        """
        names: set[str] = set()
        with damage_reported(self.path):
            for batch in self.dataset.to_batches(columns=["image"]):
                names.update(batch["image"].unique().to_pylist())
        return names

    def finish(self) -> None:
        """Merge fragments, bring the index up to date, drop what only earlier versions need.

        Reads work without it, only slower. Call it when a build ends, within `exclusive_writer`.

        Raises:
            OSError: the disk is full; the store reads as before.
        """
        import_lance()
        with failure_reported(self.path, "tidy up"):
            self._merge_fragments(_FULL_FRAGMENT, 2)
            self._update_index(0)
            self._dataset.cleanup_old_versions(datetime.timedelta(0), delete_unverified=True)

    def _require(self, expected: RegionColumns) -> None:
        if self.columns.identity != expected.identity:
            raise ValueError(
                f"region store: {self.path} holds vectors of {self.columns.identity!r}, expected "
                f"{expected.identity!r}, which are not comparable; choose another store"
            )
        if self.columns != expected:
            raise ValueError(
                f"region store: {self.path} holds other columns: expected {expected}, got "
                f"{self.columns}"
            )

    def _read(self, region_ids: Sequence[int] | np.ndarray, names: list[str] | None) -> pa.Table:
        """The rows of these ids, one for each, in their order."""
        import pyarrow as pa

        if not len(self):
            raise ValueError(f"region store: {self.path} is empty; no build has added a region")
        ids = np.asarray(region_ids, dtype=np.int64)
        if ids.ndim != 1:
            raise ValueError(f"region_ids: expected a list of ids, got shape {ids.shape}")
        wanted = names or self.dataset.schema.names
        empty = self.dataset.schema.empty_table().select(wanted)
        table = pa.concat_tables([empty, *self._find(np.unique(ids), wanted)])
        found = to_numpy_column(table, "region_id")
        missing = np.setdiff1d(ids, found)
        if len(missing):
            raise KeyError(f"region_ids: {describe_some(missing)} not in {self.path}")
        order = np.argsort(found)
        return table.take(order[np.searchsorted(found[order], ids)])

    def _find(self, ids: np.ndarray, names: list[str]) -> Iterator[pa.Table]:
        """Rows of those ids that are there, in no order."""
        for start in range(0, len(ids), IDS_PER_QUERY):
            listed = ",".join(map(str, ids[start : start + IDS_PER_QUERY].tolist()))
            yield self._query(names, f"region_id IN ({listed})")

    def _query(self, names: list[str], condition: str) -> pa.Table:
        try:
            return self.dataset.to_table(columns=names, filter=condition)
        except (OSError, ValueError):  # perhaps a build has merged these files since
            self._dataset = import_lance().dataset(self.path)
        with damage_reported(self.path):
            return self._dataset.to_table(columns=names, filter=condition)

    def _tidy(self) -> None:
        """Bring the index up to date and merge fragments, when either is worth it."""
        self._update_index(max(_MIN_UNINDEXED, len(self) // _INDEX_SHARE))
        if self._merge_fragments(_FEW_ROWS, _MANY_FRAGMENTS):
            self._dataset.cleanup_old_versions(_KEEP_OLD, delete_unverified=True)

    def _update_index(self, limit: int) -> None:
        """Index all rows once more than `limit` are not. Those are found too, by a scan."""
        if _INDEX not in [index.name for index in self._dataset.describe_indices()]:
            if len(self) > limit:
                self._dataset.create_scalar_index("region_id", "BTREE", name=_INDEX)
        elif self._dataset.stats.index_stats(_INDEX)["num_unindexed_rows"] > limit:
            self._dataset.optimize.optimize_indices()
        self._dataset = import_lance().dataset(self.path)

    def _merge_fragments(self, full: int, many: int) -> bool:
        """Merge fragments of fewer than `full` rows once there are `many`.

        Lance orders fragments by number, and merged ones get new numbers: rows keep their order
        only if what is merged goes up to the end. It merges none that is indexed with one that is
        not, so all must be.
        """
        is_small = [f.count_rows() < full for f in self._dataset.get_fragments()]
        count = sum(is_small)
        if count < many or not all(is_small[-count:]):
            return False
        if self._dataset.describe_indices():
            self._update_index(0)
        self._dataset.optimize.compact_files(target_rows_per_fragment=full)
        self._dataset = import_lance().dataset(self.path)
        return True


@contextmanager
def exclusive_writer(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes of this machine from writing to a store; open the store within.

    The lock is a file beside the store, or for a URL in the folder for temporary files. It goes
    with the process, however that ends.

    Raises:
        BlockingIOError: another process is writing.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout  # torch depends on it

    lock = FileLock(lock_path(os.fspath(path)), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"region store: another process is writing to {path}; wait until it ends"
        ) from error
    try:
        yield
    finally:
        lock.release()


class StoredVectors:
    """One vector column of a store, as training asks for it (see `RegionEmbeddings`)."""

    def __init__(self, store: RegionStore, name: str) -> None:
        self.store, self.column = store, store.columns.vector(name)

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """(n,D) vectors of n regions, in their order; raises KeyError where one is missing."""
        return self.store.read_vectors(ids, self.column.name)
