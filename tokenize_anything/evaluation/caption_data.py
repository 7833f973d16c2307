"""Boxes with reference captions: Visual Genome in two forms, RefCOCO and its kin, any COCO JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenize_anything.data.coco_lvis import read_coco_json
from tokenize_anything.published_pickle import load_published_pickle

Box = tuple[float, float, float, float]
# Visual Genome comes in two folders; people keep them apart or pour them into one.
_VISUAL_GENOME_FOLDERS = ("VG_100K", "VG_100K_2")


@dataclass(frozen=True)
class DescribedRegion:
    """A box in original pixels, x0, y0, x1, y1 as annotated, and one or more texts about it."""

    region_id: int
    box_xyxy: Box
    references: tuple[str, ...]


@dataclass(frozen=True)
class DescribedImage:
    """A photo and its described regions, at least one; the photo may be missing."""

    image_id: int
    path: Path
    regions: tuple[DescribedRegion, ...]


def read_coco_captions(annotations: str | Path, image_folder: str | Path) -> list[DescribedImage]:
    """Regions of a COCO-style JSON whose annotations have a `caption` or a list of `captions`.

    GRiT's Visual Genome files (`vg/annotations/test.json`) are of this form. Annotations without
    caption, and images without any, are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not COCO-style JSON, a damaged annotation (the message names it), or no caption.
    """
    content = read_coco_json(annotations)
    where = f"annotations: {annotations}"
    by_image: dict[Any, list[DescribedRegion]] = {}
    for position, annotation in enumerate(content["annotations"]):
        place = f"{where}: annotation {_name(annotation, position)}"
        references = _captions(annotation, place)
        if references and not annotation.get("iscrowd"):
            region = _region(annotation, references, place)
            by_image.setdefault(_value(annotation, "image_id", place), []).append(region)
    return _images(content["images"], by_image, Path(image_folder), where)


def read_densecap(
    region_descriptions: str | Path, splits: str | Path, split: str, image_folder: str | Path
) -> list[DescribedImage]:
    """Visual Genome's own `region_descriptions.json` with the splits of DenseCap.

    Boxes are taken as they are; photos are looked up as `ID.jpg` in the folder, and in `VG_100K`
    and `VG_100K_2` under it.

    Args:
        region_descriptions: a list of `{"id", "regions": [{"region_id", "x", "y", "width",
            "height", "phrase"}]}`.
        splits: DenseCap's `densecap_splits.json`, `{"train": [ids], "val": [ids], "test": [ids]}`.
        split: one of its keys.
        image_folder: where the photos are.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files of another form, an unknown or empty split, or a damaged region.
    """
    listed = _read_json(splits, "splits", dict)
    if split not in listed:
        raise ValueError(f"split: expected one of {sorted(listed)}, got {split!r}")
    wanted = set(listed[split])
    images = []
    for position, image in enumerate(_read_json(region_descriptions, "annotations", list)):
        where = f"annotations: {region_descriptions}: image {_name(image, position)}"
        image_id = image.get("image_id", _value(image, "id", where))
        if image_id not in wanted:
            continue
        regions = tuple(
            _phrase_region(region, f"{where}: region {_name(region, row, 'region_id')}")
            for row, region in enumerate(_value(image, "regions", where))
            if str(_value(region, "phrase", where)).strip()
        )
        if regions:
            path = _find_photo(Path(image_folder), f"{image_id}.jpg")
            images.append(DescribedImage(image_id, path, regions))
    if not images:
        raise ValueError(
            f"split: {split!r} lists {len(wanted)} photos, {region_descriptions} describes none "
            "of them"
        )
    return images


def read_refcoco(
    refs: str | Path, instances: str | Path, split: str, image_folder: str | Path
) -> list[DescribedImage]:
    """RefCOCO, RefCOCO+ and RefCOCOg: every sentence about a box is a reference of that box.

    Args:
        refs: `refs(unc).p`, `refs(umd).p` or `refs(google).p`; it is read without running it.
        instances: the `instances.json` beside it.
        split: of the `split` values of the file: "val", "testA", "testB", "test" or "train".
        image_folder: COCO's `train2014`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a pickle that asks for more than plain values, files of another form or of two
            data sets, an unknown or empty split.
    """
    rows = _read_refs(refs)
    counts = Counter(row["split"] for row in rows)
    if split not in counts:
        raise ValueError(f"split: expected one of {sorted(counts)}, as in {refs}, got {split!r}")
    content = read_coco_json(instances)
    boxes = {annotation.get("id"): annotation for annotation in content["annotations"]}
    texts: dict[Any, list[str]] = {}
    for row in rows:
        if row["split"] == split:
            texts.setdefault(row["ann_id"], []).extend(_sentences(row, f"refs: {refs}"))
    unknown = [ann_id for ann_id in texts if ann_id not in boxes]
    if unknown:
        raise ValueError(
            f"instances: {len(unknown)} of the {len(texts)} boxes of {refs} are not in "
            f"{instances}, first {unknown[:3]}; give the instances.json of the same data set"
        )
    where = f"instances: {instances}"
    by_image: dict[Any, list[DescribedRegion]] = {}
    for ann_id, sentences in texts.items():
        place = f"{where}: annotation {ann_id}"
        region = _region(boxes[ann_id], tuple(sentences), place)
        by_image.setdefault(_value(boxes[ann_id], "image_id", place), []).append(region)
    return _images(content["images"], by_image, Path(image_folder), where)


def count_regions(images: Iterable[DescribedImage]) -> int:
    """Regions of all images."""
    return sum(len(image.regions) for image in images)


# --- files --------------------------------------------------------------------------------------


def _read_json(path: str | Path, name: str, kind: type) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name}: no file at {path}")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {path} is not JSON ({error})") from error
    if not isinstance(content, kind):
        raise ValueError(
            f"{name}: {path}: expected a {kind.__name__}, got a {type(content).__name__}"
        )
    return content


def _read_refs(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a refs pickle, known to have what is read here."""
    try:
        rows = load_published_pickle(path)
    except ValueError as error:
        reason = str(error).partition(". Obtain a .safetensors")[0]
        raise ValueError(
            f"refs: expected a RefCOCO pickle of plain lists, dicts, texts and numbers; {reason}"
        ) from error
    keys = ("ann_id", "split", "sentences")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"refs: {path}: expected a list of refs, got {type(rows).__name__}")
    for position, row in enumerate(rows):
        missing = [key for key in keys if not isinstance(row, Mapping) or key not in row]
        if missing:
            raise ValueError(
                f"refs: {path}: ref {position}: expected the keys {keys}, {missing} missing"
            )
    return rows


