"""Regions in the files of other programs: Label Studio, YOLO segmentation and Pascal VOC.

FiftyOne, CVAT and most others read the COCO files that `RegionPredictions.to_coco` fills.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np

from tokenize_anything.region_polygons import mask_to_polygons

if TYPE_CHECKING:
    import supervision

    from tokenize_anything.regions import RegionPredictions

NO_NAME = "region"  # what a region without concept is called
_OUTLINE_TOLERANCE = 1.0  # pixels; people edit these outlines by their corners


def to_label_studio(
    regions: RegionPredictions, image_url: str, *, model_version: str = "tokenize_anything"
) -> dict[str, Any]:
    """One task for Label Studio with the regions as predictions, to be put in a JSON list.

    Every part of a region is a polygon of its own, without holes and off by at most a pixel, with
    the first concept as its label. Parts of other regions name their `parentID`.

    Args:
        regions: of one image.
        image_url: where Label Studio finds the image, such as "/data/local-files/?d=a.jpg".
        model_version: shown beside the predictions.
    """
    height, width = regions.image_size_hw
    shared: dict[str, Any] = {"to_name": "image", "image_rotation": 0}
    shared |= {"original_width": width, "original_height": height}
    results: list[dict[str, Any]] = []
    for row, mask in enumerate(regions.masks):
        parent = int(regions.parent_index[row])
        hierarchy = {"parentID": f"region{parent}"} if parent >= 0 else {}
        name = regions.concepts[row][0] if regions.concepts[row] else NO_NAME
        for part, outline in enumerate(mask_to_polygons(mask, tolerance=_OUTLINE_TOLERANCE)):
            points = (100 * outline / [width, height]).round(4).tolist()
            place = {"id": f"region{row}" + (f"-{part}" if part else ""), **shared, **hierarchy}
            value = {"points": points, "closed": True, "polygonlabels": [name]}
            score = round(float(regions.iou_scores[row]), 4)
            results.append(
                place
                | {"from_name": "label", "type": "polygonlabels", "value": value, "score": score}
            )
            if regions.captions[row] and part == 0:
                value = {"points": points, "closed": True, "text": [regions.captions[row]]}
                results.append(place | {"from_name": "caption", "type": "textarea", "value": value})
    score = float(regions.iou_scores.mean()) if len(regions) else 0.0
    prediction = {"model_version": model_version, "score": round(score, 4), "result": results}
    return {"data": {"image": image_url}, "predictions": [prediction]}


def label_studio_config(names: Sequence[str]) -> str:
    """The labeling configuration, XML, of a project that shows what `to_label_studio` wrote.

    Args:
        names: all labels that occur.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    labels = ElementTree.SubElement(view, "PolygonLabels", name="label", toName="image")
    for name in dict.fromkeys([*names, NO_NAME]):
        ElementTree.SubElement(labels, "Label", value=name)
    ElementTree.SubElement(
        view, "TextArea", name="caption", toName="image", perRegion="true", editable="true"
    )
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def export_labels(
    image_path: str | os.PathLike[str],
    regions: RegionPredictions,
    folder: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    layout: Literal["yolo", "voc"],
) -> None:
    """Write the label file of one image, and copy the image beside it.

    The files are those of supervision's `DetectionDataset`. "yolo" makes images/, labels/ (a .txt
    per image with a line per outline) and data.yaml; "voc" makes images/ and annotations/ (an
    .xml per image). A region's first concept is its class. Calls for other images with the same
    `class_names` fill the same folder.

    Args:
        image_path: a file with the pixels of the regions; its name names the label file.
        regions: of the image.
        folder: made where it is missing.
        class_names: all classes, in the order of their numbers.
        layout: "yolo" or "voc".

    Raises:
        ImportError: supervision is not installed.
        FileNotFoundError: no such image.
        ValueError: another layout, or a first concept that is not among the class names.
    """
    dataset_kind = import_supervision().DetectionDataset
    if layout not in ("yolo", "voc"):
        raise ValueError(f"layout: expected 'yolo' or 'voc', got {layout!r}")
    if not Path(image_path).is_file():
        raise FileNotFoundError(f"image_path: no file at {os.fspath(image_path)!r}")
    key, root = os.fspath(image_path), Path(folder)
    detections = {key: _with_class_ids(regions, class_names)}
    dataset = dataset_kind(list(class_names), [key], detections)
    if layout == "yolo":
        dataset.as_yolo(str(root / "images"), str(root / "labels"), str(root / "data.yaml"))
    else:
        dataset.as_pascal_voc(str(root / "images"), str(root / "annotations"))


def import_supervision() -> ModuleType:
    """The package supervision.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            "label files need the package supervision: pip install tokenize-anything[app]"
        ) from error
    return supervision


def _with_class_ids(
    regions: RegionPredictions, class_names: Sequence[str]
) -> supervision.Detections:
    """Detections whose class ids count in `class_names`."""
    numbers = {name: number for number, name in enumerate(class_names)}
    names = [names[0] if names else NO_NAME for names in regions.concepts]
    unknown = sorted(set(names) - set(numbers))
    if unknown:
        raise ValueError(
            f"class_names: expected the first concept of every region, {unknown} are missing; "
            f"regions without concepts are called {NO_NAME!r}"
        )
    detections = regions.to_supervision()
    detections.class_id = np.array([numbers[name] for name in names], dtype=int)
    return detections
