"""Build a store of region tokens, and bring it up to date: only new and changed photos are done.

A commit puts the rows of some photos into the store and then enters the photos into the ledger.
Whatever a kill leaves half done, the next run deletes and does again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from tokenize_anything.data.lance_files import damage_reported, is_vacant
from tokenize_anything.data.region_rows import join_rows
from tokenize_anything.data.region_store import RegionStore, exclusive_writer
from tokenize_anything.downstream.token_ledger import (
    PhotoEntry,
    PhotoLedger,
    describe_problems,
    ledger_place,
)
from tokenize_anything.downstream.token_maker import PhotoTokens, StoreFacts, TokenMaker
from tokenize_anything.downstream.token_photos import TokenPhotos, hash_file

Blocks = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class TokenWork:
    """How a build works; the tokens do not depend on it, but for `block` in their last bits.

    block: photos that are named and described together.
    threads: that read photos ahead.
    commit_photos, commit_seconds: photos reach the store in commits of so many, or after so long;
        a kill loses what came after the last one.
    stops_on_bad: whether a photo that cannot be used ends the build; otherwise it is left out.
    """

    block: int = 4
    threads: int = 2
    commit_photos: int = 64
    commit_seconds: float = 120.0
    stops_on_bad: bool = False

    def __post_init__(self) -> None:
        for name in ("block", "threads", "commit_photos"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.commit_seconds < 0:
            raise ValueError(f"commit_seconds: expected at least 0, got {self.commit_seconds}")


@dataclass(frozen=True)
class TokenReport:
    """What a build did, and what the store holds now.

    identity: of the model.
    num_photos, num_regions: in the store, photos without regions included.
    num_done: photos that were new or changed, and are in the store now.
    num_removed: photos whose regions were deleted, because they are gone.
    problems: a line for each photo that cannot be used.
    left_out: a line for each annotation that cannot be used.
    """

    identity: str
    num_photos: int
    num_regions: int
    num_done: int
    num_removed: int
    problems: tuple[str, ...]
    left_out: tuple[str, ...]


def build_tokens(
    photos: TokenPhotos,
    maker: TokenMaker,
    out: str | os.PathLike[str],
    work: TokenWork | None = None,
) -> TokenReport:
    """Put the tokens of all regions of the photos into a store, and take out those of others.

    After it the store holds the regions of exactly these photos, each as its file is now. Stopped
    by a kill or Ctrl-C it is sound, and the same call goes on; the rows are then those of a build
    that was not stopped.

    Args:
        photos: `FolderPhotos` or `CocoPhotos`.
        maker: the model.
        out: the store; a folder, or a URL such as s3://bucket/name. Made if it is not there.
        work: how to go about it.

    Raises:
        BlockingIOError: another process writes to the store.
        ImportError: Lance is missing.
        OSError: the disk is full, or the place cannot be written.
        ValueError: the store is of another model, of other settings, of none of these photos, or
            none at all; or a photo cannot be used and that stops the build.
    """
    work = work or TokenWork()

    def make(blocks: Blocks) -> Iterable[list[PhotoTokens]]:
        return maker.make_blocks(photos, blocks, threads=work.threads)

    return fill_token_store(photos, make, maker.facts(photos.kind), out, work)


def fill_token_store(
    photos: TokenPhotos,
    make: Callable[[Blocks], Iterable[list[PhotoTokens]]],
    facts: StoreFacts,
    out: str | os.PathLike[str],
    work: TokenWork,
) -> TokenReport:
    """`build_tokens` with any way to make the tokens of blocks of photos, in their order."""
    place = os.fspath(out)
    with exclusive_writer(place):
        store, ledger = _open_both(place, facts)
        known = ledger.entries()
        done = _find_done(photos, known, store)
        if work.stops_on_bad:
            _require_usable([known[name] for name in done])
        present = set(photos.names)
        gone = [name for name in known if name not in present]
        _clear(store, ledger, keep=done)
        commits = _Commits(store, ledger, work)
        blocks = _plan_blocks(photos.names, done, work.block)
        with tqdm(total=len(present), initial=len(done), unit="photo", desc="tokens") as bar:
            for block in make(blocks):
                commits.add(block)
                bar.set_postfix_str(f"{commits.num_regions} regions", refresh=False)
                bar.update(len(block))
        commits.commit()
        store.finish()
        ledger.finish()
        entries = [*ledger.entries().values(), *commits.unreadable]
        return TokenReport(
            identity=facts.columns.identity,
            num_photos=sum(not entry.problem for entry in entries),
            num_regions=len(store),
            num_done=commits.num_done,
            num_removed=len(gone),
            problems=describe_problems(entries),
            left_out=tuple(line for e in entries for line in e.left_out.splitlines()),
        )


def _open_both(place: str, facts: StoreFacts) -> tuple[RegionStore, PhotoLedger]:
    """The store, then its ledger, which only a store without regions may lack."""
    store = RegionStore.open_or_create(place, facts.columns)
    if len(store) == 0 and is_vacant(ledger_place(place)):
        return store, PhotoLedger.create(place, facts.settings)
    ledger = PhotoLedger.open(place)
    ledger.require_settings(facts.settings)
    return store, ledger


def count_stored(store: RegionStore) -> dict[str, tuple[int, str]]:
    """Number of regions and hash of every photo in a store; the hash is empty where they differ.

    Raises:
        OSError: files of the store are damaged or missing.
    """
    found: dict[str, tuple[int, str]] = {}
    with damage_reported(store.path):
        for batch in store.dataset.to_batches(columns=["source", "source_hash"]):
            pairs = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            for source, source_hash in pairs:
                count, before = found.get(source, (0, source_hash))
                found[source] = count + 1, source_hash if source_hash == before else ""
    return found


def is_whole(entry: PhotoEntry, stored: tuple[int, str] | None) -> bool:
    """Whether a store holds what the ledger says it does of one photo."""
    return (stored or (0, entry.source_hash)) == (entry.num_regions, entry.source_hash)


def _find_done(
    photos: TokenPhotos, known: dict[str, PhotoEntry], store: RegionStore
) -> frozenset[str]:
    """Photos whose regions are in the store, whole, as their files and annotations are now."""
    listed = [index for index, name in enumerate(photos.names) if name in known]
    if known and not listed:
        raise ValueError(
            f"token store: {store.path} has tokens of {len(known)} photos, such as "
            f"{next(iter(known))}, and none of those given (such as {photos.names[0]}); name the "
            f"root its photos lie under, or build into another place"
        )
    stored = count_stored(store)
    done = []
    for index in tqdm(listed, desc="reading", unit="photo", mininterval=1, leave=False):
        entry = known[photos.names[index]]
        if (
            entry.prompt_hash == photos.prompt_hash(index)
            and is_whole(entry, stored.get(entry.source))
            and entry.source_hash == hash_file(photos.root / entry.source)
        ):
            done.append(entry.source)
    return frozenset(done)


def _clear(store: RegionStore, ledger: PhotoLedger, *, keep: frozenset[str]) -> None:
    """Delete the regions of all photos but some; out of the ledger first."""
    ledger.remove([name for name in ledger.entries() if name not in keep])
    store.delete_images(sorted(store.images() - keep))


def _plan_blocks(names: Sequence[str], done: frozenset[str], size: int) -> list[list[int]]:
    """Indices of the photos to do, in blocks that do not depend on what is done already."""
    blocks = []
    for start in range(0, len(names), size):
        end = min(start + size, len(names))
        block = [index for index in range(start, end) if names[index] not in done]
        if block:
            blocks.append(block)
    return blocks


def _require_usable(entries: Iterable[PhotoEntry]) -> None:
    problems = describe_problems(entries)
    if problems:
        raise ValueError(
            f"photo {problems[0]} ({len(problems)} such photos so far); mend it or take it away, "
            f"or build with --on-bad skip"
        )


class _Commits:
    """Gathers photos and puts them into the store, some at a time."""

    def __init__(self, store: RegionStore, ledger: PhotoLedger, work: TokenWork) -> None:
        self.store, self.ledger, self.work = store, ledger, work
        self.num_regions, self.num_done = len(store), 0
        self.unreadable: list[PhotoEntry] = []
        self._begin()

    def add(self, block: Sequence[PhotoTokens]) -> None:
        self.waiting += block
        self.num_regions += sum(tokens.entry.num_regions for tokens in block)
        is_bad = self.work.stops_on_bad and any(tokens.entry.problem for tokens in block)
        is_late = time.monotonic() - self.since >= self.work.commit_seconds
        if is_bad or is_late or len(self.waiting) >= self.work.commit_photos:
            self.commit()
        if is_bad:
            _require_usable(tokens.entry for tokens in block)

    def commit(self) -> None:
        """Rows first, then the entries that say they are there."""
        rows = [tokens.rows for tokens in self.waiting if tokens.rows is not None]
        if rows:
            self.store.append(join_rows(rows))
        entries = [tokens.entry for tokens in self.waiting]
        readable = [entry for entry in entries if entry.source_hash]
        self.ledger.add(readable)
        self.unreadable += [entry for entry in entries if not entry.source_hash]
        self.num_done += sum(not entry.problem for entry in entries)
        self._begin()

    def _begin(self) -> None:
        self.waiting: list[PhotoTokens] = []
        self.since = time.monotonic()
