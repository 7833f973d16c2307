"""Photos with one JSON file each, as SA-1B has them: beside each other in a folder, or in tars.

The JSON has `image` (`width`, `height`) and `annotations`, each with `id`, `bbox` (x, y, w, h) and
`segmentation` (a run-length mask). Three further keys are this library's: `text_index`, `captions`
and `is_whole_image` say what `RegionAnnotation` says.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from tokenize_anything.data.samples import ImageRecord, RegionAnnotation

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"])
MIN_SIDE = 2.0


class PhotoFolder(Sequence[ImageRecord]):
    """All photos of a folder and the folders in it that have a JSON file beside them.

    A record is read when it is asked for.

    Args:
        folder: searched once, now.

    Attributes:
        problems: photos without JSON and JSON without photo, a line each.

    Raises:
        FileNotFoundError: no such folder, or no photo with JSON in it.
    """

    def __init__(self, folder: str | Path) -> None:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"photo_folder: no folder at {folder}")
        files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
        self.paths, self.problems = pair_names(files)
        if not self.paths:
            raise FileNotFoundError(
                f"photo_folder: expected photos with a JSON file beside each in {folder}, got none"
            )

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        """Read one record, or those of a slice; see `parse_record` for what can be wrong."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        path = Path(self.paths[index])
        return parse_record(path.with_suffix(".json").read_bytes(), path)


def pair_names(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of images that have a JSON of the same stem, sorted; and a line for each other file."""
    images: dict[str, str] = {}
    documents = set()
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            images[stem] = name
        elif suffix == ".json":
            documents.add(stem)
    problems = [f"{images[stem]}: no JSON beside the image" for stem in images.keys() - documents]
    problems += [f"{stem}.json: no image beside the JSON" for stem in documents - images.keys()]
    return sorted(images[stem] for stem in images.keys() & documents), sorted(problems)


def parse_record(content: bytes, path: Path, encoded: bytes | None = None) -> ImageRecord:
    """Make a record of a JSON file; regions that cannot be used are named in its `skipped`.

    Args:
        content: the JSON.
        path: of the image.
        encoded: content of the image file, where it is no file of its own.

    Raises:
        ValueError: not JSON, or not of SA-1B's layout; the message names the image.
    """
    try:
        document = json.loads(content)
        size = int(document["image"]["width"]), int(document["image"]["height"])
        annotations = list(document["annotations"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: expected JSON with image (width, height) and annotations beside it, got "
            f"{content[:40]!r} ({type(error).__name__}: {error})"
        ) from error
    regions, skipped = [], []
    for position, annotation in enumerate(annotations):
        try:
            regions.append(_parse_region(annotation, size))
        except ValueError as error:
            identity = annotation.get("id") if isinstance(annotation, Mapping) else None
            name = f"at position {position}" if identity is None else str(identity)
            skipped.append(f"{path}: region {name}: {error}")
    width, height = size
    return ImageRecord(path, height, width, tuple(regions), encoded, tuple(skipped))


def _parse_region(annotation: Any, size_wh: tuple[int, int]) -> RegionAnnotation:
    if not isinstance(annotation, Mapping):
        raise ValueError(f"expected keys and values, got {annotation!r:.60}")
    rle = annotation.get("segmentation")
    if rle is not None and not isinstance(rle, Mapping):
        raise ValueError(f"expected a run-length mask, got a {type(rle).__name__}")
    region_id = annotation.get("id")
    return RegionAnnotation(
        box_xyxy=_parse_box(annotation.get("bbox"), size_wh),
        rle=None if rle is None else dict(rle),
        text_index=int(annotation.get("text_index", -1)),
        captions=tuple(annotation.get("captions", ())),
        is_whole_image=bool(annotation.get("is_whole_image", False)),
        region_id=None if region_id is None else int(region_id),
    )


def _parse_box(box: Any, size_wh: tuple[int, int]) -> tuple[float, float, float, float]:
    """Corners of a box (x, y, w, h) that lies in the image, at least in part."""
    is_four = isinstance(box, list) and len(box) == 4
    if not is_four or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        raise ValueError(f"expected bbox as 4 finite numbers x, y, w, h, got {box!r:.60}")
    x, y, width, height = map(float, box)
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"expected a box of at least {MIN_SIDE:g} pixels a side, got {box}")
    if x >= size_wh[0] or y >= size_wh[1] or x + width <= 0 or y + height <= 0:
        raise ValueError(f"the box {box} lies outside the image of {size_wh} (width, height)")
    return x, y, x + width, y + height
