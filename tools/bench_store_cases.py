"""Time the formats for bench_region_store: write, random read by id, size."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_store_keyed import FORMATS
from bench_store_lance import DIM, RLE_BYTES, Batch

BATCH, READ, READS = 4096, 64, 60
Result = tuple[str, float, str]


def make_batch(number: int) -> Batch:
    """Rows that follow from the batch's number alone; ids in no order, as SA-1B's are."""
    rng = np.random.default_rng(number)
    ids = (np.arange(number * BATCH, (number + 1) * BATCH) * 2654435761) % 2**32
    boxes = rng.uniform(0, 1500, (BATCH, 4)).astype(np.float32)
    rles = rng.integers(48, 112, (BATCH, RLE_BYTES), np.uint8).view(f"S{RLE_BYTES}")[:, 0]
    return ids, boxes, rles, rng.standard_normal((BATCH, DIM), np.float32).astype(np.float16)


def time_formats(names: list[str], folder: Path, num_batches: int) -> dict[str, list[Result]]:
    """Write and read in turns, so that whatever else the machine does slows all formats alike."""
    stores = {name: FORMATS[name](folder / name) for name in names}
    written: dict[str, float] = dict.fromkeys(names, 0)
    for number in range(num_batches):
        batch = make_batch(number)
        for name, store in stores.items():
            written[name] += seconds(lambda s=store, b=batch: s.append(b))
    for name, store in stores.items():
        written[name] += seconds(store.finish)
    counts, rng = {n: len(store.ids()) for n, store in stores.items()}, np.random.default_rng(0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    all_ids = np.concatenate([make_batch(number)[0] for number in range(num_batches)])
    for _ in range(READS):
        scattered = rng.choice(all_ids, READ, replace=False)
        start = rng.integers(len(all_ids) - READ)
        photo = all_ids[start : start + READ]  # written one after another
        for name, store in stores.items():
            pair = [seconds(lambda s=store, w=ids: s.read(w)) for ids in (scattered, photo)]
            times[name].append((1e3 * pair[0], 1e3 * pair[1]))
    results = {}
    for name in names:
        size = sum(file.stat().st_blocks * 512 for file in (folder / name).rglob("*"))
        scattered_ms, photo_ms = np.transpose(times[name])
        results[name] = [
            ("write", counts[name] / written[name], "rows/s"),
            (f"read {READ} scattered ids, fastest", scattered_ms.min(), "ms"),
            (f"read {READ} scattered ids, median", float(np.median(scattered_ms)), "ms"),
            (f"read {READ} ids of one photo, fastest", photo_ms.min(), "ms"),
            (f"read {READ} ids of one photo, median", float(np.median(photo_ms)), "ms"),
            ("size on disk", size / counts[name], "B/row"),
        ]
    return results


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
