"""Files of the command line: outputs that are checked before the work and written whole."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tokenize_anything.checkpoints import replace_on_success

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def check_outputs(outputs: Mapping[str, Path], *, inputs: Sequence[Path] = ()) -> None:
    """Find out now whether the outputs can be written later; nothing is left behind.

    Args:
        outputs: option to path.
        inputs: files the command reads, which it must not overwrite.

    Raises:
        ValueError: two outputs or an output and an input are the same file, or a path that cannot
            hold a file.
        FileNotFoundError: the folder does not exist.
        PermissionError: nothing can be written into the folder.
    """
    taken = {path.resolve(): "a file this command reads" for path in inputs}
    for option, path in outputs.items():
        place = path.resolve()
        if place in taken:
            raise ValueError(f"{option}: {path} is {taken[place]}; choose another name")
        taken[place] = f"the file of {option}"
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise ValueError(f"{option}: expected a file name, got {path}, which is {kind}")
        _check_folder(place.parent, option)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or leave what was there before; a link keeps pointing where it did.

    Raises:
        OSError: the disk is full, or its folder went away.
    """
    with replace_on_success(path.resolve()) as temporary:
        temporary.write_bytes(content)


def encode_picture(picture: np.ndarray, path: Path) -> bytes:
    """An (H,W,3) uint8 picture as the file that the ending of `path` asks for."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, PICTURE_FORMATS[path.suffix.lower()])
    return stream.getvalue()


def read_lines(path: Path, *, option: str) -> list[str]:
    """Lines of a UTF-8 text file without surrounding blanks; empty ones are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{option}: no file at {path}; expected a text file, a name a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{option}: {path} is not UTF-8 text ({error}); save it as such"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _check_folder(folder: Path, option: str) -> None:
    """Try to make a file there: permissions alone say nothing of read-only disks, or to root."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{option}: the folder {folder} does not exist; create it first")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tap-"):
            pass
    except OSError as error:
        raise PermissionError(
            f"{option}: cannot write into {folder} ({error.strerror}); choose another folder"
        ) from error
