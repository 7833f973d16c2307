"""Region predictions in the formats of others: COCO annotations, supervision, JSON.

Users call these through the methods of `RegionPredictions`, which document them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenize_anything.geometry import (
    decode_rle,
    encode_rle,
    masks_to_boxes,
    xywh_to_xyxy,
    xyxy_to_xywh,
)
from tokenize_anything.region_polygons import mask_to_polygons, polygons_to_mask

if TYPE_CHECKING:
    import supervision

    from tokenize_anything.regions import RegionPredictions

_JSON_FORMAT = "tokenize_anything.regions.1"

# Field of the record to its key in JSON, where every region is an object of its own.
_JSON_KEYS = {
    "masks": "mask",
    "iou_scores": "iou_score",
    "boxes_xyxy": "box_xyxy",
    "concepts": "concepts",
    "concept_scores": "concept_scores",
    "captions": "caption",
    "caption_scores": "caption_score",
    "semantic_tokens": "semantic_token",
    "semantic_embeddings": "semantic_embedding",
    "mask_tokens": "mask_token",
    "mask_index": "mask_index",
    "parent_index": "parent_index",
}
# Of keys that older files lack.
_JSON_DEFAULTS: dict[str, Any] = {"parent_index": -1, "mask_token": [], "mask_token_dim": 0}
_NO_ID = object()  # equal to no id of any annotation
_VECTOR_FIELDS = ("semantic_tokens", "semantic_embeddings", "mask_tokens")
# Fields with a free number of columns, which a record without regions keeps too.
_JSON_COLUMNS = {
    "concept_scores": "num_concepts",
    "semantic_tokens": "token_dim",
    "semantic_embeddings": "embedding_dim",
    "mask_tokens": "mask_token_dim",
}


def to_coco(
    regions: RegionPredictions,
    image_id: int,
    category_ids: Mapping[str, int] | None,
    first_id: int,
    polygons: bool,
) -> list[dict[str, Any]]:
    """COCO annotations, see `RegionPredictions.to_coco`."""
    annotations: list[dict[str, Any]] = [
        {
            "id": first_id + row,
            "image_id": image_id,
            "category_id": _category_id(regions.concepts[row], category_ids),
            "segmentation": _segmentation(regions.masks[row], polygons),
            "area": int(regions.masks[row].sum()),
            "bbox": xyxy_to_xywh(regions.boxes_xyxy[row]).tolist(),
            "iscrowd": 0,
            "score": _plain(regions.iou_scores[row]),
            "caption": regions.captions[row],
            "concepts": list(regions.concepts[row]),
            "concept_scores": _plain(regions.concept_scores[row]),
        }
        for row in range(len(regions))
    ]
    for row in np.flatnonzero(regions.parent_index >= 0):
        annotations[row]["parent_id"] = first_id + int(regions.parent_index[row])
    return annotations


def _segmentation(mask: np.ndarray, polygons: bool) -> Any:
    """A run-length code, or polygons as flat lists x, y, x, y, ..."""
    if not polygons:
        return encode_rle(mask)
    return [outline.ravel().tolist() for outline in mask_to_polygons(mask)]


def _category_id(names: Sequence[str], category_ids: Mapping[str, int] | None) -> int:
    if category_ids is None:
        return 1
    if not names or names[0] not in category_ids:
        raise ValueError(
            f"category_ids: expected an id for the first concept of every region, got none for "
            f"{names[0] if names else 'a region without concepts'!r}; add it, or write only the "
            f"regions that have one"
        )
    return category_ids[names[0]]


def fields_from_coco(
    annotations: Sequence[Mapping[str, Any]],
    image_size_hw: tuple[int, int],
    category_names: Mapping[int, str] | None,
) -> dict[str, Any]:
    """Constructor arguments for `RegionPredictions.from_coco`, which documents them."""
    rows = {annotation.get("id"): row for row, annotation in enumerate(annotations)}
    columns: dict[str, list[Any]] = {
        name: [] for name in ("masks", "boxes_xyxy", "concepts", "concept_scores")
    }
    for row, annotation in enumerate(annotations):
        where = f"annotations: annotation {annotation.get('id', f'at position {row}')}"
        try:
            mask = _read_segmentation(annotation.get("segmentation"), image_size_hw)
            box = annotation.get("bbox")
            columns["masks"].append(mask)
            columns["boxes_xyxy"].append(
                masks_to_boxes(mask[None])[0] if box is None else xywh_to_xyxy(box)
            )
            names, scores = _read_concepts(annotation, category_names)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        columns["concepts"].append(names)
        columns["concept_scores"].append(scores)
    fields: dict[str, Any] = (
        columns if annotations else {"masks": np.zeros((0, *image_size_hw), bool)}
    )
    return fields | {
        "iou_scores": np.array([each.get("score", 1.0) for each in annotations], np.float32),
        "captions": [_read_caption(annotation) for annotation in annotations],
        "parent_index": np.array(
            [rows.get(each.get("parent_id", _NO_ID), -1) for each in annotations], np.int64
        ),
    }


def _read_segmentation(segmentation: Any, image_size_hw: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, Mapping):
        mask = decode_rle(segmentation)
        if mask.shape != image_size_hw:
            raise ValueError(
                f"expected a mask of the image, height and width {image_size_hw}, got {mask.shape}"
            )
        return mask
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
        return polygons_to_mask(segmentation, *image_size_hw)
    raise ValueError(
        f"expected a segmentation of run lengths or polygons, got {str(segmentation)[:60]}"
    )


def _read_concepts(
    annotation: Mapping[str, Any], category_names: Mapping[int, str] | None
) -> tuple[list[str], list[float]]:
    if annotation.get("concepts"):
        return annotation["concepts"], annotation["concept_scores"]
    if category_names is None:
        return [], []
    category_id = annotation.get("category_id")
    if not isinstance(category_id, int) or category_id not in category_names:
        raise ValueError(f"expected a category among category_names, got {category_id!r}")
    return [category_names[category_id]], [1.0]


def _read_caption(annotation: Mapping[str, Any]) -> str | None:
    captions = annotation.get("captions") or [None]
    caption: str | None = annotation.get("caption", captions[0])
    return caption


def to_supervision(regions: RegionPredictions) -> supervision.Detections:
    """Detections, see `RegionPredictions.to_supervision`."""
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            "to_supervision needs the package supervision: pip install tokenize-anything[app]"
        ) from error
    names = [names[0] if names else "" for names in regions.concepts]
    class_names, class_ids = np.unique(np.array(names, dtype=str), return_inverse=True)
    return supervision.Detections(
        xyxy=regions.boxes_xyxy.copy(),
        mask=regions.masks.copy(),
        confidence=regions.iou_scores.copy(),
        class_id=class_ids.astype(int),
        data={
            "class_name": class_names[class_ids],
            "caption": np.array([caption or "" for caption in regions.captions], dtype=str),
            "mask_index": regions.mask_index.copy(),
        },
    )


def to_json(regions: RegionPredictions, include_vectors: bool) -> str:
    """JSON text, see `RegionPredictions.to_json`."""
    height, width = regions.image_size_hw
    omitted = () if include_vectors else _VECTOR_FIELDS
    content: dict[str, Any] = {
        "format": _JSON_FORMAT,
        "image_size": {"height": height, "width": width},
    }
    for name, key in _JSON_COLUMNS.items():
        content[key] = 0 if name in omitted else getattr(regions, name).shape[1]
    content["regions"] = [
        {
            key: [] if name in omitted else _plain(getattr(regions, name)[row])
            for name, key in _JSON_KEYS.items()
        }
        for row in range(len(regions))
    ]
    return json.dumps(content, allow_nan=False)


def _plain(value: Any) -> Any:
    """One region's value of one field as JSON can hold it."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    if value.dtype == np.bool_:
        return encode_rle(value)
    if value.dtype.kind == "f":
        # Through text: the fewest decimals that give the same float32 again.
        return np.asarray(value).astype(str).astype(float).tolist()
    return value.tolist()


