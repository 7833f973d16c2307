"""The same build on a Ray cluster: workers read, crop and embed; one process writes the store.

A worker's answer for a photo depends on the photo alone, and the writer takes photos in their
order. So any number of workers gives the same store, and what a killed worker had in hand is done
again by another. All machines must see the photos under the same path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
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
from tokenize_anything.data.region_rows import rows_to_table, table_to_rows
from tokenize_anything.data.sa1b import AnnotatedPhotos
from tokenize_anything.semantic_sa1b.pipeline import BuildReport, BuildSettings, fill_store
from tokenize_anything.semantic_sa1b.region_crops import (
    EmbeddedPhoto,
    RegionEmbedder,
    embed_photos,
    store_columns,
)
from tokenize_anything.semantic_sa1b.skipped import Skipped


def build_store_on_ray(
    photos: AnnotatedPhotos,
    make_embedder: Callable[[], RegionEmbedder],
    out: str | Path,
    settings: BuildSettings | None = None,
    cluster: ClusterSettings | None = None,
) -> BuildReport:
    """`build_store` on the Ray cluster this process is connected to.

    Args:
        photos: see `open_photos`; every machine must see the files.
        make_embedder: called once by each worker.
        out: the store, written by this process.
        settings: of the work, not the result.
        cluster: the workers.

    Raises:
        ImportError: Ray or Lance is missing.
        RuntimeError: not connected (`ray.init`).
        BlockingIOError, OSError, ValueError: see `build_store`.
    """
    ray = require_connection()
    settings, cluster = settings or BuildSettings(), cluster or ClusterSettings()
    space = ask_worker(partial(_describe, make_embedder), cluster)
    arguments = (ray.put(photos), make_embedder, space, settings)

    def embed(indices: Sequence[int]) -> Iterator[EmbeddedPhoto]:
        per_task = cluster.photos_per_task
        rows = map_on_workers(_Worker, arguments, indices, cluster, per_task=per_task)
        return (_unpack(row, space) for row in rows)

    return fill_store(photos, embed, space, out, settings)


class _Worker:
    """Embeds photos by their indices; one lives in each worker process."""

    def __init__(
        self,
        shared: Any,
        make_embedder: Callable[[], RegionEmbedder],
        space: tuple[str, int],
        settings: BuildSettings,
    ) -> None:
        self.photos: AnnotatedPhotos = import_ray().get(shared)
        self.embedder, self.settings = make_embedder(), settings
        self.columns = store_columns(*space)
        if (self.embedder.identity, self.embedder.dim) != space:
            raise ValueError(
                f"embedder: expected {space} as on the first worker, got "
                f"{(self.embedder.identity, self.embedder.dim)}; give all machines the same weights"
            )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """A photo becomes a row of bytes: Ray moves these as they are."""
        photos = embed_photos(
            self.photos,
            batch["data"].tolist(),
            self.embedder,
            batch_size=self.settings.batch_size,
            threads=self.settings.threads,
        )
        packed: dict[str, list[Any]] = {"name": [], "rows": [], "skipped": []}
        for photo in photos:
            packed["name"].append(photo.name)
            packed["rows"].append(pack_table(rows_to_table(photo.rows, self.columns)))
            packed["skipped"].append(json.dumps([asdict(entry) for entry in photo.skipped]))
        return packed


def _describe(make_embedder: Callable[[], RegionEmbedder]) -> tuple[str, int]:
    embedder = make_embedder()
    return embedder.identity, embedder.dim


def _unpack(row: dict[str, Any], space: tuple[str, int]) -> EmbeddedPhoto:
    table = unpack_table(row["rows"])
    skipped = tuple(Skipped(**entry) for entry in json.loads(row["skipped"]))
    return EmbeddedPhoto(row["name"], table_to_rows(table, store_columns(*space)), skipped)
