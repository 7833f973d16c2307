"""Ground truth of COCO- and LVIS-style files as they are published: polygons, crowds, two folders.

Also the boxes that a detector found on the same photos.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tokenize_anything.data.coco_lvis import category_names, read_coco_json
from tokenize_anything.evaluation.runner import WorkItem
from tokenize_anything.geometry import decode_rle, encode_rle
from tokenize_anything.image_loading import load_image

_MIN_SIDE = 0.01  # pixels; boxes with a shorter side are prompts of one pixel
_LISTED = 5


@dataclass(frozen=True, eq=False)
class TruthFile:
    """A checked annotation file.

    content: the JSON as read.
    by_image: image id to its annotations in the order of the file, crowds among them.
    sizes_hw: image id to height and width.
    category_names: category id to name, in the order of the file.
    """

    path: Path
    content: dict[str, Any]
    by_image: dict[Any, list[dict[str, Any]]]
    sizes_hw: dict[Any, tuple[int, int]]
    category_names: dict[Any, str]

    @property
    def is_lvis(self) -> bool:
        """Whether it says which absences were verified, as LVIS does for each photo."""
        images, categories = self.content["images"], self.content.get("categories") or [{}]
        return "neg_category_ids" in images[0] and "frequency" in categories[0]

    def regions(self, image_id: Any, *, with_crowds: bool = False) -> list[dict[str, Any]]:
        """Annotations of one photo."""
        found = self.by_image[image_id]
        return found if with_crowds else [each for each in found if not each.get("iscrowd")]


def read_truth(annotations: str | Path) -> TruthFile:
    """Read and check a COCO- or LVIS-style JSON.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not COCO-style, an entry that is damaged or refers to an unknown photo or
            category, or no region at all.
    """
    path = Path(annotations)
    content = read_coco_json(path)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for position, image in enumerate(content["images"]):
        _require(image, ("id", "height", "width"), f"annotations: {path}: image {position}")
        by_image[image["id"]] = []
    names = category_names(content, path)
    for position, annotation in enumerate(content["annotations"]):
        where = f"annotations: {path}: annotation {position}"
        _require(annotation, ("id", "image_id", "bbox"), where)
        _check_references(annotation, by_image, names, where)
        by_image[annotation["image_id"]].append(annotation)
    if not content["annotations"]:
        raise ValueError(f"annotations: {path} is an empty split: no region on any photo")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    return TruthFile(path, content, by_image, sizes, names)


def photo_path(image: Mapping[str, Any], folder: str | Path) -> Path:
    """Where a photo lies: `file_name`, else the end of `coco_url`, as in LVIS.

    LVIS takes photos from two COCO folders; `folder` is either the one that holds them all, or the
    one that holds `train2017` and `val2017`.

    Raises:
        ValueError: the entry names no file.
    """
    folder, url = Path(folder), image.get("coco_url")
    place = PurePosixPath(image.get("file_name") or url or "")
    if not place.name:
        raise ValueError(
            f"annotations: image {image['id']} has neither file_name nor coco_url; expected one"
        )
    if not url:
        return folder / place
    split = folder / PurePosixPath(url).parent.name / PurePosixPath(url).name
    return split if split.is_file() else folder / (image.get("file_name") or place.name)


def load_photo(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """Decode a photo (H,W,3) uint8 RGB that must have the size its annotations are for.

    Raises:
        ValueError: another size, or a damaged file.
    """
    rgb = load_image(path)
    if rgb.shape[:2] != size_hw:
        raise ValueError(
            f"images: {path} has height and width {rgb.shape[:2]}, its annotations are for "
            f"{size_hw}; give the photos that were annotated"
        )
    return rgb


def truth_items(
    truth: TruthFile, folder: str | Path, contents: Mapping[Any, Any]
) -> list[WorkItem]:
    """One item per photo of the file, in its order; photos without content need no file."""
    return [
        WorkItem(
            image["id"],
            (photo_path(image, folder),) if image["id"] in contents else (),
            contents.get(image["id"]),
        )
        for image in truth.content["images"]
    ]


def prompt_boxes(boxes_xywh: Any, height: int, width: int, *, where: str) -> np.ndarray:
    """Annotated boxes as prompts: (R,4) x0, y0, x1, y1 that all have area and touch the photo.

    Args:
        boxes_xywh: (R,4) x0, y0, width, height in pixels of the photo.
        height: of the photo.
        width: of the photo.
        where: whose boxes they are; the error message starts with it.

    Raises:
        ValueError: boxes that are not four finite numbers, or that lie outside the photo.
    """
    boxes = np.asarray(boxes_xywh, np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise ValueError(f"{where}: expected finite numbers in bbox, got {boxes.tolist()!r:.99}")
    low, size = boxes[:, :2], boxes[:, 2:]
    size = np.where(size < _MIN_SIDE, 1.0, size)
    limits = np.array([width, height])
    is_outside = ((low >= limits + 1) | (low + size <= -1)).any(axis=1)
    if is_outside.any():
        raise ValueError(
            f"{where}: expected boxes on a photo of width {width} and height {height}, got "
            f"{boxes[is_outside][0].tolist()} (x, y, width, height); they belong to another data "
            "set, or to photos of another size"
        )
    low = np.clip(low, None, limits - 1)
    return np.concatenate([low, np.maximum(low + size, _MIN_SIDE)], axis=1)


def truth_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H,W) bool mask of a COCO segmentation, see `truth_rle`."""
    return decode_rle(truth_rle(segmentation, height, width))


