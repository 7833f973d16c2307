"""The answer for one image: parallel arrays with one row per region, checked when built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenize_anything import region_formats
from tokenize_anything.geometry import masks_to_boxes, select_rows, to_numpy

if TYPE_CHECKING:
    import supervision

_ABSENT: Any = None  # default of the fields that take a neutral value when left out
_NUM_MASK_SLOTS = 4

# Sizes of the axes after R (None: any) and the kept dtype of every numeric field.
_ARRAY_FIELDS: Mapping[str, tuple[tuple[int | None, ...], type[np.generic]]] = {
    "masks": ((None, None), np.bool_),
    "iou_scores": ((), np.float32),
    "boxes_xyxy": ((4,), np.float32),
    "concept_scores": ((None,), np.float32),
    "caption_scores": ((), np.float32),
    "semantic_tokens": ((None,), np.float32),
    "semantic_embeddings": ((None,), np.float32),
    "mask_tokens": ((None,), np.float32),
    "mask_index": ((), np.int64),
    "parent_index": ((), np.int64),
}
_LIST_FIELDS = ("concepts", "captions")
_NO_PARENT = -1
_KINDS = {np.bool_: "b", np.float32: "iuf", np.int64: "iu"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RegionPredictions:
    """What the model says about R regions of one image of H x W pixels.

    Only `masks` and `iou_scores` are required; what is left out takes a neutral value of the right
    length. Arrays are read-only views of what was given; indexing gives a new record.

    Args:
        masks: (R,H,W) booleans at the original size.
        iou_scores: (R,) predicted quality of the masks; about 0..1, but not clipped.
        boxes_xyxy: (R,4) float32 in original pixels, right and bottom exclusive; by default the
            bounding boxes of the masks, zeros where a mask is empty.
        concepts: R lists of k names, best first.
        concept_scores: (R,k) float32.
        captions: R texts, or None where no caption was asked for.
        caption_scores: (R,) float32.
        semantic_tokens: (R,C) float32, what the text decoder reads.
        semantic_embeddings: (R,D) float32, in the space of the concept vocabulary.
        mask_tokens: (R,C) float32, what the masks were made from.
        mask_index: (R,) int64 in 0..3, which of the mask slots was selected.
        parent_index: (R,) int64, the row of the region this one is part of, or -1. Selecting rows
            keeps the tree: the parent becomes the nearest ancestor that was selected too.

    Raises:
        ValueError: naming every field whose shape, kind, length or values do not fit.

    Example:
        >>> regions = RegionPredictions(masks=np.ones((2, 5, 7), bool), iou_scores=[0.9, 0.8])
        >>> len(regions[regions.iou_scores > 0.85])
        1
    """

    masks: NDArray[np.bool_]
    iou_scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32] = _ABSENT
    concepts: list[list[str]] = _ABSENT
    concept_scores: NDArray[np.float32] = _ABSENT
    captions: list[str | None] = _ABSENT
    caption_scores: NDArray[np.float32] = _ABSENT
    semantic_tokens: NDArray[np.float32] = _ABSENT
    semantic_embeddings: NDArray[np.float32] = _ABSENT
    mask_tokens: NDArray[np.float32] = _ABSENT
    mask_index: NDArray[np.int64] = _ABSENT
    parent_index: NDArray[np.int64] = _ABSENT

    def __post_init__(self) -> None:
        masks = to_numpy("masks", self.masks)
        count = len(masks) if masks.ndim else 0
        arrays = {name: _as_array(name, getattr(self, name), count) for name in _ARRAY_FIELDS}
        concepts = [[] for _ in range(count)] if self.concepts is None else list(self.concepts)
        captions = [None] * count if self.captions is None else list(self.captions)
        _raise_problems(arrays, concepts, captions)
        if self.boxes_xyxy is None:
            arrays["boxes_xyxy"] = masks_to_boxes(masks)
        for name, array in arrays.items():
            kept = array.astype(_ARRAY_FIELDS[name][1], copy=False).view()
            kept.setflags(write=False)
            object.__setattr__(self, name, kept)
        object.__setattr__(self, "concepts", [list(names) for names in concepts])
        object.__setattr__(self, "captions", captions)

    @classmethod
    def empty(
        cls,
        height: int,
        width: int,
        *,
        num_concepts: int = 0,
        token_dim: int = 0,
        embedding_dim: int = 0,
    ) -> RegionPredictions:
        """No region of an image of this size; the other sizes are k, C and D."""
        return cls(
            masks=np.zeros((0, height, width), bool),
            iou_scores=np.zeros(0, np.float32),
            concept_scores=np.zeros((0, num_concepts), np.float32),
            semantic_tokens=np.zeros((0, token_dim), np.float32),
            semantic_embeddings=np.zeros((0, embedding_dim), np.float32),
            mask_tokens=np.zeros((0, token_dim), np.float32),
        )

    @classmethod
    def concatenate(cls, records: Sequence[RegionPredictions]) -> RegionPredictions:
        """Stack records of one image, in order.

        Records without regions may differ in k, C and D from the others.

        Raises:
            ValueError: no records, or sizes H, W, k, C or D that differ.
        """
        if not records:
            raise ValueError(
                "records: expected at least one RegionPredictions, got none; "
                "use RegionPredictions.empty(height, width)"
            )
        filled = [record for record in records if len(record)] or list(records[:1])
        for name in _ARRAY_FIELDS:
            compared = records if name == "masks" else filled
            sizes = sorted({getattr(record, name).shape[1:] for record in compared})
            if len(sizes) > 1:
                raise ValueError(
                    f"records: expected {name} of one size per region, got {sizes}; only records "
                    f"of one image and one model can be concatenated"
                )
        fields: dict[str, Any] = {
            name: np.concatenate([getattr(record, name) for record in filled])
            for name in _ARRAY_FIELDS
        }
        starts = np.repeat(
            np.cumsum([0, *map(len, filled[:-1])]), [len(record) for record in filled]
        )
        parents = fields["parent_index"]
        fields["parent_index"] = np.where(parents == _NO_PARENT, _NO_PARENT, parents + starts)
        for name in _LIST_FIELDS:
            fields[name] = [item for record in filled for item in getattr(record, name)]
        return cls(**fields)

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.masks.shape[1], self.masks.shape[2]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Any) -> RegionPredictions:
        """Select regions by int (a record of length 1), slice, boolean or integer array."""
        rows = select_rows(index, len(self))
        fields: dict[str, Any] = {name: getattr(self, name)[rows] for name in _ARRAY_FIELDS}
        fields["parent_index"] = _select_parents(self.parent_index, rows)
        for name in _LIST_FIELDS:
            fields[name] = [getattr(self, name)[row] for row in rows]
        return RegionPredictions(**fields)

    def __iter__(self) -> Iterator[RegionPredictions]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        height, width = self.image_size_hw
        names = [names[0] for names in self.concepts if names]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"RegionPredictions({len(self)} regions of {height} x {width} pixels: [{shown}])"

    def to_coco(
        self,
        image_id: int = 1,
        category_ids: Mapping[str, int] | None = None,
        *,
        first_id: int = 1,
        polygons: bool = False,
    ) -> list[dict[str, Any]]:
        """COCO annotations, one per region, ready for JSON.

        Args:
            image_id: the image they belong to.
            category_ids: id of every concept name; the first concept of a region decides. Without
                it every region gets category 1.
            first_id: id of the first annotation; count on from it over several images.
            polygons: write outlines, see `region_polygons.mask_to_polygons`, in place of
                run-length codes. Holes are lost.

        Returns:
            Mappings with the usual keys (`segmentation`, `bbox` as x, y, width, height, `score`
            the predicted mask quality) and `caption`, `concepts`, `concept_scores`, and
            `parent_id`, an annotation id, for the parts of other regions.

        Raises:
            ValueError: the first concept of a region has no id, or a region has no concept.
        """
        return region_formats.to_coco(self, image_id, category_ids, first_id, polygons)

    @classmethod
    def from_coco(
        cls,
        annotations: Sequence[Mapping[str, Any]],
        height: int,
        width: int,
        *,
        category_names: Mapping[int, str] | None = None,
    ) -> RegionPredictions:
        """The regions of one image from COCO annotations: those of `to_coco` and of others.

        Args:
            annotations: of one image, with `segmentation` as run-length code or polygons.
            height: of the image in pixels.
            width: of the image in pixels.
            category_names: name of every category id. The name is the concept of annotations that
                lack `concepts`, with a score of 1; without it they have none.

        Returns:
            Regions in the order given. `score` is 1 where there is none, captions are None,
            and boxes are those of the masks where there is no `bbox`.

        Raises:
            ValueError: an annotation without segmentation, a damaged one, one of another image
                size, or a category without a name; the message names the annotation.
        """
        return cls(**region_formats.fields_from_coco(annotations, (height, width), category_names))

    def to_supervision(self) -> supervision.Detections:
        """The regions as `supervision.Detections`.

        `confidence` is the predicted mask quality. `class_id` numbers the first concepts found in
        this record, in alphabetical order. `data` holds `class_name`, `caption` (empty where there
        is none) and `mask_index`.

        Raises:
            ImportError: supervision is not installed.
        """
        return region_formats.to_supervision(self)

    def to_json(self, *, include_vectors: bool = True) -> str:
        """Everything in the record as JSON, masks run-length coded; `from_json` reads it back.

        Args:
            include_vectors: whether to write semantic tokens and embeddings, which are long.
        """
        return region_formats.to_json(self, include_vectors=include_vectors)

    @classmethod
    def from_json(cls, text: str) -> RegionPredictions:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not JSON, another format, missing keys or damaged values.
        """
        return cls(**region_formats.fields_from_json(text))

    def draw(self, image_rgb: ArrayLike, **options: Any) -> NDArray[np.uint8]:
        """A copy of the image with the regions, their names and captions drawn on it.

        Args:
            image_rgb: (H,W,3) uint8, the image the record belongs to.
            options: see `tokenize_anything.drawing.draw_regions`.
        """
        # The one import down the layers: drawing reads records, and this is its shortcut.
        from tokenize_anything.drawing import draw_regions

        return draw_regions(image_rgb, self, **options)


