"""Semantic tokens of annotated boxes, for eval_downstream and eval_search; kept in a cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tokenize_anything import TAPPredictor
from tokenize_anything.build import locate_checkpoint
from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.evaluation.region_truth import read_true_images

PART = 100


@dataclass(frozen=True, eq=False)
class BoxTokens:
    """Named regions of an annotation file, asked for by their boxes.

    tokens, embeddings: (R,C) and (R,D) float32. names: R names. boxes_xyxy: (R,4), original pixels.
    images, sizes_hw: the photo of each region, (R,) and (R,2).
    """

    tokens: np.ndarray
    embeddings: np.ndarray
    names: np.ndarray
    boxes_xyxy: np.ndarray
    images: np.ndarray
    sizes_hw: np.ndarray


def checkpoint_digest(model: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a model's file."""
    return hashlib.sha256(locate_checkpoint(model).read_bytes()).hexdigest()[:16]


def encode_boxes(
    model: str, annotations: str, images: str, cache: Path, every: int = 1
) -> BoxTokens:
    """Tokens of the named regions with a mask, of every n-th photo of a file.

    In bfloat16, as the model card's figures. They are kept in files of 100 photos for each
    checkpoint and annotation file, so that a stopped run goes on; delete those when photos change.
    """
    content = hashlib.sha256(Path(annotations).read_bytes()).hexdigest()[:8]
    predictor = TAPPredictor.from_pretrained(model, dtype="bfloat16")
    kind = f"{checkpoint_digest(model)}-zoom{predictor.model.config.zoom:g}-bfloat16-{every}"
    folder = cache / f"{Path(annotations).stem}-{content}-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    photos, parts = read_true_images(annotations, images)[::every], []
    for start in tqdm(range(0, len(photos), PART), desc=Path(annotations).stem):
        part = photos[start : start + PART]
        path = folder / f"{start}-{start + len(part)}.npz"
        if not path.is_file():
            encoded = [_encode(predictor, *photo) for photo in part]
            with replace_on_success(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, *map(np.concatenate, zip(*encoded, strict=True)))
        with np.load(path) as kept:
            parts.append([kept[f"arr_{number}"] for number in range(6)])
    return BoxTokens(*map(np.concatenate, zip(*parts, strict=True)))


def _encode(predictor: TAPPredictor, path: Path, regions: list[Any]) -> tuple[np.ndarray, ...]:
    named = [region for region in regions if region["name"]]
    boxes = np.array([region["bbox"] for region in named], np.float32).reshape(-1, 4)
    boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 1)
    found = predictor.predict_mask_concept_caption(path, boxes=boxes, captions=False)
    names = np.array([region["name"] for region in named], np.str_)
    size = np.tile(np.array(found.masks.shape[1:], np.int32), (len(named), 1))
    return (found.semantic_tokens, found.semantic_embeddings, names, boxes,
            np.full(len(named), path.name), size)  # fmt: skip
