"""Stores of synthetic vectors for bench_search.

Vectors are a mixture, as names and their looks are: 60 topics, 2000 classes around them whose sizes
fall as 1/rank^0.8, and within a class noise that is mostly in the 24 directions of its topic.
Queries are further draws. All follows from seeds. Of the other columns nothing is searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tokenize_anything.data.region_rows import RegionColumns, RegionRows, VectorColumn
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.token_rows import NUMBERS, TEXTS

DIM, SMALL, TOPICS, CLASSES, RANK, BATCH, K = 384, 8, 60, 2000, 24, 50_000, 10
VECTORS = {"semantic_token": SMALL, "semantic_embedding": DIM, "mask_token": SMALL}


def draw_vectors(count: int, seed: int) -> np.ndarray:
    """(count,384) float32 of length 1."""
    fixed = np.random.default_rng(0)
    topics, topic_of = (
        unit(fixed.standard_normal((TOPICS, DIM))),
        fixed.integers(TOPICS, size=CLASSES),
    )
    centers = unit(topics[topic_of] + 0.9 * fixed.standard_normal((CLASSES, DIM)) / DIM**0.5)
    bases = (fixed.standard_normal((TOPICS, RANK, DIM)) / DIM**0.5).astype(np.float32)
    rng, weights = np.random.default_rng(seed), 1 / np.arange(1, CLASSES + 1) ** 0.8
    classes = rng.choice(CLASSES, size=count, p=weights / weights.sum())
    low = (rng.standard_normal((count, RANK)) / RANK**0.5).astype(np.float32)
    noise = 0.3 * rng.standard_normal((count, DIM), np.float32) / DIM**0.5
    for topic in range(TOPICS):
        rows = topic_of[classes] == topic
        noise[rows] += low[rows] @ bases[topic]
    return unit(centers.astype(np.float32)[classes] + 0.75 * noise)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def batches(count: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in tqdm(range(0, count, BATCH)):
        yield start, draw_vectors(min(BATCH, count - start), 1 + start)


def write_store(path: Path, count: int) -> RegionStore:
    vectors = tuple(VectorColumn(name, dim, "float32") for name, dim in VECTORS.items())
    store = RegionStore.create(path, RegionColumns("synthetic", vectors, NUMBERS, TEXTS))
    for start, drawn in batches(count):
        n = len(drawn)
        ids, box, mask = np.arange(start, start + n), [[3.0, 5.0, 40.0, 70.0]], {"size": [384, 512]}
        tokens = {k: drawn if dim == DIM else np.zeros((n, dim)) for k, dim in VECTORS.items()}
        numbers, names = dict.fromkeys(NUMBERS, np.zeros(n)), [f"{i // 16}.jpg" for i in ids]
        rows = RegionRows(ids, names, np.repeat(box, n, 0), [mask | {"counts": "0"}] * n, tokens,
                          numbers, dict.fromkeys(TEXTS, names))  # fmt: skip
        store.append(rows)
    store.finish()
    return RegionStore.open(path)


def nearest_ids(count: int, queries: np.ndarray) -> np.ndarray:
    """(q,10) ids of the most similar vectors, by plain NumPy."""
    ids, similar = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    for start, vectors in batches(count):
        more = np.tile(np.arange(start, start + len(vectors)), (len(queries), 1))
        ids, similar = np.hstack([ids, more]), np.hstack([similar, queries @ vectors.T])
        best = np.argpartition(-similar, K)[:, :K]
        ids, similar = (np.take_along_axis(values, best, 1) for values in (ids, similar))
    return ids
