"""Photos with masks as their publishers lay them out: SA-1B's folders and tars, and COCO JSON.

Each has a name that tells it from the others of its data set, known without opening it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from tokenize_anything.data.coco_lvis import category_names, read_coco_json
from tokenize_anything.data.photo_json import PhotoFolder, parse_record
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.data.shards import ShardRecords, load_index
from tokenize_anything.geometry import encode_rle
from tokenize_anything.region_polygons import polygons_to_mask


@dataclass(frozen=True, eq=False)
class AnnotatedPhotos:
    """The photos of one data set, in a fixed order.

    records: read when they are asked for; see `parse_record` and `ShardRecords` for what can be
        wrong with one.
    names: one each, no two alike: the path within the data set.
    problems: what cannot be used, a line each, such as a photo without JSON or a shard cut short.
    """

    records: Sequence[ImageRecord]
    names: Sequence[str]
    problems: tuple[str, ...]


def open_photos(
    data: str | Path, *, index_folder: str | Path, images: str | Path | None = None
) -> AnnotatedPhotos:
    """Find the photos of a data set; none is opened.

    Args:
        data: a folder with `sa_*.jpg` and `sa_*.json`, or with `*.tar` that hold such files; one
            such tar; or a JSON in the format of COCO.
        index_folder: where the places of the members of tars are kept, so that a second run need
            not look for them again.
        images: folder of the photos of a COCO JSON.

    Raises:
        FileNotFoundError: nothing there, or no photo with annotations in it.
        ValueError: a tar that cannot be read, a JSON that is not COCO's, a category without name,
            a folder with tars and photos.
    """
    place = Path(data)
    if place.suffix == ".json":
        if images is None:
            raise ValueError(f"images: expected the folder of the photos of {place}, got none")
        return _open_coco(place, Path(images))
    if images is not None:
        raise ValueError(f"images: {place} is no COCO JSON, its photos lie beside their JSON")
    if place.is_file():
        return _open_tars([place], place.parent, Path(index_folder))
    if not place.is_dir():
        raise FileNotFoundError(f"data: nothing at {place}; expected a folder, .tar or .json")
    tars = sorted(place.rglob("*.tar"))
    if tars:
        return _open_tars(tars, place, Path(index_folder))
    folder = PhotoFolder(place)
    names = [os.path.relpath(path, place) for path in folder.paths]
    return AnnotatedPhotos(folder, names, tuple(folder.problems))


def _open_tars(tars: Sequence[Path], root: Path, index_folder: Path) -> AnnotatedPhotos:
    loose = next((path for tar in tars for path in tar.parent.glob("sa_*.jpg")), None)
    if loose is not None:
        raise ValueError(
            f"data: {root} holds tars and photos beside them ({loose.name}), perhaps the same; "
            f"name the folder of one kind"
        )
    records = ShardRecords(tars, index_folder)
    names = [
        f"{tar.relative_to(root)}/{name.decode()}"
        for tar in tars
        for name in load_index(tar, index_folder).names.tolist()
    ]
    return AnnotatedPhotos(records, names, tuple(records.problems))


def _open_coco(file: Path, images: Path) -> AnnotatedPhotos:
    content = read_coco_json(file)
    categories = category_names(content, file)
    entries, problems = _coco_images(content["images"], file)
    regions: dict[Any, list[Any]] = {image_id: [] for image_id in entries}
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id") if isinstance(annotation, Mapping) else None
        if isinstance(image_id, int | str) and image_id in regions:
            regions[image_id].append(annotation)
        else:
            problems.append(f"{file}: annotation of no image of the file: {annotation!r:.99}")
    kept = {entry["file_name"]: key for key, entry in entries.items() if regions[key]}
    if not kept:
        raise FileNotFoundError(f"annotations: {file} has no image with annotations")
    names = sorted(kept)
    picked = [(name, entries[kept[name]], regions[kept[name]]) for name in names]
    records = CocoRecords(picked, images, frozenset(categories))
    return AnnotatedPhotos(records, names, tuple(problems))


def _coco_images(
    listed: Sequence[Any], file: Path
) -> tuple[dict[Any, Mapping[str, Any]], list[str]]:
    """Image entries by id, and a line for each that cannot be used."""
    entries: dict[Any, Mapping[str, Any]] = {}
    names: set[str] = set()
    problems = []
    for entry in listed:
        found = entry if isinstance(entry, Mapping) else {}
        key, name = found.get("id"), found.get("file_name")
        is_whole = isinstance(key, int | str) and isinstance(name, str) and bool(name)
        if not is_whole or key in entries or name in names:
            problems.append(f"{file}: expected image with its own id and file_name: {entry!r:.99}")
        else:
            entries[key] = found
            names.add(str(name))
    return entries, problems


class CocoRecords(Sequence[ImageRecord]):
    """Photos of a COCO JSON by the rules of `parse_record`; polygons become masks.

    A region's id is that of its annotation; a category it need not have.

    Args:
        entries: name, image entry and annotations of each photo.
        images: folder of the photos.
        categories: known ids; an annotation of another one is left out, unless there are none.
    """

    def __init__(
        self,
        entries: Sequence[tuple[str, Mapping[str, Any], Sequence[Any]]],
        images: Path,
        categories: frozenset[Any],
    ) -> None:
        self.entries, self.images, self.categories = entries, images, categories

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        """Make one record, or those of a slice; see `parse_record` for what can be wrong."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        name, entry, annotations = self.entries[index]
        usable, skipped = [], []
        for annotation in annotations:
            try:
                usable.append(self._with_mask(annotation, entry))
            except (ValueError, TypeError, KeyError) as error:
                skipped.append(f"{name}: region {annotation.get('id')}: {error}")
        document = json.dumps({"image": dict(entry), "annotations": usable}).encode()
        record = parse_record(document, self.images / name)
        return dataclasses.replace(record, skipped=(*skipped, *record.skipped))

    def _with_mask(self, annotation: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
        if annotation.get("iscrowd"):
            raise ValueError("a crowd, not one region")
        category = annotation.get("category_id")
        if self.categories and category is not None and category not in self.categories:
            raise ValueError(f"category {category}, which the file does not list")
        segmentation = annotation.get("segmentation")
        keys = ("id", "bbox")
        if isinstance(segmentation, list) and segmentation:
            mask = polygons_to_mask(segmentation, int(entry["height"]), int(entry["width"]))
            segmentation = encode_rle(mask)
        return {**{key: annotation.get(key) for key in keys}, "segmentation": segmentation or None}
