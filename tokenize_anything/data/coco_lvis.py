"""Read region annotations from COCO-style JSON, with masks, names and captions."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable
from tokenize_anything.geometry import encode_rle, rle_area
from tokenize_anything.region_polygons import polygons_to_mask

logger = logging.getLogger(__name__)

MIN_SIDE = 2.0


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"annotations: {path} is not JSON ({error})") from error
    found = content if isinstance(content, dict) else {}
    missing = [key for key in ("images", "annotations") if not isinstance(found.get(key), list)]
    if missing:
        raise ValueError(
            f"annotations: {path} lacks the lists {missing}; expected COCO-style JSON with images "
            f"and annotations"
        )
    return found


def category_names(content: Mapping[str, Any], path: str | Path) -> dict[Any, str]:
    """Category id to name.

    Raises:
        ValueError: a category without id or name.
    """
    names = {}
    for category in content.get("categories") or []:
        _require_keys(category, ("id", "name"), f"annotations: {path}: category")
        name = category["name"]
        if not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"annotations: {path}: category {category['id']} has no name; expected text, "
                f"got {name!r}"
            )
        names[category["id"]] = name
    return names


def read_regions(
    annotation_files: Sequence[str | Path], image_folder: str | Path
) -> tuple[list[ImageRecord], TextTable]:
    """Collect the regions of all files, image by image.

    Crowd annotations, empty masks, and boxes under 2 pixels or outside their image are left out;
    but for crowds, a warning counts them and names the first. A mask is a run-length
    code or polygons. A region's text is its category name, else its first caption. An image with
    captions gains a whole-image region for each of them, as it does for an annotation that has a
    caption and no box, as COCO's caption files have. Images without any region are left out.

    Args:
        annotation_files: COCO-style JSON files; the same image may appear in several.
        image_folder: where `file_name` is looked up; no image is opened here.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not COCO-style JSON, an entry that is damaged or refers to an unknown image or
            category (the message names it), or no usable region at all.
    """
    collector = _Collector()
    for file in annotation_files:
        collector.add_file(file)
    records = collector.records(Path(image_folder))
    if not records:
        raise ValueError(
            f"annotations: no usable region in {[str(file) for file in annotation_files]}; "
            f"expected boxes of at least {MIN_SIDE:g} pixels that are not crowds"
        )
    if collector.left_out:
        logger.warning(
            "left out %d regions that cannot be used, the first: %s",
            len(collector.left_out), "; ".join(collector.left_out[:3]),
        )  # fmt: skip
    return records, collector.texts.table()


class _TextIndex:
    """Gives each distinct text a row, in order of appearance."""

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


class _Collector:
    """Merges files by the names of their images."""

    def __init__(self) -> None:
        self.texts = _TextIndex()
        self.sizes_hw: dict[str, tuple[int, int]] = {}
        self.regions: dict[str, list[RegionAnnotation]] = {}
        self.captions: dict[str, set[str]] = {}
        self.left_out: list[str] = []

    def add_file(self, path: str | Path) -> None:
        content = read_coco_json(path)
        names = category_names(content, path)
        file_names = {}
        for image in content["images"]:
            _require_keys(
                image, ("id", "file_name", "height", "width"), f"annotations: {path}: image"
            )
            file_names[image["id"]] = image["file_name"]
            self._add_image(image, f"annotations: {path}: image {image['id']}")
        for position, annotation in enumerate(content["annotations"]):
            where = f"annotations: {path}: annotation {_identity(annotation, position)}"
            is_of_image = _is_caption_of_image(annotation)
            _require_keys(annotation, ("image_id",) if is_of_image else ("image_id", "bbox"), where)
            if annotation["image_id"] not in file_names:
                raise ValueError(
                    f"{where} is of image {annotation['image_id']}, which is not among the "
                    f"{len(file_names)} images of the file"
                )
            file_name = file_names[annotation["image_id"]]
            if is_of_image:
                self._add_whole_image(file_name, _captions(annotation, where))
            else:
                self._add_annotation(annotation, names, file_name, where)

    def records(self, image_folder: Path) -> list[ImageRecord]:
        return [
            ImageRecord(image_folder / name, *size_hw, tuple(self.regions[name]))
            for name, size_hw in self.sizes_hw.items()
            if self.regions[name]
        ]

    def _add_image(self, image: Mapping[str, Any], where: str) -> None:
        name, size_hw = image["file_name"], (image["height"], image["width"])
        if self.sizes_hw.setdefault(name, size_hw) != size_hw:
            raise ValueError(
                f"{where}: {name} is {size_hw} (height, width), but {self.sizes_hw[name]} elsewhere"
            )
        self.regions.setdefault(name, [])
        self._add_whole_image(name, _captions(image, where))

    def _add_whole_image(self, file_name: str, captions: Sequence[str]) -> None:
        """One region for each caption that is new to the image."""
        known = self.captions.setdefault(file_name, set())
        height, width = self.sizes_hw[file_name]
        box = (0.0, 0.0, float(width), float(height))
        for caption in captions:
            if caption not in known:
                known.add(caption)
                region = RegionAnnotation(
                    box, None, self.texts.add(caption), (caption,), is_whole_image=True
                )
                self.regions[file_name].append(region)

    def _add_annotation(
        self, annotation: Mapping[str, Any], names: Mapping[Any, str], file_name: str, where: str
    ) -> None:
        x, y, width, height = _checked_box(annotation["bbox"], where)
        rle = _as_rle(annotation.get("segmentation"), self.sizes_hw[file_name], where)
        area = _checked_area(rle, self.sizes_hw[file_name], where) if rle else None
        problem = _problem((x, y, width, height), area, self.sizes_hw[file_name])
        if annotation.get("iscrowd") or problem:
            self.left_out += [f"{where}: {problem}"] if problem else []
            return
        captions = _captions(annotation, where)
        text = _category(annotation, names, where) or (captions[0] if captions else None)
        text_index = self.texts.add(text) if text else -1
        box = (x, y, x + width, y + height)
        region_id = annotation.get("id")
        region_id = region_id if isinstance(region_id, int) else None
        self.regions[file_name].append(
            RegionAnnotation(box, rle, text_index, captions, region_id=region_id)
        )


def _problem(
    box_xywh: tuple[float, float, float, float], area: int | None, size_hw: tuple[int, int]
) -> str:
    """Why a region cannot be used; empty where it can."""
    x, y, width, height = box_xywh
    if area == 0:
        return "its mask is empty"
    if min(width, height) < MIN_SIDE:
        return f"its box is under {MIN_SIDE:g} pixels wide or high"
    if x >= size_hw[1] or y >= size_hw[0] or x + width <= 0 or y + height <= 0:
        return "its box lies outside the image"
    return ""


def _identity(entry: Any, position: int) -> Any:
    return entry.get("id", f"at position {position}") if isinstance(entry, Mapping) else position


def _require_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if not isinstance(entry, Mapping) or entry.get(key) is None]
    if missing:
        raise ValueError(
            f"{where}: expected the keys {list(keys)}, {missing} missing in {entry!r:.99}"
        )


def _category(annotation: Mapping[str, Any], names: Mapping[Any, str], where: str) -> str | None:
    """The region's name, or None when it has none; files without categories name nothing."""
    category = annotation.get("category_id")
    if category is None or not names:
        return None
    if category not in names:
        raise ValueError(f"{where} is of category {category}, which the file does not list")
    return names[category]