def fields_from_json(text: str) -> dict[str, Any]:
    """Constructor arguments of the `RegionPredictions` that `to_json` wrote.

    Raises:
        ValueError: not JSON, another format, missing keys or damaged masks.
    """
    content = _parse_json(text)
    try:
        return _fields_from_content(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"regions: expected what RegionPredictions.to_json writes, got missing or damaged "
            f"entries ({type(error).__name__}: {error})"
        ) from error


def _fields_from_content(content: Mapping[str, Any]) -> dict[str, Any]:
    size_hw = content["image_size"]["height"], content["image_size"]["width"]
    fields: dict[str, Any] = {
        name: [(_JSON_DEFAULTS | region)[key] for region in content["regions"]]
        for name, key in _JSON_KEYS.items()
    }
    fields["masks"] = [decode_rle(rle) for rle in fields["masks"]]
    wrong = {mask.shape for mask in fields["masks"]} - {size_hw}
    if wrong:
        raise ValueError(
            f"regions: expected masks of image_size {size_hw}, got {sorted(wrong)}; "
            f"the JSON is damaged"
        )
    if not content["regions"]:
        columns = {name: {**_JSON_DEFAULTS, **content}[key] for name, key in _JSON_COLUMNS.items()}
        fields |= {name: np.zeros((0, size)) for name, size in columns.items()}
        fields |= {"masks": np.zeros((0, *size_hw), bool), "boxes_xyxy": np.zeros((0, 4))}
    return fields


def _parse_json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"regions: expected JSON, got {text[:60]!r} ({error})") from error
    if not isinstance(content, dict) or content.get("format") != _JSON_FORMAT:
        raise ValueError(
            f"regions: expected JSON of format {_JSON_FORMAT!r}, got {text[:60]!r}; "
            f"write it with RegionPredictions.to_json"
        )
    return content