def _find_photo(folder: Path, file_name: str) -> Path:
    """Where a photo is; in the folder itself if it is nowhere."""
    places = [folder / file_name, *(folder / name / file_name for name in _VISUAL_GENOME_FOLDERS)]
    return next((place for place in places if place.is_file()), places[0])


# --- entries ------------------------------------------------------------------------------------


def _images(
    images: Sequence[Mapping[str, Any]],
    by_image: Mapping[Any, list[DescribedRegion]],
    folder: Path,
    where: str,
) -> list[DescribedImage]:
    """Images that have regions, in the order of the file."""
    if not by_image:
        raise ValueError(f"{where} has no region with a caption")
    known = {_value(image, "id", f"{where}: image"): image for image in images}
    unknown = sorted(str(image_id) for image_id in by_image if image_id not in known)
    if unknown:
        raise ValueError(f"{where}: {len(unknown)} images are not listed, first {unknown[:3]}")
    return [
        DescribedImage(
            image_id,
            _find_photo(folder, _value(image, "file_name", f"{where}: image {image_id}")),
            tuple(by_image[image_id]),
        )
        for image_id, image in known.items()
        if image_id in by_image
    ]


def _region(
    annotation: Mapping[str, Any], references: tuple[str, ...], where: str
) -> DescribedRegion:
    x, y, width, height = _numbers(_value(annotation, "bbox", where), where)
    box = (x, y, x + width, y + height)
    return DescribedRegion(_value(annotation, "id", where), box, references)


def _phrase_region(region: Mapping[str, Any], where: str) -> DescribedRegion:
    values = [_value(region, key, where) for key in ("x", "y", "width", "height")]
    x, y, width, height = _numbers(values, where)
    box = (x, y, x + width, y + height)
    return DescribedRegion(_value(region, "region_id", where), box, (region["phrase"],))


def _captions(annotation: Any, where: str) -> tuple[str, ...]:
    given = annotation.get("captions") or annotation.get("caption") or []
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where}: expected captions as text or a list of texts, got {given!r:.99}"
        )
    return tuple(text for text in texts if text.strip())


def _sentences(row: Mapping[str, Any], where: str) -> Iterator[str]:
    """The cleaned sentences of a ref, as the REFER evaluation compares them."""
    for sentence in row["sentences"]:
        text = sentence.get("sent", sentence.get("raw")) if isinstance(sentence, Mapping) else None
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: ref of box {row['ann_id']}: expected sentences with a `sent`, got "
                f"{sentence!r:.99}"
            )
        yield text


def _value(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, Mapping) or entry.get(key) is None:
        raise ValueError(f"{where}: expected the key {key!r}, got {entry!r:.99}")
    return entry[key]


def _name(entry: Any, position: int, key: str = "id") -> Any:
    return entry.get(key, f"at position {position}") if isinstance(entry, Mapping) else position


def _numbers(values: Any, where: str) -> list[float]:
    is_four = isinstance(values, list) and len(values) == 4
    if not is_four or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise ValueError(
            f"{where}: expected a box of 4 finite numbers x, y, w, h, got {values!r:.99}"
        )
    return [float(value) for value in values]
