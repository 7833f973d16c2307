"""One index built and searched, for bench_search: what it costs and what it finds."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from bench_search_cases import DIM, K

from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.region_search import RegionSearch, SearchMode
from tokenize_anything.downstream.search_index import INDEX_NAME, build_index

BUILT, Result = "IVF_RQ", tuple[str, float, str]


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def build(path: Path, kind: str) -> list[Result]:
    start, store = clocks(), RegionStore.open(path)
    if kind == BUILT:
        build_index(store, progress=True)
    else:
        options = {"name": INDEX_NAME, "metric": "cosine", "replace": True}
        options |= {"num_sub_vectors": DIM // 8} if kind == "IVF_PQ" else {}
        store.dataset.create_index("semantic_embedding", kind, **options)
        store.finish()
    (wall, busy), size = clocks() - start, measure_folder(path / "_indices")
    return [("build", wall, "s"), ("build, CPU", busy, "s"), ("index", size, "MB")]


def search(path: Path, mode: SearchMode, queries: np.ndarray, truth: np.ndarray) -> list[Result]:
    """Whole searches, one after another: how long, and how much of the truth they find."""
    recalls, times, regions = [], [], RegionSearch(RegionStore.open(path), mode=mode)
    for query, wanted in zip(queries, truth, strict=False):
        start = clocks()
        hits = regions.by_vector(query, K)
        times.append(1e3 * (clocks() - start))
        recalls.append(np.isin(wanted, hits.rows.region_ids).mean())
    names = ("p50", "p50, CPU", "p95", "p95, CPU")
    latencies = zip(names, np.percentile(times, [50, 95], axis=0).ravel(), strict=True)
    return [("recall@10", float(np.mean(recalls)), "share"), *((*pair, "ms") for pair in latencies)]


def measure_folder(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
