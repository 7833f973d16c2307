"""Annotated photos in tar files (WebDataset shards; SA-1B's own tars), read in place.

A shard is an uncompressed tar that holds, for each image, the image file and a JSON of the same
stem (see `data.photo_json`). WebDataset readers take such shards as they are, but they keep no
place in their shuffled stream that a stopped run could go back to. So members are looked up by
their offset in the tar, and `EpochSampler` decides the order: nothing is unpacked, a worker reads
one image and its JSON at a time, and a run goes on at the very next image.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from tqdm import tqdm

from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.data.photo_json import pair_names, parse_record
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable

TEXTS_FILE = "texts.json"
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the images of one shard lie.

    names: (n,) of the image members, bytes.
    members: (n,4) int64: offset and length of the image, offset and length of its JSON.
    problems: what the shard holds that cannot be used, a line each.
    """

    names: np.ndarray
    members: np.ndarray
    problems: tuple[str, ...]


class ShardRecords(Sequence[ImageRecord]):
    """The images of some shards, one after another; a record is read when it is asked for.

    Args:
        shards: tar files.
        index_folder: where the places of their members are kept, so that they are looked for once.

    Attributes:
        sizes: images per shard.
        problems: what cannot be used, a line each: images without JSON, a shard cut short.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard is no tar or is compressed, or none of them holds an image with JSON.
    """

    def __init__(self, shards: Sequence[str | Path], index_folder: str | Path) -> None:
        self.shards = [Path(shard) for shard in shards]
        folder = Path(index_folder)
        folder.mkdir(parents=True, exist_ok=True)
        indices = [
            load_index(shard, folder) for shard in tqdm(self.shards, "shards", mininterval=5)
        ]
        self.sizes = tuple(len(index.names) for index in indices)
        self.problems = [line for index in indices for line in index.problems]
        if not sum(self.sizes):
            raise ValueError(
                f"shards: expected images with a JSON each in {[str(s) for s in self.shards[:3]]}, "
                f"got none; {self.problems[:3]}"
            )
        self._stops = np.cumsum(self.sizes)
        self._names = [index.names for index in indices]
        self._members = [index.members for index in indices]

    def __len__(self) -> int:
        return int(self._stops[-1])

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        """Read one record with its encoded image, or those of a slice.

        Raises:
            IndexError: no such image.
            OSError: the shard cannot be read, or is shorter than when it was indexed.
            ValueError: see `parse_record`.
        """
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        shard = int(np.searchsorted(self._stops, index, side="right"))
        row = index - int(self._stops[shard]) + self.sizes[shard]
        path, name = self.shards[shard], self._names[shard][row].decode()
        start, length, json_start, json_length = self._members[shard][row].tolist()
        with path.open("rb") as file:
            encoded = _read_at(file, start, length, path)
            document = _read_at(file, json_start, json_length, path)
        return parse_record(document, path / name, encoded)


def find_shards(patterns: Sequence[str]) -> list[Path]:
    """Files that match the patterns, in the order of the patterns, each sorted.

    Raises:
        FileNotFoundError: a pattern that matches nothing.
    """
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern))
        if not matches:
            raise FileNotFoundError(f"shards: no file at {pattern}")
        found += [Path(match) for match in matches]
    return found


def load_index(shard: Path, folder: Path) -> ShardIndex:
    """Index of a shard: the one kept in `folder` if it is of this file, else made and kept.

    Raises:
        FileNotFoundError: no such shard.
        ValueError: no tar, or a compressed one.
    """
    if not shard.is_file():
        raise FileNotFoundError(f"shards: no file at {shard}")
    facts = shard.stat()
    stamp = np.array([facts.st_size, facts.st_mtime_ns])
    digest = hashlib.sha256(str(shard.resolve()).encode()).hexdigest()
    path = folder / f"{shard.name}.{digest[:16]}.npz"
    kept = _read_index(path, stamp)
    if kept is not None:
        return kept
    index = index_shard(shard)
    with replace_on_success(path) as temporary, temporary.open("wb") as file:
        problems = np.array(index.problems, dtype=np.str_)
        np.savez(file, names=index.names, members=index.members, problems=problems, stamp=stamp)
    return index


