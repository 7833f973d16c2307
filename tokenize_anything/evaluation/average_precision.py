"""Average precision of results on COCO- and LVIS-style data, through faster-coco-eval.

It gives what pycocotools gives, and for LVIS what the lvis package gives: only categories that are
known to be there, or known to be absent, count on a photo (Gupta et al. 2019).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from tokenize_anything.evaluation.coco_truth import TruthFile, mask_codes, truth_rle

COCO_DETECTIONS, LVIS_DETECTIONS = 100, 300  # per photo

# Labels of the backend to names in tables.
_NAMES = {
    "AP_all": "AP", "AP_50": "AP50", "AP_75": "AP75",
    "AP_small": "APs", "AP_medium": "APm", "AP_large": "APl",
    "APr": "AP rare", "APc": "AP common", "APf": "AP frequent",
}  # fmt: skip


def average_precision(
    truth: TruthFile,
    results: Sequence[Mapping[str, Any]],
    *,
    kind: str,
    image_ids: Sequence[Any] | None = None,
    max_detections: int | None = None,
) -> Iterator[tuple[str, float]]:
    """Average precision in percent, over IoU thresholds 0.50 to 0.95.

    Args:
        truth: annotations; those without a category are left out.
        results: COCO results: image_id, category_id, score and bbox or segmentation. They are
            not modified. Equal scores keep their order.
        kind: "segm" or "bbox", what overlaps.
        image_ids: photos that count; all of the file by default.
        max_detections: best results kept, of a photo and category for COCO, of a photo for LVIS;
            100 and 300 by default.

    Yields:
        AP, AP50, AP75, APs, APm, APl (area under 32², to 96², above), and AP rare, AP common, AP
        frequent for LVIS. What no annotation can answer is left out.

    Raises:
        ImportError: the extra is missing.
        ValueError: no categories in the file, ids that are no whole numbers, or results of photos
            or categories it lacks.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError("AP needs: pip install tokenize-anything[eval]") from error
    limit = max_detections or (LVIS_DETECTIONS if truth.is_lvis else COCO_DETECTIONS)
    chosen = list(truth.by_image) if image_ids is None else list(image_ids)
    _check_results(truth, results)
    kept = _best_of_photos(results, limit) if truth.is_lvis else list(results)
    reference = COCO(_content(truth, kind))
    evaluation = COCOeval_faster(
        reference,
        reference.loadRes([dict(result) for result in kept]),
        kind,
        lvis_style=truth.is_lvis,
        print_function=_say_nothing,
    )
    evaluation.params.imgIds = chosen
    evaluation.params.maxDets = [limit]
    with redirect_stdout(io.StringIO()):
        evaluation.run()
    for label, value in evaluation.stats_as_dict.items():
        if label in _NAMES and value > -1:  # -1: no annotation of that kind
            yield _NAMES[label], 100 * value


def _content(truth: TruthFile, kind: str) -> dict[str, Any]:
    """The file's content with annotations as the backend needs them, ids counted from 1."""
    annotations: list[dict[str, Any]] = []
    for annotation in truth.content["annotations"]:
        if annotation.get("category_id") is None or not (
            kind == "bbox" or annotation.get("segmentation")
        ):
            continue
        area = annotation.get("area")
        if area is None:
            area = _area(annotation, kind, truth.sizes_hw[annotation["image_id"]])
        # An id of 0 would mean "unmatched" to the backend.
        annotations.append({**annotation, "id": len(annotations) + 1, "area": area})
    return {**truth.content, "annotations": annotations}


def _area(annotation: Mapping[str, Any], kind: str, size_hw: tuple[int, int]) -> float:
    if kind == "segm":
        return float(mask_codes().area(truth_rle(annotation["segmentation"], *size_hw)))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def _best_of_photos(results: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """The best `limit` results of each photo, as the lvis package keeps them."""
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for result in results:
        by_image.setdefault(result["image_id"], []).append(result)
    kept = []
    for of_photo in by_image.values():
        kept += sorted(of_photo, key=lambda result: -result["score"])[:limit]
    return kept


def _check_results(truth: TruthFile, results: Sequence[Mapping[str, Any]]) -> None:
    if not truth.category_names:
        raise ValueError(
            f"annotations: {truth.path} lists no categories; AP is a mean over categories"
        )
    named = [each for each in (*truth.by_image, *truth.category_names) if type(each) is not int]
    if named:
        raise ValueError(
            f"annotations: {truth.path}: AP needs whole numbers as ids of photos and categories, "
            f"got {named[0]!r}"
        )
    for key, known in (("image_id", truth.by_image), ("category_id", truth.category_names)):
        unknown = sorted({result[key] for result in results if result[key] not in known})
        if unknown:
            raise ValueError(
                f"results: {key} {unknown[:5]} and {len(unknown)} in all are not in {truth.path}"
            )


def _say_nothing(*_: Any, **__: Any) -> None:
    """Take what the backend would print."""
