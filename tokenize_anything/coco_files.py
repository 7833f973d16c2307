"""COCO and Label Studio files of many photos, written photo by photo from a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.geometry import decode_rle
from tokenize_anything.region_exports import NO_NAME, to_label_studio
from tokenize_anything.region_polygons import mask_to_polygons
from tokenize_anything.regions import RegionPredictions


@dataclass(frozen=True)
class PhotoAnnotations:
    """The regions of one photo as COCO annotations.

    file_name: of the photo, relative to a folder of all photos.
    height, width: of the photo in pixels.
    annotations: as `RegionPredictions.to_coco` makes them with `first_id=0`.
    """

    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]]

    @classmethod
    def of_regions(
        cls, file_name: str, regions: RegionPredictions, names: Sequence[str]
    ) -> PhotoAnnotations:
        """Annotations whose categories count in `names`, see `list_categories`."""
        ids = {category["name"]: category["id"] for category in list_categories(names)}
        category_ids = ids if all(regions.concepts) else None
        return cls(file_name, *regions.image_size_hw, regions.to_coco(0, category_ids, first_id=0))

    def regions(self) -> RegionPredictions:
        """The regions again, without their vectors."""
        return RegionPredictions.from_coco(self.annotations, self.height, self.width)

    def to_plain(self) -> dict[str, Any]:
        """For JSON; `PhotoAnnotations(**plain)` reads it back."""
        return dict(vars(self))

    def numbered(self, image_id: int, first_id: int, polygons: bool) -> Iterator[dict[str, Any]]:
        """The annotations with ids of their own in a file of many photos."""
        for row, annotation in enumerate(self.annotations):
            numbers: dict[str, Any] = {"id": first_id + row, "image_id": image_id}
            if "parent_id" in annotation:
                numbers["parent_id"] = first_id + annotation["parent_id"]
            if polygons:
                outlines = mask_to_polygons(decode_rle(annotation["segmentation"]))
                numbers["segmentation"] = [outline.ravel().tolist() for outline in outlines]
            yield annotation | numbers


def list_categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO categories of a vocabulary, numbered from 1; of no vocabulary one that fits all."""
    return [{"id": number, "name": name} for number, name in enumerate(names or [NO_NAME], 1)]


def write_coco(
    path: Path, photos: Iterable[PhotoAnnotations], names: Sequence[str], *, polygons: bool = False
) -> int:
    """Write one COCO file of all photos, whole or not at all; one photo is in memory at a time.

    Args:
        path: a .json file.
        photos: images and annotations are numbered from 1 in their order. Read twice, so no
            iterator.
        names: the vocabulary, see `list_categories`.
        polygons: outlines in place of run-length codes; holes are lost.

    Returns:
        The number of regions.
    """
    with replace_on_success(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(f'{{"categories": {json.dumps(list_categories(names))},\n"images": ')
        _write_list(stream, _images(photos))
        stream.write(',\n"annotations": ')
        num_regions = _write_list(stream, _annotations(photos, polygons))
        stream.write("}\n")
    return num_regions


def write_label_studio(
    path: Path, photos: Iterable[PhotoAnnotations], url_prefix: str, model_version: str
) -> None:
    """Write tasks of Label Studio for all photos, whole or not at all; see `to_label_studio`.

    Args:
        path: a .json file.
        photos: one is in memory at a time.
        url_prefix: what comes before the file name to make the address of a photo.
        model_version: shown beside the predictions.
    """
    with replace_on_success(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        tasks = (
            to_label_studio(
                photo.regions(), url_prefix + photo.file_name, model_version=model_version
            )
            for photo in photos
        )
        _write_list(stream, tasks)
        stream.write("\n")


def _images(photos: Iterable[PhotoAnnotations]) -> Iterator[Mapping[str, Any]]:
    for number, photo in enumerate(photos, 1):
        size = {"height": photo.height, "width": photo.width}
        yield {"id": number, "file_name": photo.file_name, **size}


def _annotations(photos: Iterable[PhotoAnnotations], polygons: bool) -> Iterator[Mapping[str, Any]]:
    first_id = 1
    for number, photo in enumerate(photos, 1):
        yield from photo.numbered(number, first_id, polygons)
        first_id += len(photo.annotations)


def _write_list(stream: IO[str], items: Iterable[Mapping[str, Any]]) -> int:
    """Write a JSON list with an item per line; returns how many."""
    count = 0
    stream.write("[")
    for item in items:
        stream.write((",\n" if count else "\n") + json.dumps(item))
        count += 1
    stream.write("\n]" if count else "]")
    return count
