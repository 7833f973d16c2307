"""Small token stores for tests of search, and a plain search to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.data.region_rows import RegionColumns, RegionRows, VectorColumn
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.token_rows import NUMBERS, TEXTS
from tokenize_anything.geometry import encode_rle

DIM, TOKEN_DIM, HEIGHT, WIDTH = 32, 5, 41, 67
SPACE = "hash:five@01"
CONCEPTS = ("cup", "Spoon", "it's", "")


def token_columns(identity: str = f"tap@77 in {SPACE}", dim: int = DIM) -> RegionColumns:
    vectors = (
        VectorColumn("semantic_token", TOKEN_DIM, "float32"),
        VectorColumn("semantic_embedding", dim, "float32"),
        VectorColumn("mask_token", TOKEN_DIM, "float32"),
    )
    return RegionColumns(identity, vectors, NUMBERS, TEXTS)


def token_rows(count: int, dim: int = DIM, first: int = 0) -> RegionRows:
    """Regions with boxes of all sizes, whose embeddings share a direction and differ in length."""
    rng = np.random.default_rng(first + count)
    ids = 10 + 7 * np.arange(first, first + count)
    sizes = rng.integers(3, (WIDTH, HEIGHT), (count, 2))
    corners = rng.integers(0, (WIDTH, HEIGHT) - sizes + 1)
    boxes = np.concatenate([corners, corners + sizes], axis=1)
    masks = np.zeros((count, HEIGHT, WIDTH), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    embeddings = rng.normal(size=(count, dim)) + 1
    embeddings *= rng.uniform(0.1, 9, (count, 1))
    sources = [f"{'cats' if row % 3 else 'a+b'}/photo_{row % 5}.png" for row in range(count)]
    return RegionRows(
        ids,
        sources,
        boxes.astype(np.float32),
        [encode_rle(mask) for mask in masks],
        {
            "semantic_token": rng.normal(size=(count, TOKEN_DIM)),
            "semantic_embedding": embeddings,
            "mask_token": rng.normal(size=(count, TOKEN_DIM)),
        },
        {name: rng.random(count) for name in NUMBERS},
        {
            "concept": [CONCEPTS[row % 4] for row in range(count)],
            "caption": [f"caption {row}" if row % 2 else "" for row in range(count)],
            "source": sources,
            "source_hash": ["0" * 64] * count,
        },
    )


def make_store(path: Path, rows: RegionRows, **columns: Any) -> RegionStore:
    store = RegionStore.create(path, token_columns(**columns))
    half = len(rows) // 2
    for part in (slice(0, half), slice(half, None)):  # two fragments
        store.append(take(rows, part))
    return store


def take(rows: RegionRows, part: slice) -> RegionRows:
    return RegionRows(
        rows.region_ids[part],
        rows.images[part],
        rows.boxes_xyxy[part],
        rows.rles[part],
        *({name: values[part] for name, values in each.items()}
          for each in (rows.vectors, rows.numbers, rows.texts)),
    )  # fmt: skip


def search_plainly(rows: RegionRows, query: Any, k: int, keep: Any = None) -> tuple[Any, Any]:
    """Ids and cosines of the k best of the regions to keep, one by one."""
    pairs = []
    for row, vector in enumerate(rows.vectors["semantic_embedding"].astype(np.float32)):
        if keep is None or keep[row]:
            lengths = np.linalg.norm(vector) * np.linalg.norm(query)
            pairs.append((float(vector @ query) / lengths, int(rows.region_ids[row])))
    best = sorted(pairs, reverse=True)[:k]
    return [region_id for _, region_id in best], [cosine for cosine, _ in best]
