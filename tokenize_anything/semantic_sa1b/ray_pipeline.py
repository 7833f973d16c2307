"""The same build on a Ray cluster: workers read, crop and embed; one process writes the store.

A worker's answer for a photo depends on the photo alone, and the writer takes photos in their
order. So any number of workers gives the same store, and what a killed worker had in hand is done
again by another. All machines must see the photos under the same path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """What each worker gets.

    workers: how many; each holds an embedder of its own.
    cpus, gpus: of the cluster's, reserved by each worker. Threads are those of `BuildSettings`.
    photos_per_task: handed to a worker at once; this much is done again after a kill.
    """

    workers: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    photos_per_task: int = 16

    def __post_init__(self) -> None:
        for name in ("workers", "photos_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("cpus", "gpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


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
    ray = import_ray()
    if not ray.is_initialized():
        raise RuntimeError("ray: this process is not connected to a cluster; call ray.init first")
    settings, cluster = settings or BuildSettings(), cluster or ClusterSettings()
    space = ray.get(
        ray.remote(_describe).options(num_cpus=cluster.cpus, num_gpus=cluster.gpus)
        .remote(make_embedder)
    )  # fmt: skip
    shared = ray.put(photos)

    def embed(indices: Sequence[int]) -> Iterator[EmbeddedPhoto]:
        if not indices:
            return
        data = ray.data.from_numpy(np.asarray(indices, dtype=np.int64))
        data = data.repartition(-(-len(indices) // cluster.photos_per_task))
        data.context.execution_options.preserve_order = True
        data.context.execution_options.verbose_progress = False
        data.context.enable_progress_bars = False  # the build has its own
        embedded = data.map_batches(
            _Worker,
            fn_constructor_args=(shared, make_embedder, space, settings),
            batch_size=cluster.photos_per_task,
            compute=ray.data.ActorPoolStrategy(size=cluster.workers),
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
        )
        for row in embedded.iter_rows():
            yield _unpack(row, space)

    return fill_store(photos, embed, space, out, settings)


def import_ray() -> Any:
    """The Ray package with its data part.

    Raises:
        ImportError: it is missing.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "building on a cluster needs Ray: pip install tokenize-anything[cluster]"
        ) from error
    return ray


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
            packed["rows"].append(_to_bytes(rows_to_table(photo.rows, self.columns)))
            packed["skipped"].append(json.dumps([asdict(entry) for entry in photo.skipped]))
        return packed


def _describe(make_embedder: Callable[[], RegionEmbedder]) -> tuple[str, int]:
    embedder = make_embedder()
    return embedder.identity, embedder.dim


def _unpack(row: dict[str, Any], space: tuple[str, int]) -> EmbeddedPhoto:
    import pyarrow as pa

    table = pa.ipc.open_stream(row["rows"]).read_all()
    skipped = tuple(Skipped(**entry) for entry in json.loads(row["skipped"]))
    return EmbeddedPhoto(row["name"], table_to_rows(table, store_columns(*space)), skipped)


def _to_bytes(table: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
