"""Photos on the command line: files, folders, patterns and lists."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenize_anything.cli_files import read_lines

PHOTO_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_photos(words: Sequence[str], *, option: str) -> list[Path]:
    """The photos that words of the command line stand for, each once, in order.

    Args:
        words: each a picture; a folder, for the pictures in it and below, by name; a pattern with
            *, ? or [...], for what it matches, by name; or a .txt file with one of these per line,
            relative to the file.
        option: what error messages call the words.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a folder or a list without pictures, or no words.
    """
    found: dict[Path, Path] = {}
    for word in words:
        for path in _expand(word, option):
            found.setdefault(path.resolve(), path)
    if not found:
        raise ValueError(f"{option}: expected at least one photo, got none")
    return list(found.values())


def common_folder(photos: Sequence[Path]) -> Path:
    """The lowest folder that holds all photos, absolute."""
    return Path(os.path.commonpath([photo.resolve().parent for photo in photos]))


def _expand(word: str, option: str) -> Iterator[Path]:
    path = Path(word)
    if path.is_dir():
        yield from _pictures_below(path, option)
    elif path.suffix.lower() == ".txt":
        lines = read_lines(path, option=option)
        if not lines:
            raise ValueError(f"{option}: expected a photo per line, got none in {path}")
        for line in lines:
            if Path(line).suffix.lower() == ".txt":
                raise ValueError(f"{option}: {path} names another list, {line}; give it by itself")
            yield from _expand(str(path.parent / line), option)
    elif path.exists():
        yield path
    else:
        matches = sorted(glob.glob(word, recursive=True))
        if not matches:
            raise FileNotFoundError(
                f"{option}: nothing at {word}; expected a photo, a folder, a pattern such as "
                f"'photos/*.jpg', or a .txt file with a photo per line"
            )
        yield from (Path(match) for match in matches if not Path(match).is_dir())


def _pictures_below(folder: Path, option: str) -> Iterator[Path]:
    pictures = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file()
    )
    if not pictures:
        raise ValueError(
            f"{option}: no picture in {folder} or below; expected files ending in "
            f"{', '.join(PHOTO_SUFFIXES)}"
        )
    yield from pictures
