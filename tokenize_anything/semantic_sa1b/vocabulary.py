"""Lists of concept names: from text files, and merged from several data sets (paper appendix B)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NameList:
    """Different names, and what was left out on the way.

    repeated: names that came more than once; each is in `names` once.
    plurals: names left out because their singular is there.
    """

    names: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    plurals: tuple[str, ...] = ()


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of a UTF-8 text file, one a line, as they stand; blanks around them and empty lines go.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not text, or no name in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"names: no file at {path}; expected a text file, a name a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"names: {path} is not UTF-8 text ({error}); save it as such") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"names: expected one name per line, got none in {path}")
    return names


def separators_to_blanks(names: Iterable[str]) -> list[str]:
    """Write "_" and "-" as blanks, as the paper does for LVIS, Objects365 and Open Images."""
    return [name.replace("_", " ").replace("-", " ").strip() for name in names]


def join_names(sources: Iterable[Sequence[str]]) -> NameList:
    """All names in the order of their first coming.

    Raises:
        ValueError: no name at all.
    """
    counts: dict[str, int] = {}
    for source in sources:
        for name in source:
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        raise ValueError("names: expected at least one name, got none")
    repeated = tuple(name for name, count in counts.items() if count > 1)
    return NameList(tuple(counts), repeated)


def merge_names(sources: Iterable[Sequence[str]]) -> NameList:
    """Merge the names of several data sets into one vocabulary (paper algorithm 1).

    Lower case; a name goes if it is another one with "s" or "es" at its end; the rest is sorted by
    code point. Pass names that use separators through `separators_to_blanks` first.

    Raises:
        ValueError: no name at all.
    """
    joined = join_names([name.lower() for name in source] for source in sources)
    names = set(joined.names)
    plurals = {name + ending for name in names for ending in ("s", "es")} & names
    return NameList(
        tuple(sorted(names - plurals)), tuple(sorted(joined.repeated)), tuple(sorted(plurals))
    )
