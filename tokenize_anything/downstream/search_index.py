"""The index of a token store for approximate search; why this kind: docs/search.md."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from tokenize_anything.data.lance_files import failure_reported, import_lance
from tokenize_anything.data.region_store import RegionStore, exclusive_writer
from tokenize_anything.downstream.token_rows import SEMANTIC_EMBEDDING, require_token_columns

INDEX_NAME = "semantic_embedding_neighbours"
# At least so many partitions are looked at, more where a filter leaves too few regions; the best
# of so many times k candidates are compared by their true vectors.
APPROXIMATE_QUERY = {"minimum_nprobes": 20, "refine_factor": 10}


def has_index(store: RegionStore) -> bool:
    """Whether `build_index` has made an index here."""
    return INDEX_NAME in [index.name for index in store.dataset.describe_indices()]


def build_index(store: RegionStore, *, progress: bool = False) -> RegionStore:
    """Make or replace the index of the semantic embeddings, which is kept inside the store.

    Regions appended later are found too: they are compared one by one until the store's `finish`
    adds them to the index.

    Args:
        store: made by `tap tokens build`.
        progress: show a bar.

    Returns:
        The store, opened again.

    Raises:
        BlockingIOError: another process is writing.
        OSError: the disk is full, or files of the store are damaged; the store is as before.
        ValueError: a store of something else, or an empty one.
    """
    require_token_columns(store.columns, store.path)
    if not len(store):
        raise ValueError(f"index: {store.path} is empty; `tap tokens build` adds regions")
    with exclusive_writer(store.path), _bar(progress) as report:
        opened = RegionStore.open(store.path, expected=store.columns)
        opened.finish()  # which keeps this index up to date from now on
        with failure_reported(store.path, "make an index"):
            opened.dataset.create_index(
                SEMANTIC_EMBEDDING,
                index_kind(store.columns.vector(SEMANTIC_EMBEDDING).dim),
                name=INDEX_NAME,
                metric="cosine",
                replace=True,
                progress_callback=report,
            )
        indexed = import_lance().dataset(store.path)
        indexed.cleanup_old_versions(datetime.timedelta(0), delete_unverified=True)
    return RegionStore.open(store.path, expected=store.columns)


def index_kind(dim: int) -> str:
    """Lance's name of the index for vectors of `dim` numbers.

    RaBitQ codes (Gao and Long, SIGMOD 2024) within partitions; those of Lance need a multiple of 8
    numbers, and bytes take their place otherwise.
    """
    return "IVF_RQ" if dim % 8 == 0 else "IVF_SQ"


@contextmanager
def _bar(progress: bool) -> Iterator[Any]:
    """A bar of the steps of one stage after the other, told by what Lance reports."""
    with tqdm(desc="index", disable=not progress, leave=False) as bar:

        def report(event: Any) -> None:
            bar.set_description(f"index: {event.stage}" if event.stage else "index")
            bar.total = event.total or None
            bar.n = event.completed or 0
            bar.refresh()

        yield report
