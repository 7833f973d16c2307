"""Files of one evaluation: rows on disk as they come, so that a stopped run can go on.

A folder holds `run.json` (what was asked), `rows.RANK.jsonl` (a line per finished item, appended by
one process each) and, once all items are there, `results.json`, `metrics.json` and `times.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tokenize_anything.checkpoints import replace_on_success

ItemKey = int | str


def file_digest(path: str | os.PathLike[str]) -> str:
    """First 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON file whole or not at all."""
    with replace_on_success(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a small JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"out: {path} is damaged ({error}); choose another folder") from error


class RunFolder:
    """The folder of one run, made where it does not exist.

    Args:
        folder: where the files go.
        settings: what decides the results, as plain JSON values. A folder that was begun with
            other settings is refused.

    Raises:
        ValueError: the folder holds another run; the settings that differ are named.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(settings))
        path = folder / "run.json"
        if not path.exists():
            write_json(path, wanted)
        _check_settings(path, wanted)

    def finished_keys(self) -> set[ItemKey]:
        """Keys of the items whose rows are on disk."""
        return {key for path in self._parts() for key, _, _ in _complete_lines(path)}

    def open_part(self, rank: int) -> BinaryIO:
        """The rows of one process, to append to; a last line that was cut short is dropped."""
        path = self.folder / f"rows.{rank}.jsonl"
        stream = path.open("a+b")
        ends = [start + length for _, start, length in _complete_lines(path)]
        stream.truncate(ends[-1] if ends else 0)
        return stream

    def join(self, keys: Sequence[ItemKey]) -> Path:
        """Write `results.json`: the rows of all items in the order of `keys`, a row per line.

        Raises:
            RuntimeError: an item has no rows; a process was lost.
        """
        places = {
            key: (path, start, length)
            for path in self._parts()
            for key, start, length in _complete_lines(path)
        }
        lost = [key for key in keys if key not in places]
        if lost:
            raise RuntimeError(
                f"{self.folder}: {len(lost)} of {len(keys)} items have no rows, first {lost[:3]}; "
                "start the same command again"
            )
        streams = {path: path.open("rb") for path in self._parts()}
        try:
            with replace_on_success(self.results) as temporary:
                _write_rows(temporary, (_read_rows(streams, places[key]) for key in keys))
        finally:
            for stream in streams.values():
                stream.close()
        return self.results

    @property
    def results(self) -> Path:
        """Rows of the whole run, a JSON list."""
        return self.folder / "results.json"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read `results.json` row by row."""
        with self.results.open(encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("{"):
                    yield json.loads(line.rstrip(",\n"))

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("rows.*.jsonl"))


def line_of(key: ItemKey, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One finished item as a line of a `rows.RANK.jsonl`."""
    return (json.dumps({"key": key, "rows": list(rows)}) + "\n").encode()


def _complete_lines(path: Path) -> Iterator[tuple[ItemKey, int, int]]:
    """Key, offset and length of every line that ends as it should."""
    decoder, opening, start = json.JSONDecoder(), '{"key": ', 0
    with path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"]}\n"):
                return
            # Only the key is parsed: the rows of a line may be megabytes.
            head = line[:4096].decode("utf-8", errors="ignore")
            yield decoder.raw_decode(head, len(opening))[0], start, len(line)
            start += len(line)


def _read_rows(
    streams: Mapping[Path, BinaryIO], place: tuple[Path, int, int]
) -> list[dict[str, Any]]:
    path, start, length = place
    streams[path].seek(start)
    return json.loads(streams[path].read(length))["rows"]


def _write_rows(path: Path, items: Iterable[Sequence[Mapping[str, Any]]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        separator = "[\n"
        for rows in items:
            for row in rows:
                stream.write(separator + json.dumps(row))
                separator = ",\n"
        stream.write("\n]\n" if separator == ",\n" else "[\n]\n")


def _check_settings(path: Path, wanted: Mapping[str, Any]) -> None:
    found = read_json(path)
    keys = sorted({*found, *wanted})
    other = [
        f"{key} {found.get(key)!r:.60} there and {wanted.get(key)!r:.60} here"
        for key in keys
        if found.get(key) != wanted.get(key)
    ]
    if other:
        raise ValueError(
            f"out: {path.parent} holds another evaluation ({'; '.join(other)}); choose another "
            "folder, or delete this one"
        )