def index_shard(shard: Path) -> ShardIndex:
    """Read the headers of a tar and pair images with their JSON; see `load_index`."""
    members: dict[str, tuple[int, int]] = {}
    size, end = shard.stat().st_size, 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in _whole_members(tar, size):
                members[member.name] = (member.offset_data, member.size)
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
    except tarfile.ReadError as error:
        raise ValueError(
            f"shards: {shard} cannot be read ({error}); expected an uncompressed tar"
        ) from error
    names, problems = pair_names(members)
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):  # every tar ends with blocks of zeros
            problems.insert(0, f"the shard is cut short after {len(members)} whole files")
    places = [(*members[n], *members[os.path.splitext(n)[0] + ".json"]) for n in names]
    return ShardIndex(
        np.array([name.encode() for name in names], dtype=np.bytes_),
        np.array(places, dtype=np.int64).reshape(-1, 4),
        tuple(f"{shard}: {line}" for line in problems),
    )


def write_shards(
    records: Sequence[ImageRecord],
    texts: TextTable,
    folder: str | Path,
    *,
    names: Sequence[str] = (),
    images_per_shard: int = 1000,
) -> list[Path]:
    """Copy annotated photos into numbered shards, in order; image files stay as they are.

    Args:
        records: what to write; their masks are written as they are.
        texts: what `text_index` refers to; kept in `texts.json` beside the shards.
        folder: made if needed; shards of the same numbers are replaced.
        names: which texts are names of categories, for the vocabulary; kept there too.
        images_per_shard: of all but the last.

    Returns:
        The paths of the shards.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: `images_per_shard` under 1.
        OSError: the disk is full.
    """
    if images_per_shard < 1:
        raise ValueError(f"images_per_shard: expected at least 1, got {images_per_shard}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    with tqdm(total=len(records), desc="shards", mininterval=5) as progress:
        for start in range(0, len(records), images_per_shard):
            path = folder / f"{len(paths):06d}.tar"
            with (
                replace_on_success(path) as temporary,
                tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for index in range(start, min(start + images_per_shard, len(records))):
                    _add_record(tar, f"{index:09d}", records[index])
                    progress.update()
            paths.append(path)
    table = {"texts": texts.texts, "counts": texts.counts.tolist(), "names": list(names)}
    with replace_on_success(folder / TEXTS_FILE) as temporary:
        temporary.write_text(json.dumps(table), encoding="utf-8")
    return paths


def read_texts(shards: Sequence[Path]) -> tuple[TextTable, tuple[str, ...]]:
    """Text table beside the shards, and which texts are names; empty where there is none.

    Raises:
        ValueError: damaged, or the shards lie in several folders and some have a table.
    """
    tables = sorted({shard.parent / TEXTS_FILE for shard in shards})
    found = [table for table in tables if table.is_file()]
    if not found:
        return TextTable((), np.zeros(0, dtype=np.int64)), ()
    if len(tables) > 1:
        raise ValueError(
            f"shards: expected one folder for shards with texts, got {len(tables)} folders; texts "
            f"are numbered in each anew, so write the shards together"
        )
    try:
        content = json.loads(found[0].read_text(encoding="utf-8"))
        texts, counts = tuple(map(str, content["texts"])), np.array(content["counts"], np.int64)
        names = tuple(map(str, content["names"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"shards: {found[0]} is damaged ({error}); write the shards again"
        ) from error
    return TextTable(texts, counts), names


def _add_record(tar: tarfile.TarFile, key: str, record: ImageRecord) -> None:
    encoded = record.path.read_bytes() if record.encoded is None else record.encoded
    document = {
        "image": {"file_name": record.path.name, "width": record.width, "height": record.height},
        "annotations": [_annotation(region) for region in record.regions],
    }
    suffix = record.path.suffix.lower()
    for name, content in ((key + suffix, encoded), (f"{key}.json", json.dumps(document).encode())):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def _annotation(region: RegionAnnotation) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box_xyxy
    rle = region.rle
    if rle is not None and isinstance(rle["counts"], bytes):
        rle = {**rle, "counts": rle["counts"].decode("ascii")}
    return {
        "id": region.region_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": rle,
        "text_index": region.text_index,
        "captions": list(region.captions),
        "is_whole_image": region.is_whole_image,
    }


def _whole_members(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """Files of a tar of `size` bytes, as far as they are complete."""
    is_first = True
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError:
            if is_first:
                raise
            return
        if member is None or member.offset_data + member.size > size:
            return
        is_first = False
        if member.isfile():
            yield member


def _read_at(file: BinaryIO, start: int, length: int, path: Path) -> bytes:
    file.seek(start)
    content = file.read(length)
    if len(content) != length:
        raise ValueError(f"shards: {path} is cut short: {length} bytes expected at {start}")
    return content


def _read_index(path: Path, stamp: np.ndarray) -> ShardIndex | None:
    """What `load_index` kept for a shard of this size and date; None when there is none."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            if not np.array_equal(kept["stamp"], stamp):
                return None
            return ShardIndex(kept["names"], kept["members"], tuple(kept["problems"].tolist()))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
