"""Read region annotations from COCO-style JSON (COCO, LVIS, and anyone's own export)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable

MIN_SIDE = 2.0


class _TextIndex:
    """Give each distinct text a row, in order of appearance."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.counts: Counter[int] = Counter()

    def add(self, text: str) -> int:
        row = self.rows.setdefault(text, len(self.rows))
        self.counts[row] += 1
        return row

    def table(self) -> TextTable:
        counts = np.array([self.counts[row] for row in range(len(self.rows))], dtype=np.int64)
        return TextTable(tuple(self.rows), counts)


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """Read the JSON and check that it has the lists of a COCO file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not COCO-style.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotations: no file at {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"annotations: {path} is not JSON ({error})") from error
    missing = [key for key in ("images", "annotations") if key not in content]
    if missing:
        raise ValueError(f"annotations: {path} lacks {missing}; expected COCO-style JSON")
    return content


def read_regions(
    annotation_files: Sequence[str | Path], image_folder: str | Path
) -> tuple[list[ImageRecord], TextTable]:
    """Collect the regions of all files, image by image.

    Crowd annotations and boxes under 2 pixels are left out. A region's text is its category name,
    else its first caption. An image with captions gains a whole-image region for each of them.

    Args:
        annotation_files: COCO-style JSON files; the same image may appear in several.
        image_folder: where `file_name` is looked up.
    """
    texts = _TextIndex()
    images: dict[str, dict[str, Any]] = {}
    regions: dict[str, list[RegionAnnotation]] = {}
    for file in annotation_files:
        content = read_coco_json(file)
        names = {category["id"]: category["name"] for category in content.get("categories", [])}
        file_names = {image["id"]: image["file_name"] for image in content["images"]}
        for image in content["images"]:
            if image["file_name"] not in images:
                images[image["file_name"]] = image
                regions[image["file_name"]] = _whole_image_regions(image, texts)
        for annotation in content["annotations"]:
            region = _region(annotation, names, texts)
            if region is not None:
                regions[file_names[annotation["image_id"]]].append(region)
    records = [
        ImageRecord(Path(image_folder) / name, image["height"], image["width"], tuple(regions[name]))
        for name, image in images.items()
        if regions[name]
    ]
    return records, texts.table()


def _whole_image_regions(image: dict[str, Any], texts: _TextIndex) -> list[RegionAnnotation]:
    box = (0.0, 0.0, float(image["width"]), float(image["height"]))
    return [
        RegionAnnotation(box, None, texts.add(caption), (caption,), is_whole_image=True)
        for caption in image.get("captions", ())
    ]


def _region(
    annotation: dict[str, Any], names: dict[int, str], texts: _TextIndex
) -> RegionAnnotation | None:
    x, y, width, height = annotation["bbox"]
    if annotation.get("iscrowd") or width < MIN_SIDE or height < MIN_SIDE:
        return None
    name = names.get(annotation.get("category_id", -1))
    captions = tuple(annotation.get("captions", ()))
    text = name or (captions[0] if captions else None)
    text_index = texts.add(text) if text else -1
    box = (float(x), float(y), float(x + width), float(y + height))
    return RegionAnnotation(box, annotation.get("segmentation"), text_index, captions)
