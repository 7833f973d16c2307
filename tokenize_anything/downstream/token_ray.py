"""The same token build on a Ray cluster: workers read and predict; one process writes the store.

A worker answers for whole blocks of photos, which do not depend on who does them, and the writer
takes them in order. So any number of workers gives the same store, and what a killed worker had in
hand is done again by another. All machines must see the photos under the same path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from tokenize_anything.data.ray_workers import (
    ClusterSettings,
    ask_worker,
    import_ray,
    map_on_workers,
    pack_table,
    require_connection,
    unpack_table,
)
from tokenize_anything.data.region_rows import RegionColumns, rows_to_table, table_to_rows
from tokenize_anything.downstream.token_build import (
    Blocks,
    TokenReport,
    TokenWork,
    fill_token_store,
)
from tokenize_anything.downstream.token_ledger import PhotoEntry
from tokenize_anything.downstream.token_maker import PhotoTokens, StoreFacts, TokenMaker
from tokenize_anything.downstream.token_photos import TokenPhotos


def build_tokens_on_ray(
    photos: TokenPhotos,
    make_maker: Callable[[], TokenMaker],
    out: str | os.PathLike[str],
    work: TokenWork | None = None,
    cluster: ClusterSettings | None = None,
) -> TokenReport:
    """`build_tokens` on the Ray cluster this process is connected to.

    Args:
        photos: every machine must see the files under the same path.
        make_maker: called once by each worker.
        out: the store, written by this process.
        work: how to go about it; `threads` are those of each worker.
        cluster: the workers.

    Raises:
        ImportError: Ray or Lance is missing.
        RuntimeError: not connected (`ray.init`).
        BlockingIOError, OSError, ValueError: see `build_tokens`.
    """
    ray = require_connection()
    work, cluster = work or TokenWork(), cluster or ClusterSettings()
    facts = ask_worker(partial(_describe, make_maker, photos.kind), cluster)
    shared = ray.put(photos)

    def make(blocks: Blocks) -> Iterator[list[PhotoTokens]]:
        arguments = (shared, ray.put(blocks), make_maker, facts, work.threads)
        numbers = range(len(blocks))
        per_task = max(1, cluster.photos_per_task // work.block)
        for row in map_on_workers(_Worker, arguments, numbers, cluster, per_task=per_task):
            yield _unpack(row, facts.columns)

    return fill_token_store(photos, make, facts, out, work)


class _Worker:
    """Makes the tokens of blocks by their numbers; one lives in each worker process."""

    def __init__(
        self,
        photos: Any,
        blocks: Any,
        make_maker: Callable[[], TokenMaker],
        facts: StoreFacts,
        threads: int,
    ) -> None:
        ray = import_ray()
        self.photos: TokenPhotos = ray.get(photos)
        self.blocks: Blocks = ray.get(blocks)
        self.maker, self.threads = make_maker(), threads
        found = self.maker.facts(self.photos.kind)
        if found != facts:
            raise ValueError(
                f"model: expected {facts.columns.identity!r} as on the first worker, got "
                f"{found.columns.identity!r}; give all machines the same weights and settings"
            )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """A block becomes a row: its entries as JSON, and the rows of each photo as bytes."""
        blocks = [self.blocks[number] for number in batch["data"].tolist()]
        packed: dict[str, list[Any]] = {"entries": [], "rows": []}
        for block in self.maker.make_blocks(self.photos, blocks, threads=self.threads):
            packed["entries"].append(json.dumps([asdict(tokens.entry) for tokens in block]))
            packed["rows"].append([self._pack(tokens) for tokens in block])
        return packed

    def _pack(self, tokens: PhotoTokens) -> bytes:
        """Empty for a photo without rows."""
        if tokens.rows is None:
            return b""
        return pack_table(rows_to_table(tokens.rows, self.maker.columns))


def _describe(make_maker: Callable[[], TokenMaker], kind: str) -> StoreFacts:
    return make_maker().facts(kind)


def _unpack(row: dict[str, Any], columns: RegionColumns) -> list[PhotoTokens]:
    entries = [PhotoEntry(**entry) for entry in json.loads(row["entries"])]
    tables = [unpack_table(content) if content else None for content in row["rows"]]
    return [
        PhotoTokens(entry, None if table is None else table_to_rows(table, columns))
        for entry, table in zip(entries, tables, strict=True)
    ]
