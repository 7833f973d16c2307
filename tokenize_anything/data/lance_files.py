"""Lance data sets in folders and object storage: import, places, and what goes wrong there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_LANCE_PROCESS: list[int] = []  # the process that loaded Lance, which does not survive a fork


def import_lance() -> Any:
    """The Lance package.

    Raises:
        ImportError: it is missing.
        RuntimeError: this process was forked from one that used Lance, and would wait for ever.
    """
    try:
        import lance
    except ImportError as error:
        raise ImportError(
            "a region store needs Lance: pip install tokenize-anything[search]"
        ) from error
    if not _LANCE_PROCESS:
        _LANCE_PROCESS.append(os.getpid())
    if _LANCE_PROCESS[0] != os.getpid():
        raise RuntimeError(
            "region store: this process was forked from one that has used a store, which Lance "
            'does not survive; start it with multiprocessing_context="forkserver" or "spawn"'
        )
    return lance


@contextmanager
def damage_reported(path: str) -> Iterator[None]:
    """Turn what Lance raises on bad files into an OSError that names the store."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(
            f"region store: a file of {path} is damaged or missing ({_first_line(error)}); "
            f"`tap semantic verify` says what is left"
        ) from error


@contextmanager
def failure_reported(path: str, action: str) -> Iterator[None]:
    """Turn what Lance raises on writing into an OSError that names the store and the action."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(
            f"region store: could not {action} at {path} ({_first_line(error)}); what it held "
            f"before is unchanged; free space on the disk or choose another place"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def is_url(place: str) -> bool:
    """Whether a place is in object storage, such as s3://bucket/name."""
    return "://" in place


def is_vacant(place: str) -> bool:
    """Whether nothing is there, or only what a writer left that was killed while making a store.

    Raises:
        OSError: the object storage cannot be reached, or refuses.
    """
    if is_url(place):
        return _is_vacant_url(place)
    if not os.path.lexists(place):
        return True
    if not os.path.isdir(place):
        return False
    files = [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]
    own = {os.path.join(place, folder) for folder in ("_versions", "_transactions", "data")}
    return all(os.path.dirname(f) in own and not f.endswith(".manifest") for f in files)


def _is_vacant_url(place: str) -> bool:
    try:
        import_lance().dataset(place)
    except ValueError as error:
        if "was not found" in str(error):
            return True
        raise
    return False


def lock_path(place: str) -> str:
    """The file that keeps a second writer of this machine out."""
    if not is_url(place):
        return f"{place}.lock"
    name = hashlib.sha256(place.encode()).hexdigest()[:32]
    return os.path.join(tempfile.gettempdir(), f"tokenize-anything-{name}.lock")


def match_texts(column: str, texts: Sequence[str]) -> str:
    """A condition for Lance: the column is one of these texts."""
    quoted = ["'" + text.replace("'", "''") + "'" for text in texts]
    return f"{column} IN ({', '.join(quoted)})"
