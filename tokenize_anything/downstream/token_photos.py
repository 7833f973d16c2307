"""Photos whose regions become tokens: all of a folder, or those of a COCO file with its prompts."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tokenize_anything.data.sa1b import AnnotatedPhotos, CocoRecords, open_photos
from tokenize_anything.data.samples import RegionAnnotation
from tokenize_anything.geometry import decode_rle
from tokenize_anything.image_loading import load_encoded
from tokenize_anything.prompts import PointPrompts

EVERYTHING, BOX, MASK = "everything", "box", "mask"


@dataclass(frozen=True, eq=False)
class LoadedPhoto:
    """One photo in memory, with what to look at.

    source: its path under the folder of all photos.
    source_hash: SHA-256 of the file these pixels come from.
    rgb: (H,W,3) uint8.
    prompts: R regions; None to look for every region.
    region_ids: R ids of the annotations, None where one has none.
    boxes_xyxy: (R,4) float32, boxes of the annotations within the photo.
    left_out: annotations that cannot be used, a line each.
    prompt_hash: changes with the annotations; empty without.
    """

    source: str
    source_hash: str
    rgb: np.ndarray
    prompts: PointPrompts | None = None
    region_ids: tuple[int | None, ...] = ()
    boxes_xyxy: np.ndarray | None = None
    left_out: tuple[str, ...] = ()
    prompt_hash: str = ""


class TokenPhotos(Protocol):
    """Photos in a fixed order, by index.

    root: the folder of all photos.
    names: paths under the root, with forward slashes, no two alike.
    kind: "everything", "box" or "mask": what the regions of a photo are.
    """

    @property
    def root(self) -> Path: ...  # noqa: D102
    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    def prompt_hash(self, index: int) -> str:
        """Changes with what is asked about the photo."""
        ...

    def prepare(self, index: int, content: bytes) -> LoadedPhoto:
        """Decode the content of the photo's file and make its prompts.

        Raises:
            ValueError: no picture, or none of the size the annotations are for.
        """
        ...


@dataclass(frozen=True)
class FolderPhotos:
    """Photos of which every region is wanted; see `TokenPhotos`."""

    root: Path
    names: tuple[str, ...]
    kind: str = EVERYTHING

    @classmethod
    def under(cls, root: str | Path, paths: Sequence[str | Path]) -> FolderPhotos:
        """Photos by their paths.

        Raises:
            ValueError: a photo that is not below the root, or given twice.
        """
        top = os.path.abspath(root)
        names = []
        for path in paths:
            name = os.path.relpath(os.path.abspath(path), top)
            if name.startswith(os.pardir):
                raise ValueError(
                    f"root: {path} does not lie below {root}; name a folder that holds all photos"
                )
            names.append(Path(name).as_posix())
        _require_distinct(names)
        return cls(Path(root), tuple(names))

    def prompt_hash(self, index: int) -> str:
        """Empty: every photo is asked the same."""
        return ""

    def prepare(self, index: int, content: bytes) -> LoadedPhoto:
        """See `TokenPhotos`."""
        name = self.names[index]
        return LoadedPhoto(name, hash_content(content), load_encoded(content, name="photo"))


@dataclass(frozen=True, eq=False)
class CocoPhotos:
    """Photos with boxes or masks to ask about; see `TokenPhotos`.

    Crowds, boxes under 2 pixels, and annotations without mask where masks are asked for are left
    out and named. Photos without annotations are not among the photos.
    """

    root: Path
    photos: AnnotatedPhotos
    hashes: tuple[str, ...]
    kind: str = BOX

    @classmethod
    def open(cls, file: str | Path, root: str | Path, kind: str = BOX) -> CocoPhotos:
        """Read a COCO JSON; no photo is opened.

        Args:
            file: COCO-style JSON.
            root: folder that `file_name` is looked up in.
            kind: "box" or "mask": what of an annotation is the prompt.

        Raises:
            FileNotFoundError: no such file, or no photo with annotations in it.
            ValueError: not COCO-style JSON, an annotation id that is used twice, another kind.
        """
        if kind not in (BOX, MASK):
            raise ValueError(f"prompt: expected {BOX!r} or {MASK!r}, got {kind!r}")
        photos = open_photos(file, index_folder="", images=root)
        assert isinstance(photos.records, CocoRecords)  # what a .json gives
        lists = [annotations for _, _, annotations in photos.records.entries]
        ids = Counter(json.dumps(each.get("id")) for entries in lists for each in entries)
        repeated = [key for key, count in ids.items() if count > 1 and key != "null"]
        if repeated:
            raise ValueError(
                f"annotations: {file} has the annotation ids {', '.join(repeated[:3])} more than "
                f"once; number them anew"
            )
        return cls(Path(root), photos, tuple(_digest(each) for each in lists), kind)

    @property
    def names(self) -> Sequence[str]:
        """In alphabetical order."""
        return self.photos.names

    def prompt_hash(self, index: int) -> str:
        """Of the annotations of the photo as they are in the file."""
        return self.hashes[index]

    def prepare(self, index: int, content: bytes) -> LoadedPhoto:
        """See `TokenPhotos`."""
        record, name = self.photos.records[index], self.names[index]
        rgb = load_encoded(content, name="photo")
        height, width = rgb.shape[:2]
        if (height, width) != (record.height, record.width):
            raise ValueError(
                f"photo: expected {(record.height, record.width)} (height, width) as its entry "
                f"says, got {(height, width)}"
            )
        left_out, regions = list(record.skipped), []
        masks = [np.zeros((0, height, width), bool)]
        for region in record.regions:
            try:
                if self.kind == MASK:
                    masks.append(_read_mask(region, (height, width))[None])
                regions.append(region)
            except (ValueError, TypeError) as error:
                left_out.append(f"{name}: region {region.region_id}: {error}")
        boxes = np.array([region.box_xyxy for region in regions], np.float32).reshape(-1, 4)
        boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
        if self.kind == BOX:
            prompts = PointPrompts.from_boxes(boxes)
        else:
            prompts = PointPrompts.from_masks(np.concatenate(masks))
        prompts.validate_for_image(height, width)
        return LoadedPhoto(
            name,
            hash_content(content),
            rgb,
            prompts,
            tuple(region.region_id for region in regions),
            boxes,
            tuple(left_out),
            self.prompt_hash(index),
        )


def read_source(root: str | Path, source: str, source_hash: str) -> np.ndarray:
    """The photo that stored tokens belong to, (H,W,3) uint8 RGB.

    Args:
        root: the folder of all photos.
        source: of the tokens.
        source_hash: of the tokens.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is another photo than when its tokens were made, or none.
    """
    path = Path(root) / source
    if not path.is_file():
        raise FileNotFoundError(
            f"root: no photo {source} in {root}; name the folder the tokens were built from"
        )
    content = path.read_bytes()
    if hash_content(content) != source_hash:
        raise ValueError(
            f"source: {path} has changed since its tokens were made; run `tap tokens build` again"
        )
    return load_encoded(content, name=str(path))


def hash_content(content: bytes) -> str:
    """SHA-256 of a file's content, as stores keep it."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file; empty where there is none that can be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def _read_mask(region: RegionAnnotation, size_hw: tuple[int, int]) -> np.ndarray:
    if region.rle is None:
        raise ValueError("no mask, which is asked for as the prompt")
    mask = decode_rle(region.rle)
    if mask.shape != size_hw:
        raise ValueError(f"expected a mask of {size_hw} (height, width), got {mask.shape}")
    if not mask.any():
        raise ValueError("its mask is empty")
    return mask


def _digest(annotations: Sequence[Mapping[str, Any]]) -> str:
    """Of all that decides about prompts; what else an annotation says does not."""
    keys = ("id", "bbox", "segmentation", "iscrowd", "category_id")
    content = json.dumps([[each.get(key) for key in keys] for each in annotations])
    return hash_content(content.encode())


def _require_distinct(names: Sequence[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"photos: expected each once, got {repeated[:3]} more than once")
