"""SemanticSA-1B: one embedding a mask, in a region store; goes on where it was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.data.region_rows import RegionRows, join_rows, pick_rows
from tokenize_anything.data.region_store import RegionStore, exclusive_writer
from tokenize_anything.data.sa1b import AnnotatedPhotos
from tokenize_anything.semantic_sa1b.region_crops import (
    EmbeddedPhoto,
    RegionEmbedder,
    embed_photos,
    store_columns,
)
from tokenize_anything.semantic_sa1b.skipped import Skipped, SkippedLog


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """How a build works; none of this changes what comes out.

    batch_size: crops the tower sees at once, at most.
    threads: that read and crop photos while the tower works.
    commit_regions, commit_seconds: regions reach the store in commits of about so many, or after
        so long; a kill loses what came after the last one.
    """

    batch_size: int = 64
    threads: int = 4
    commit_regions: int = 2**16
    commit_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (0 if name == "commit_seconds" else 1):
                raise ValueError(f"{name}: expected more than 0, got {value}")


@dataclass(frozen=True)
class BuildReport:
    """What a store holds after a build; also in `<store>.report.json`.

    identity: of the embedder.
    num_photos: of the data set, readable or not.
    num_images, num_regions: in the store.
    skipped: how much was left out, by reason; the log beside the store names each.
    """

    identity: str
    num_photos: int
    num_images: int
    num_regions: int
    skipped: dict[str, int]


def beside_store(store: str | Path, ending: str) -> Path:
    """Path of a file that belongs to a store and lies beside it."""
    return Path(f"{store}.{ending}")


def build_store(
    photos: AnnotatedPhotos,
    embedder: RegionEmbedder,
    out: str | Path,
    settings: BuildSettings | None = None,
) -> BuildReport:
    """Embed every mask of the photos that are not in the store yet.

    The store gets photos in their order, each whole or not at all; what was left out and why is in
    `<out>.skipped.jsonl`, counts in `<out>.report.json`. Stopped by a kill, a full disk or Ctrl-C,
    the store is sound, and the same call goes on and ends with the same store.

    Args:
        photos: see `open_photos`.
        embedder: the image tower.
        out: the store; made if it is not there.
        settings: of the work, not the result.

    Raises:
        BlockingIOError: another process writes to the store.
        ImportError: Lance is missing.
        OSError: the disk is full, or the place cannot be written.
        ValueError: the store is of another embedder, or none at all.
    """
    settings = settings or BuildSettings()

    def embed(indices: Sequence[int]) -> Iterator[EmbeddedPhoto]:
        return embed_photos(
            photos, indices, embedder, batch_size=settings.batch_size, threads=settings.threads
        )

    return fill_store(photos, embed, (embedder.identity, embedder.dim), out, settings)


def fill_store(
    photos: AnnotatedPhotos,
    embed: Callable[[Sequence[int]], Iterable[EmbeddedPhoto]],
    space: tuple[str, int],
    out: str | Path,
    settings: BuildSettings,
) -> BuildReport:
    """`build_store` with any way to embed photos by their indices, in order.

    Args:
        photos: see `open_photos`.
        embed: gives one `EmbeddedPhoto` for each index, in the order of the indices.
        space: identity and D of what `embed` makes.
        out: the store.
        settings: the sizes of commits count here.
    """
    with exclusive_writer(out):
        store = RegionStore.open_or_create(out, store_columns(*space))
        done = store.images()
        log = SkippedLog(beside_store(out, "skipped.jsonl"), done)
        log.add(Skipped("file cannot be used", line) for line in photos.problems)
        todo = [index for index, name in enumerate(photos.names) if name not in done]
        commits = _Commits(store, log, settings)
        count = len(photos.names)
        with tqdm(total=count, initial=count - len(todo), unit="image") as progress:
            for photo in embed(todo):
                commits.add(photo)
                regions, skipped = commits.num_regions, log.counts.total()
                progress.set_postfix_str(f"{regions} regions, {skipped} skipped", refresh=False)
                progress.update()
        commits.commit()
        store.finish()
        report = BuildReport(space[0], count, len(store.images()), len(store), dict(log.counts))
        with replace_on_success(beside_store(out, "report.json")) as temporary:
            temporary.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    return report


class _Commits:
    """Gathers photos and adds them to the store, a batch at a time."""

    def __init__(self, store: RegionStore, log: SkippedLog, settings: BuildSettings) -> None:
        self.store, self.log, self.settings = store, log, settings
        self.num_regions = len(store)
        self._begin()

    def add(self, photo: EmbeddedPhoto) -> None:
        self.skipped += photo.skipped
        self.num_regions += len(photo.rows)
        self.num_waiting += len(photo.rows)
        if len(photo.rows):
            self.waiting.append(photo.rows)
        is_late = time.monotonic() - self.since >= self.settings.commit_seconds
        if is_late or self.num_waiting >= self.settings.commit_regions:
            self.commit()

    def commit(self) -> None:
        """Log first, then store: what is in the store has its lines in the log."""
        rows = self._without_known(join_rows(self.waiting)) if self.waiting else None
        self.log.add(self.skipped)
        if rows is not None and len(rows):
            self.store.append(rows)
        self.num_regions = len(self.store)
        self._begin()

    def _begin(self) -> None:
        self.waiting: list[RegionRows] = []
        self.skipped: list[Skipped] = []
        self.num_waiting = 0
        self.since = time.monotonic()

    def _without_known(self, rows: RegionRows) -> RegionRows:
        """Ids must be unique in the store: of two regions with one id the first is kept."""
        _, first = np.unique(rows.region_ids, return_index=True)
        is_new = np.zeros(len(rows), bool)
        is_new[first] = True
        is_new &= ~self.store.contains(rows.region_ids)
        self.skipped += [
            Skipped(
                "region id used before", "by a region of another photo", rows.images[row],
                int(rows.region_ids[row]),
            )
            for row in np.flatnonzero(~is_new).tolist()
        ]  # fmt: skip
        return rows if is_new.all() else pick_rows(rows, np.flatnonzero(is_new))
