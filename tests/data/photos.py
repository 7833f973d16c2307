"""Photos of coloured shapes with COCO annotations, for tests of readers and trainers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tokenize_anything.geometry import encode_rle, masks_to_boxes

SHAPES = ("ball", "brick", "kite")
COLOURS = {"red": (230, 30, 40), "green": (30, 210, 60), "blue": (40, 60, 235)}
SIZES_HW = ((47, 61), (53, 43), (59, 67), (41, 73))


def draw_shape(shape: str, height: int, width: int, centre_xy: tuple[int, int]) -> np.ndarray:
    """(H,W) bool mask of one shape."""
    mask = np.zeros((height, width), np.uint8)
    x, y = centre_xy
    if shape == "ball":
        cv2.circle(mask, (x, y), 9, 1, -1)
    elif shape == "brick":
        cv2.rectangle(mask, (x - 11, y - 6), (x + 11, y + 6), 1, -1)
    else:
        corners = [(x, y - 12), (x + 9, y), (x, y + 12), (x - 9, y)]
        cv2.fillPoly(mask, [np.array(corners, np.int32)], 1)
    return mask.astype(bool)


def annotate(mask: np.ndarray, annotation_id: int, image_id: int, **more: Any) -> dict[str, Any]:
    """A COCO annotation with a run-length mask."""
    x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
    return {
        "id": annotation_id,
        "image_id": image_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": encode_rle(mask),
        "iscrowd": 0,
        **more,
    }


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_photos(folder: Path, count: int = 4) -> Path:
    """Write `count` photos of two shapes each to `folder`/images; returns the annotation file.

    The first shape of each photo has a name, the second a name or a caption, and one box without a
    mask is named too. Every second photo has a caption of its own.
    """
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        height, width = SIZES_HW[index % len(SIZES_HW)]
        colours = [list(COLOURS)[(index + step) % 3] for step in range(2)]
        shapes = [SHAPES[(index + 2 * step) % 3] for step in range(2)]
        centres = [(width // 4 + 2, height // 3), (3 * width // 4 - 2, 2 * height // 3)]
        photo = np.random.default_rng(index).integers(90, 130, (height, width, 3), dtype=np.uint8)
        for step, (shape, colour) in enumerate(zip(shapes, colours, strict=True)):
            mask = draw_shape(shape, height, width, centres[step])
            photo[mask] = COLOURS[colour]
            named = {"category_id": SHAPES.index(shape) + 1}
            described = {"captions": [f"a {colour} {shape} in the corner"]}
            more = described if step and index % 2 else named
            annotations.append(annotate(mask, len(annotations) + 1, index + 1, **more))
        annotations.append(_box_only(len(annotations) + 1, index + 1, shapes[0]))
        image = {"id": index + 1, "file_name": f"{index}.png", "height": height, "width": width}
        if index % 2 == 0:
            image["captions"] = [f"a {colours[0]} {shapes[0]} and a {colours[1]} {shapes[1]}"]
        images.append(image)
        cv2.imwrite(str(folder / "images" / f"{index}.png"), photo[..., ::-1])
    return write_json(folder / "photos.json", coco(images, annotations))


def coco(images: Sequence[Any], annotations: Sequence[Any]) -> dict[str, Any]:
    """COCO content with the shapes as categories."""
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(SHAPES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _box_only(annotation_id: int, image_id: int, shape: str) -> dict[str, Any]:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "bbox": [5.5, 7.0, 20.25, 17.0],
        "category_id": SHAPES.index(shape) + 1,
    }