# --- checking -----------------------------------------------------------------------------------


def _as_array(name: str, value: ArrayLike | None, count: int) -> NDArray[Any]:
    """The value as an array; zeros of `count` rows where a field was left out."""
    if value is not None:
        return to_numpy(name, value)
    sizes, dtype = _ARRAY_FIELDS[name]
    neutral = _NO_PARENT if name == "parent_index" else 0
    return np.full((count, *(size or 0 for size in sizes)), neutral, dtype)


def _select_parents(parents: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Parents (R,) after rows were selected: the nearest selected ancestors, in new numbers."""
    places = np.full(len(parents), _NO_PARENT)
    places[rows[::-1]] = np.arange(len(rows))[::-1]  # of a row selected twice, the first place
    ancestors = parents[rows]
    while (is_lost := (ancestors != _NO_PARENT) & (places[ancestors] == _NO_PARENT)).any():
        ancestors[is_lost] = parents[ancestors[is_lost]]
    return np.where(ancestors == _NO_PARENT, _NO_PARENT, places[ancestors])


def _raise_problems(
    arrays: Mapping[str, NDArray[Any]], concepts: list[Any], captions: list[Any]
) -> None:
    count = len(arrays["masks"]) if arrays["masks"].ndim else 0
    problems = [_array_problem(name, array, count) for name, array in arrays.items()]
    if not any(problems):
        problems = [*_value_problems(arrays), *_list_problems(arrays, concepts, captions)]
    found = [problem for problem in problems if problem]
    if found:
        raise ValueError(f"RegionPredictions of {count} regions: {'; '.join(found)}")


def _array_problem(name: str, array: NDArray[Any], count: int) -> str:
    """The first rule a field breaks: shape, then kind, then finite values; empty if none."""
    sizes, dtype = _ARRAY_FIELDS[name]
    expected = tuple(
        got if size is None else size
        for size, got in zip((count, *sizes), array.shape, strict=False)
    )
    if array.ndim != 1 + len(sizes) or array.shape != expected:
        axes = ", ".join("any" if size is None else str(size) for size in (count, *sizes))
        return f"{name} must have shape ({axes}), got {array.shape}"
    if name == "masks" and 0 in array.shape[1:]:
        return f"masks must have pixels, got shape {array.shape}"
    if array.size and array.dtype.kind not in _KINDS[dtype]:
        cure = "; threshold mask logits with logits > 0" if name == "masks" else ""
        return f"{name} must be {dtype.__name__}, got {array.dtype}{cure}"
    # Written so that NaN fails too, and what would overflow float32.
    if array.dtype.kind == "f" and not (np.abs(array) <= np.finfo(np.float32).max).all():
        return f"{name} must be finite, got NaN or infinity"
    return ""


def _value_problems(arrays: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    index, boxes = arrays["mask_index"], arrays["boxes_xyxy"]
    if ((index < 0) | (index >= _NUM_MASK_SLOTS)).any():
        yield f"mask_index must lie in 0..{_NUM_MASK_SLOTS - 1}, got {index.min()}..{index.max()}"
    yield _parent_problem(arrays["parent_index"])
    is_reversed = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if is_reversed.any():
        yield f"boxes_xyxy must have x0 <= x1 and y0 <= y1, got {boxes[is_reversed][0].tolist()}"


def _parent_problem(parents: NDArray[np.int64]) -> str:
    if parents.size and not _NO_PARENT <= parents.min() <= parents.max() < len(parents):
        return (
            f"parent_index must lie in {_NO_PARENT}..{len(parents) - 1}, got "
            f"{parents.min()}..{parents.max()}"
        )
    ancestors = parents
    for _ in range(len(parents)):
        if (ancestors == _NO_PARENT).all():
            return ""
        ancestors = np.where(ancestors == _NO_PARENT, _NO_PARENT, parents[ancestors])
    row = np.flatnonzero(ancestors != _NO_PARENT)
    return f"parent_index must not go in circles, got one from region {row[0]}" if row.size else ""


def _list_problems(
    arrays: Mapping[str, NDArray[Any]], concepts: list[Any], captions: list[Any]
) -> Iterator[str]:
    count, num_concepts = arrays["concept_scores"].shape
    for name, items in (("concepts", concepts), ("captions", captions)):
        if len(items) != count:
            yield f"{name} must have length {count}, got {len(items)}"
    for row, names in enumerate(concepts):
        is_sequence = isinstance(names, (list, tuple, np.ndarray))
        if not is_sequence or not all(isinstance(name, str) for name in names):
            yield f"concepts[{row}] must be a list of names, got {names!r}"
        elif len(names) != num_concepts:
            yield (
                f"concepts[{row}] must have {num_concepts} names, as many as concept_scores has "
                f"columns, got {len(names)}"
            )
    for row, caption in enumerate(captions):
        if caption is not None and not isinstance(caption, str):
            yield f"captions[{row}] must be text or None, got {caption!r}"
