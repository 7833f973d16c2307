"""Rows for region stores, and a writer to kill: `python -m tests.data.tiny_store STORE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.data.region_rows import RegionColumns, RegionRows, VectorColumn
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.geometry import encode_rle, masks_to_boxes

DIM, TOKEN_DIM, BATCH = 37, 5, 11
COLUMNS = RegionColumns(
    "tower@1",
    (VectorColumn("embedding", DIM, is_unit=True), VectorColumn("token", TOKEN_DIM, "float32")),
    numbers=("iou",),
    texts=("caption",),
)


def make_rows(region_ids: Sequence[int], **changes: Any) -> RegionRows:
    """Rows that follow from their ids alone."""
    values: dict[str, list[Any]] = {
        name: [] for name in ("images", "boxes", "rles", "embedding", "token", "iou", "caption")
    }
    for region_id in region_ids:
        rng = np.random.default_rng(abs(int(region_id)))
        mask = np.zeros((17, 23), bool)
        y, x = rng.integers(0, 10, 2)
        mask[y : y + 5, x : x + 7] = True
        embedding = rng.standard_normal(DIM)
        values["images"].append(f"photo é {region_id // 3}.jpg")
        values["boxes"].append(masks_to_boxes(mask[None])[0])
        values["rles"].append(encode_rle(mask))
        values["embedding"].append(embedding / np.linalg.norm(embedding))
        values["token"].append(rng.standard_normal(TOKEN_DIM))
        values["iou"].append(rng.random())
        values["caption"].append("" if region_id % 2 else f"number {region_id}")
    fields: dict[str, Any] = {
        "region_ids": np.array(region_ids, np.int64),
        "images": values["images"],
        "boxes_xyxy": np.array(values["boxes"], np.float32).reshape(-1, 4),
        "rles": values["rles"],
        "vectors": {
            "embedding": np.reshape(values["embedding"], (-1, DIM)),
            "token": np.reshape(values["token"], (-1, TOKEN_DIM)),
        },
        "numbers": {"iou": np.array(values["iou"])},
        "texts": {"caption": values["caption"]},
    }
    return RegionRows(**(fields | changes))


def batch_ids(number: int) -> list[int]:
    """Ids of the batches that `main` appends."""
    return [1000 - 7 * k for k in range(number * BATCH, (number + 1) * BATCH)]


def assert_rows_equal(rows: RegionRows, expected: RegionRows) -> None:
    np.testing.assert_array_equal(rows.region_ids, expected.region_ids)
    assert list(rows.images) == list(expected.images)
    np.testing.assert_array_equal(rows.boxes_xyxy, expected.boxes_xyxy)
    assert list(rows.rles) == list(expected.rles)
    stored = expected.vectors["embedding"].astype(np.float16)
    np.testing.assert_array_equal(rows.vectors["embedding"], stored)
    stored = expected.vectors["token"].astype(np.float32)
    np.testing.assert_array_equal(rows.vectors["token"], stored)
    np.testing.assert_array_equal(rows.numbers["iou"], expected.numbers["iou"].astype(np.float32))
    assert list(rows.texts["caption"]) == list(expected.texts["caption"])


def main() -> None:
    """Append batches until killed."""
    store = RegionStore.open_or_create(Path(sys.argv[1]), COLUMNS)
    number = 0
    while True:
        store.append(make_rows(batch_ids(number)))
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    main()
