"""Ground truth of a COCO-style file, region by region, with the prompts that point at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tokenize_anything.data.coco_lvis import read_coco_json
from tokenize_anything.data.region_captions import name_to_caption
from tokenize_anything.geometry import decode_rle


@dataclass(frozen=True)
class TrueRegion:
    """One annotated region in original pixels.

    mask: (H,W) bool. box_xyxy: its annotated box. name: category name, or None.
    references: texts that describe it: its captions, else its name as a caption.
    """

    annotation_id: int
    mask: np.ndarray
    box_xyxy: tuple[float, float, float, float]
    name: str | None
    references: tuple[str, ...]


@dataclass(frozen=True)
class TrueImage:
    """One photo and its regions."""

    path: Path
    regions: tuple[TrueRegion, ...]


def read_true_images(annotations: str | Path, image_folder: str | Path) -> list[tuple[Path, Any]]:
    """Photos with at least one region that is no crowd, with their raw annotations.

    Raises:
        FileNotFoundError: the file, or photos it names; all of them are listed.
        ValueError: no region in the file.
    """
    content = read_coco_json(annotations)
    names = {category["id"]: category["name"] for category in content.get("categories", [])}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd") and annotation.get("segmentation"):
            name = names.get(annotation.get("category_id", -1))
            named = {**annotation, "name": name}
            by_image.setdefault(annotation["image_id"], []).append(named)
    images = [
        (Path(image_folder) / image["file_name"], by_image[image["id"]])
        for image in content["images"]
        if image["id"] in by_image
    ]
    if not images:
        raise ValueError(f"annotations: {annotations} has no region with a mask")
    missing = [str(path) for path, _ in images if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"image_folder: {len(missing)} of {len(images)} photos are missing, first {missing[:3]}"
        )
    return images


def load_true_images(images: list[tuple[Path, Any]]) -> Iterator[TrueImage]:
    """Decode the masks of each photo, one photo at a time; empty masks are left out."""
    for path, raw_regions in images:
        regions = [_true_region(annotation) for annotation in raw_regions]
        yield TrueImage(path, tuple(region for region in regions if region.mask.any()))


def _true_region(annotation: dict[str, Any]) -> TrueRegion:
    x, y, width, height = annotation["bbox"]
    captions = tuple(annotation.get("captions", ()))
    name = annotation["name"]
    references = captions or ((name_to_caption(name),) if name else ())
    return TrueRegion(
        annotation_id=annotation["id"],
        mask=decode_rle(annotation["segmentation"]).astype(bool),
        box_xyxy=(x, y, x + max(width, 1.0), y + max(height, 1.0)),
        name=name,
        references=references,
    )


def innermost_point(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask (H,W) that is farthest from its border."""
    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(column), int(row)