def _is_caption_of_image(annotation: Any) -> bool:
    """Whether an annotation describes its image and points at nothing in it."""
    if not isinstance(annotation, Mapping) or annotation.get("bbox") is not None:
        return False
    return bool(annotation.get("caption") or annotation.get("captions"))


def _captions(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """What `captions`, a list, and `caption`, a text, say."""
    captions = entry.get("captions") or []
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{where}: expected captions as a list of texts, got {captions!r:.99}")
    single = entry.get("caption") or ""
    if not isinstance(single, str):
        raise ValueError(f"{where}: expected caption as a text, got {single!r:.99}")
    return tuple(caption for caption in (*captions, single) if caption.strip())


def _checked_box(box: Any, where: str) -> tuple[float, float, float, float]:
    is_four = isinstance(box, list) and len(box) == 4
    if not is_four or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        raise ValueError(f"{where}: expected bbox as 4 finite numbers x, y, w, h, got {box!r:.99}")
    x, y, width, height = map(float, box)
    return x, y, width, height


def _as_rle(segmentation: Any, size_hw: tuple[int, int], where: str) -> dict[str, Any] | None:
    """A mask as it came, or made from polygons; None where there is none."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return segmentation
    if not isinstance(segmentation, list):
        raise ValueError(
            f"{where}: expected segmentation as a run-length code or a list of polygons, got a "
            f"{type(segmentation).__name__}"
        )
    try:
        return encode_rle(polygons_to_mask(segmentation, *size_hw))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: segmentation: {error}") from error


def _checked_area(rle: dict[str, Any], size_hw: tuple[int, int], where: str) -> int:
    """Pixels of a mask that has the size of its image."""
    try:
        area = rle_area(rle)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if tuple(rle["size"]) != size_hw:
        raise ValueError(
            f"{where}: expected a mask of the image's size {size_hw} (height, width), got "
            f"{tuple(rle['size'])}"
        )
    return area
