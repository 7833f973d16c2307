"""Photos as large as SA-1B's, with as many masks, made of smaller ones; for the data benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.geometry import decode_rle, encode_rle, masks_to_boxes

LONG_SIDE, NUM_MASKS, QUALITY = 2250, 100, 90


def write_large_photos(annotations: Path, images: Path, folder: Path, count: int) -> None:
    """`sa_<number>.jpg` and `.json` of the photos with most masks, which repeat up to 100."""
    records, _ = read_regions([annotations], images)
    records.sort(key=lambda record: -sum(region.rle is not None for region in record.regions))
    folder.mkdir(parents=True)
    for number, record in enumerate(records[:count]):
        scale = LONG_SIDE / max(record.height, record.width)
        width, height = round(record.width * scale), round(record.height * scale)
        photo = cv2.resize(read_image(record), (width, height), interpolation=cv2.INTER_CUBIC)
        path = folder / f"sa_{number}.jpg"
        cv2.imwrite(str(path), photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        found = _enlarged_masks(record, (width, height))
        rows = [
            found[position % len(found)] | {"id": number * NUM_MASKS + position}
            for position in range(NUM_MASKS)
        ]
        image = {"width": width, "height": height}
        path.with_suffix(".json").write_text(json.dumps({"image": image, "annotations": rows}))


def _enlarged_masks(record: ImageRecord, size_wh: tuple[int, int]) -> list[dict[str, Any]]:
    rows = []
    for rle in [region.rle for region in record.regions if region.rle is not None]:
        soft = cv2.resize(
            decode_rle(rle).astype(np.float32), size_wh, interpolation=cv2.INTER_CUBIC
        )
        mask = soft > 0.5
        x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
        rows.append({"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": encode_rle(mask)})
    return rows
