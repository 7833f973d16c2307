"""Read all of a region store and say what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tokenize_anything.data.region_rows import (
    RegionColumns,
    describe_some,
    is_unit_length,
    table_checksums,
    to_numpy_column,
)
from tokenize_anything.data.region_store import RegionStore

if TYPE_CHECKING:
    import pyarrow as pa

MAX_PROBLEMS = 100
_ROWS_AT_ONCE = 8192
_LOOKED_UP = 1000


@dataclass(frozen=True)
class StoreReport:
    """What `verify_store` found.

    columns: of the store, its identity included.
    num_regions, num_images: that could be read.
    problems: a line for each thing that is wrong, at most `MAX_PROBLEMS`; empty for a sound store.
    """

    columns: RegionColumns
    num_regions: int
    num_images: int
    problems: tuple[str, ...]


def verify_store(path: str | os.PathLike[str], *, show_progress: bool = False) -> StoreReport:
    """Read every row and check it: files, check sums, ids, vectors, boxes, and finding by id.

    Takes 8 bytes of memory a region for the ids, and one name an image.

    Raises:
        FileNotFoundError, ImportError, ValueError: no region store, see `RegionStore.open`.
    """
    store = RegionStore.open(path)
    checks = _Checks(store)
    fragments = store.dataset.get_fragments()
    with tqdm(total=len(store), unit="region", unit_scale=True, disable=not show_progress) as bar:
        for fragment in fragments:
            for table in checks.read_fragment(fragment):
                checks.check_rows(table)
                bar.update(len(table))
    ids = np.concatenate([np.zeros(0, np.int64), *checks.ids])
    checks.check_ids(ids)
    if not len(ids):
        checks.problems.append("the store is empty: no build has added a region")
    problems = checks.problems
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[: MAX_PROBLEMS - 1], f"and {len(problems) - MAX_PROBLEMS + 1} more"]
    return StoreReport(store.columns, len(ids), len(checks.images), tuple(problems))


class _Checks:
    """Goes through a store and collects problems."""

    def __init__(self, store: RegionStore) -> None:
        self.store = store
        self.problems: list[str] = []
        self.ids: list[np.ndarray] = []
        self.images: set[str] = set()

    def read_fragment(self, fragment: Any) -> Iterator[pa.Table]:
        """The rows of a fragment as far as they can be read; what Lance raises is a problem."""
        import pyarrow as pa

        read, expected = 0, fragment.count_rows()
        try:
            for batch in fragment.to_batches(batch_size=_ROWS_AT_ONCE):
                read += len(batch)
                yield pa.Table.from_batches([batch])
        except Exception as error:  # damage can surface as anything
            files = [file.path for file in fragment.metadata.files]
            self.problems.append(
                f"fragment {fragment.fragment_id} ({', '.join(files)}): {expected - read} of "
                f"{expected} regions cannot be read ({' '.join(str(error).split()):.200})"
            )

    def check_rows(self, table: pa.Table) -> None:
        """Compare check sums, and look at what can be wrong in spite of them."""
        ids = to_numpy_column(table, "region_id")
        self.ids.append(ids)
        self.images.update(table["image"].unique().to_pylist())
        sums = to_numpy_column(table, "checksum")
        self._report(ids[sums != table_checksums(table, self.store.columns)], "wrong check sum")
        for vector in self.store.columns.vectors:
            values = to_numpy_column(table, vector.name)
            is_finite = np.isfinite(values).all(axis=1)
            self._report(ids[~is_finite], f"NaN or infinity in {vector.name}")
            if vector.is_unit:
                self._report(
                    ids[is_finite & ~is_unit_length(values)], f"{vector.name} not of length 1"
                )
        boxes = to_numpy_column(table, "box_xyxy")
        sizes_wh = to_numpy_column(table, "mask_size_hw")[:, ::-1]
        is_inside = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2:] <= sizes_wh).all(axis=1)
        is_inside &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        self._report(ids[~is_inside], "box outside its image")

    def check_ids(self, ids: np.ndarray) -> None:
        """Every id once, and some of them found by id."""
        ordered = np.sort(ids)
        self._report(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]), "id more than once")
        if self.problems or not len(ids):
            return  # what is damaged cannot be found
        some = np.random.default_rng(0).choice(ids, min(_LOOKED_UP, len(ids)), replace=False)
        try:
            self._report(some[~self.store.contains(some)], "not found by id")
        except OSError as error:
            self.problems.append(f"regions cannot be found by id: {error}")

    def _report(self, ids: np.ndarray, problem: str) -> None:
        if len(ids):
            self.problems.append(f"region {describe_some(ids)}: {problem}")
