"""What a build left out, and why: a line of JSON each beside the store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenize_anything.checkpoints import replace_on_success


@dataclass(frozen=True)
class Skipped:
    """Something a build left out.

    reason: one of few, to count by.
    detail: what exactly was wrong.
    image: name of the photo, empty for what belongs to none.
    region_id: None where the whole photo was left out, or the region has no id.
    """

    reason: str
    detail: str
    image: str = ""
    region_id: int | None = None


class SkippedLog:
    """The file `<store>.skipped.jsonl`.

    What is written about a photo reaches the file before the photo's regions reach the store; so
    the lines of photos that are in the store are whole, and all others come again.

    Args:
        path: of the file.
        done: photos whose lines are kept; the others will be looked at again.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, done: set[str]) -> None:
        self.path = path
        kept = [entry for entry in read_skipped(path) if entry.image in done]
        self.counts = Counter(entry.reason for entry in kept)
        with replace_on_success(path) as temporary:
            temporary.write_text("".join(map(_to_line, kept)), encoding="utf-8")

    def add(self, entries: Iterable[Skipped]) -> None:
        """Append entries, and wait until the system has them.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        entries = list(entries)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_to_line, entries)))
        except OSError as error:
            raise OSError(
                f"build: cannot write {self.path} ({error.strerror}); free space on the disk, and "
                f"run the same command again to go on"
            ) from error
        self.counts.update(entry.reason for entry in entries)


def read_skipped(path: Path) -> list[Skipped]:
    """All whole lines of the file; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [Skipped(**json.loads(line)) for line in lines[:-1] if line]  # the last one may be cut


def _to_line(entry: Skipped) -> str:
    return json.dumps(asdict(entry)) + "\n"
