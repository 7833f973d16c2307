"""Check a token store: the store itself, its ledger, and the photos its tokens were made from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.data.region_store_check import MAX_PROBLEMS, StoreReport, verify_store
from tokenize_anything.downstream.token_build import count_stored, is_whole
from tokenize_anything.downstream.token_ledger import PhotoEntry, PhotoLedger
from tokenize_anything.downstream.token_photos import hash_file
from tokenize_anything.downstream.token_rows import require_token_columns


def verify_tokens(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    show_progress: bool = False,
) -> StoreReport:
    """`verify_store`, and then whether the tokens are those of the photos.

    Args:
        path: of the store.
        root: the folder of all photos; None leaves the photos alone and checks that the regions are
            those the ledger counts.
        show_progress: show bars.

    Raises:
        FileNotFoundError, ImportError, ValueError: no token store.
    """
    place = os.fspath(path)
    require_token_columns(RegionStore.open(place).columns, place)
    entries = PhotoLedger.open(place).entries()
    report = verify_store(place, show_progress=show_progress)
    problems = list(report.problems)
    if not problems:  # what is damaged cannot be counted
        problems += _count_problems(place, entries)
    if root is not None:
        bar = tqdm(entries.values(), desc="reading", unit="photo", disable=not show_progress)
        problems += _source_problems(Path(root), bar)
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[: MAX_PROBLEMS - 1], f"and {len(problems) - MAX_PROBLEMS + 1} more"]
    return replace(report, problems=tuple(problems))


def _count_problems(place: str, entries: dict[str, PhotoEntry]) -> Iterator[str]:
    stored = count_stored(RegionStore.open(place))
    for source in sorted(stored.keys() - entries.keys()):
        yield f"photo {source}: regions of a build that was stopped; run it again"
    for source, entry in entries.items():
        if not is_whole(entry, stored.get(source)):
            count = stored.get(source, (0, ""))[0]
            yield (
                f"photo {source}: expected {entry.num_regions} regions of the file "
                f"{entry.source_hash:.12}, got {count}; run the build again"
            )


def _source_problems(root: Path, entries: Iterable[PhotoEntry]) -> Iterator[str]:
    for entry in entries:
        found = hash_file(root / entry.source)
        if not found:
            yield f"photo {entry.source}: not in {root} any more; run the build again"
        elif found != entry.source_hash:
            yield f"photo {entry.source}: changed since its tokens were made; run the build again"
