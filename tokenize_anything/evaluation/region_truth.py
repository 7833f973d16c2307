"""Ground truth of a COCO-style file, region by region, with the prompts that point at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.data.coco_lvis import category_names, read_coco_json
from tokenize_anything.data.region_captions import name_to_caption
from tokenize_anything.evaluation.coco_truth import truth_mask
from tokenize_anything.geometry import decode_rle


@dataclass(frozen=True)
class TrueRegion:
    """One annotated region in original pixels.

    mask: (H,W) bool; None where only the box is known. box_xyxy: its annotated box. name: category
    name, or None. references: texts that describe it: its captions, else its name as a caption.
    """

    annotation_id: int
    mask: np.ndarray | None
    box_xyxy: tuple[float, float, float, float]
    name: str | None
    references: tuple[str, ...]


@dataclass(frozen=True)
class TrueImage:
    """One photo and its regions."""

    path: Path
    regions: tuple[TrueRegion, ...]


def read_true_images(
    annotations: str | Path, image_folder: str | Path, *, with_boxes: bool = False
) -> list[tuple[Path, Any]]:
    """Photos with at least one region that is no crowd, with their raw annotations.

    Args:
        annotations: COCO-style JSON; `captions` (or `caption`) of an annotation describe it.
        image_folder: where `file_name` is looked up.
        with_boxes: whether regions without a mask count, too.

    Raises:
        FileNotFoundError: the file, or photos it names; all of them are listed.
        ValueError: no region in the file, or an annotation without box or image.
    """
    images = list_true_images(annotations, image_folder, with_boxes=with_boxes)
    missing = [str(path) for path, _ in images if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"image_folder: {len(missing)} of {len(images)} photos are missing, first {missing[:3]}"
        )
    return images


def list_true_images(
    annotations: str | Path, image_folder: str | Path, *, with_boxes: bool = False
) -> list[tuple[Path, Any]]:
    """Like `read_true_images`, for photos that may be missing."""
    content = read_coco_json(annotations)
    names = category_names(content, annotations)
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in content["images"]}
    for position, annotation in enumerate(content["annotations"]):
        image_id = annotation.get("image_id")
        if image_id not in by_image or "bbox" not in annotation:
            raise ValueError(
                f"annotations: {annotations}: annotation {annotation.get('id', position)}: "
                f"expected a bbox and the image_id of a listed image, got {annotation!r:.99}"
            )
        if not annotation.get("iscrowd") and (annotation.get("segmentation") or with_boxes):
            more = {"name": names.get(annotation.get("category_id")), "size_hw": sizes[image_id]}
            by_image[image_id].append({"id": position, **annotation, **more})
    images = [
        (Path(image_folder) / image["file_name"], by_image[image["id"]])
        for image in content["images"]
        if by_image[image["id"]]
    ]
    if not images:
        wanted = "region" if with_boxes else "region with a mask"
        raise ValueError(f"annotations: {annotations} has no {wanted}")
    return images


def load_true_images(images: list[tuple[Path, Any]]) -> Iterator[TrueImage]:
    """Decode the masks of each photo, one photo at a time; empty masks are left out."""
    for path, raw_regions in images:
        yield decode_true_image(path, raw_regions)


def decode_true_image(path: Path, raw_regions: Sequence[dict[str, Any]]) -> TrueImage:
    """One photo of `read_true_images` with its masks decoded; empty masks are left out."""
    regions = [_true_region(annotation) for annotation in raw_regions]
    kept = [region for region in regions if region.mask is None or region.mask.any()]
    return TrueImage(path, tuple(kept))


def _true_region(annotation: dict[str, Any]) -> TrueRegion:
    x, y, width, height = annotation["bbox"]
    captions = annotation.get("captions") or annotation.get("caption") or ()
    captions = (captions,) if isinstance(captions, str) else tuple(captions)
    name, segmentation = annotation["name"], annotation.get("segmentation")
    references = captions or ((name_to_caption(name),) if name else ())
    return TrueRegion(
        annotation_id=annotation["id"],
        mask=_decode_mask(segmentation, annotation["size_hw"]) if segmentation else None,
        box_xyxy=(x, y, x + max(width, 1.0), y + max(height, 1.0)),
        name=name,
        references=references,
    )


def _decode_mask(segmentation: Any, size_hw: tuple[Any, Any]) -> np.ndarray:
    if isinstance(segmentation, dict) and not all(size_hw):
        return decode_rle(segmentation)  # it knows its size, the file does not say the photo's
    return truth_mask(segmentation, *size_hw)