def truth_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation (polygons, or a run-length code of either kind) as a compressed code.

    Raises:
        ImportError: polygons, and the extra is missing.
        ValueError: a damaged code, or one of another size than the photo.
    """
    if not isinstance(segmentation, Mapping):
        codes = mask_codes()
        return codes.merge(codes.frPyObjects(segmentation, height, width))
    if tuple(segmentation.get("size", ())) != (height, width):
        raise ValueError(
            f"segmentation: expected a mask of the photo's height {height} and width {width}, got "
            f"{segmentation.get('size')}"
        )
    if isinstance(segmentation.get("counts"), str | bytes):
        return dict(segmentation)
    return encode_rle(decode_rle(segmentation))


def mask_codes() -> Any:
    """The run-length code functions of faster-coco-eval, those of pycocotools in all respects.

    Raises:
        ImportError: the extra is missing.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise ImportError("polygons and AP need: pip install tokenize-anything[eval]") from error
    return mask


# --- detections ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes that a detector found on one photo, in its order.

    boxes_xywh: (R,4). category_ids: R ids. scores: (R,).
    """

    boxes_xywh: np.ndarray
    category_ids: list[Any]
    scores: np.ndarray


def read_detections(path: str | Path, truth: TruthFile) -> dict[Any, Detections]:
    """Read a COCO result file (a list of image_id, category_id, bbox, score) for known photos.

    Returns:
        Photo id to its detections; photos without any are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a list, or photos or categories that the annotations do not have.
    """
    entries = _read_list(Path(path))
    where = f"detections: {path}"
    for position, entry in enumerate(entries):
        _require(entry, ("image_id", "category_id", "bbox", "score"), f"{where}: {position}")
    for key, known, what in (
        ("image_id", truth.by_image, "photos"),
        ("category_id", truth.category_names, "categories"),
    ):
        unknown = [entry[key] for entry in entries if entry[key] not in known]
        if unknown:
            raise ValueError(
                f"{where}: {len(unknown)} of {len(entries)} detections are of {what} that "
                f"{truth.path.name} does not have, first {key} {sorted(set(unknown))[:_LISTED]}; "
                "give the detections of this data set"
            )
    grouped: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault(entry["image_id"], []).append(entry)
    del entries  # large files: each photo's dicts go as soon as its arrays are made
    return {image_id: _columns(grouped.pop(image_id), where) for image_id in list(grouped)}


def _columns(entries: Sequence[Mapping[str, Any]], where: str) -> Detections:
    scores = np.array([entry["score"] for entry in entries], np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"{where}: expected finite scores, got {scores.tolist()!r:.99}")
    for entry in entries:
        if not _is_box(entry["bbox"]):
            raise ValueError(
                f"{where}: expected bbox as 4 finite numbers x, y, w, h, got {entry['bbox']!r:.99}"
            )
    boxes = np.array([entry["bbox"] for entry in entries], np.float64)
    return Detections(boxes, [entry["category_id"] for entry in entries], scores)


def _read_list(path: Path) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"detections: no file at {path}")
    try:
        entries = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"detections: {path} is not JSON ({error})") from error
    if not isinstance(entries, list):
        raise ValueError(
            f"detections: {path} holds a {type(entries).__name__}; expected a list of results "
            "with image_id, category_id, bbox and score"
        )
    if not entries:
        raise ValueError(f"detections: {path} holds no detection")
    return entries


def _require(entry: Any, keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if not isinstance(entry, Mapping) or entry.get(key) is None]
    if missing:
        raise ValueError(
            f"{where}: expected the keys {list(keys)}, {missing} missing in {entry!r:.99}"
        )


def _check_references(
    annotation: Mapping[str, Any], images: Mapping[Any, Any], names: Mapping[Any, str], where: str
) -> None:
    if annotation["image_id"] not in images:
        raise ValueError(
            f"{where} is of image {annotation['image_id']}, which is not among the {len(images)} "
            "images of the file"
        )
    category = annotation.get("category_id")
    if category is not None and names and category not in names:
        raise ValueError(f"{where} is of category {category}, which the file does not list")
    if not _is_box(annotation["bbox"]):
        raise ValueError(
            f"{where}: expected bbox as 4 finite numbers x, y, w, h, got {annotation['bbox']!r:.99}"
        )


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in box)
