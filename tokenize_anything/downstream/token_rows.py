"""Region tokens as rows of a region store: its columns, who made them, and their photos."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from tokenize_anything.data.region_rows import RegionColumns, RegionRows, VectorColumn
from tokenize_anything.downstream.token_photos import LoadedPhoto
from tokenize_anything.geometry import encode_rle
from tokenize_anything.open_clip_files import fingerprint
from tokenize_anything.predictor import TAPPredictor
from tokenize_anything.regions import RegionPredictions

SEMANTIC_TOKEN, SEMANTIC_EMBEDDING, MASK_TOKEN = (
    "semantic_token",
    "semantic_embedding",
    "mask_token",
)
NUMBERS = ("iou_score", "concept_score", "caption_score")
TEXTS = ("concept", "caption", "source", "source_hash")
_IN_SPACE = " in "


def model_identity(predictor: TAPPredictor) -> str:
    """What tells models apart: "tap@FINGERPRINT in SPACE", without the end if that is not known.

    The fingerprint is that of the weights rounded to bfloat16, so that a model has one identity in
    float32 and in bfloat16, and of `TAPConfig.zoom`, which changes tokens as weights do. SPACE is
    the text space of the semantic embeddings.
    """
    state = predictor.model.state_dict()
    rounded = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in state.items()}
    if predictor.model.config.zoom:
        rounded["config.zoom"] = torch.tensor([predictor.model.config.zoom])
    space = predictor.concepts.space if predictor.concepts is not None else ""
    return f"tap@{fingerprint(rounded)}" + (f"{_IN_SPACE}{space}" if space else "")


def space_of_identity(identity: str) -> str:
    """The text space that `model_identity` wrote; empty where it is not known."""
    return identity.partition(_IN_SPACE)[2]


def token_columns(predictor: TAPPredictor, vector_dtype: str = "float32") -> RegionColumns:
    """Columns of a store with the tokens of this model.

    Vectors are as the model gives them, of any length: `semantic_token` and `mask_token` (C,),
    `semantic_embedding` (D,). Numbers are `iou_score`, `concept_score` and `caption_score`. Texts
    are `concept` and `caption`, empty where there is none; `source`, the path of the photo under
    the folder of all photos; and `source_hash`, the SHA-256 of the photo's file.

    Args:
        predictor: the model with its vocabulary.
        vector_dtype: float16 or float32, as stored.

    Raises:
        ValueError: another dtype.
    """
    config = predictor.model.config
    vectors = (
        VectorColumn(SEMANTIC_TOKEN, config.decoder_dim, vector_dtype),
        VectorColumn(SEMANTIC_EMBEDDING, config.semantic_dim, vector_dtype),
        VectorColumn(MASK_TOKEN, config.decoder_dim, vector_dtype),
    )
    return RegionColumns(model_identity(predictor), vectors, NUMBERS, TEXTS)


def require_token_columns(columns: RegionColumns, where: str) -> None:
    """Check that a region store holds tokens, and not the vectors of something else.

    Raises:
        ValueError: it does not.
    """
    found = (tuple(vector.name for vector in columns.vectors), columns.numbers, columns.texts)
    if found != ((SEMANTIC_TOKEN, SEMANTIC_EMBEDDING, MASK_TOKEN), NUMBERS, TEXTS):
        raise ValueError(
            f"token store: {where} is a region store with the vectors {list(found[0])}, expected "
            f"{[SEMANTIC_TOKEN, SEMANTIC_EMBEDDING, MASK_TOKEN]}; `tap tokens build` makes one"
        )


def make_region_ids(source: str, source_hash: str, rows: Sequence[int]) -> list[int]:
    """Ids for regions that have none: they follow from the photo, its content and the row.

    63 bits of a hash each: among 100 million regions the chance that any two share one is 1 in
    1,800, and then the store refuses the second.
    """
    digests = [hashlib.sha256(f"{source}\0{source_hash}\0{row}".encode()).digest() for row in rows]
    return [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]


def to_token_rows(regions: RegionPredictions, photo: LoadedPhoto) -> RegionRows:
    """What the model says about the regions of a photo, as rows for `token_columns`.

    Boxes are those around the masks; where a mask is empty, that of the annotation.
    """
    count = len(regions)
    ids: list[int | None] = list(photo.region_ids) or [None] * count
    missing = [row for row, region_id in enumerate(ids) if region_id is None]
    made = make_region_ids(photo.source, photo.source_hash, missing)
    for row, region_id in zip(missing, made, strict=True):
        ids[row] = region_id
    boxes = regions.boxes_xyxy
    if photo.boxes_xyxy is not None:
        is_empty = np.array([not mask.any() for mask in regions.masks], bool)
        boxes = np.where(is_empty[:, None], photo.boxes_xyxy, boxes)
    has_names = regions.concept_scores.shape[1] > 0
    return RegionRows(
        region_ids=np.array(ids, np.int64),
        images=[photo.source] * count,
        boxes_xyxy=boxes,
        rles=[encode_rle(mask) for mask in regions.masks],
        vectors={
            SEMANTIC_TOKEN: regions.semantic_tokens,
            SEMANTIC_EMBEDDING: regions.semantic_embeddings,
            MASK_TOKEN: regions.mask_tokens,
        },
        numbers={
            "iou_score": regions.iou_scores,
            "concept_score": regions.concept_scores[:, 0] if has_names else np.zeros(count),
            "caption_score": regions.caption_scores,
        },
        texts={
            "concept": [names[0] if names else "" for names in regions.concepts],
            "caption": [caption or "" for caption in regions.captions],
            "source": [photo.source] * count,
            "source_hash": [photo.source_hash] * count,
        },
    )
