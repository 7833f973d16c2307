"""A few photos as SA-1B lays them out, a tower that needs no weights, and builds to kill."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.data.sa1b import open_photos
from tokenize_anything.geometry import encode_rle, masks_to_boxes
from tokenize_anything.semantic_sa1b.clip_teacher import CropSettings
from tokenize_anything.semantic_sa1b.pipeline import BuildSettings, beside_store, build_store

DIM, SIDE = 19, 13
SIZES_HW = ((47, 61), (53, 43), (59, 67))


@dataclass
class PlainTower:
    """Random projections of the pixels; counts what it embeds, and can be slow."""

    identity: str = "plain@7"
    dim: int = DIM
    crop_settings: CropSettings = field(default_factory=lambda: CropSettings(size=SIDE))
    seconds: float = 0.0
    pid_folder: str = ""
    num_embedded: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.weights = torch.randn(3 * SIDE * SIDE, self.dim, generator=generator)
        if self.pid_folder:
            (Path(self.pid_folder) / str(os.getpid())).touch()

    def embed_images(self, pixels: Tensor, *, batch_size: int) -> Tensor:
        """(n,D), each row of its own pixels; not of length 1."""
        time.sleep(self.seconds)
        self.num_embedded += len(pixels)
        rows = [torch.tanh(picture.flatten() @ self.weights) for picture in pixels]
        return torch.stack(rows) if rows else torch.zeros(0, self.dim)


def make_photo(number: int) -> np.ndarray:
    """(H,W,3) noise around a colour of its own."""
    rng = np.random.default_rng(number)
    height, width = SIZES_HW[number % len(SIZES_HW)]
    return (rng.integers(0, 200, 3) + rng.integers(0, 50, (height, width, 3))).astype(np.uint8)


def make_masks(number: int) -> list[np.ndarray]:
    """Two to four ellipses."""
    rng = np.random.default_rng(1000 + number)
    height, width = SIZES_HW[number % len(SIZES_HW)]
    masks = []
    for _ in range(2 + number % 3):
        mask = np.zeros((height, width), np.uint8)
        centre = int(rng.integers(9, width - 9)), int(rng.integers(9, height - 9))
        axes = tuple(rng.integers(3, 14, 2).tolist())
        cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
        masks.append(mask.astype(bool))
    return masks


def region_id(number: int, position: int) -> int:
    """Neither in order nor small, as SA-1B's."""
    return 2**33 + 1009 * ((number * 7) % 101) + position


def make_document(number: int) -> dict[str, Any]:
    """The JSON beside a photo."""
    height, width = SIZES_HW[number % len(SIZES_HW)]
    annotations = []
    for position, mask in enumerate(make_masks(number)):
        x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
        annotations.append(
            {
                "id": region_id(number, position),
                "segmentation": encode_rle(mask),
                "bbox": [x0, y0, x1 - x0 - 1, y1 - y0 - 1],  # as SA-1B measures
                "area": int(mask.sum()),
                "predicted_iou": 0.9,
                "stability_score": 0.97,
                "point_coords": [[x0, y0]],
                "crop_box": [0, 0, width, height],
            }
        )
    image = {"image_id": number, "width": width, "height": height, "file_name": f"sa_{number}.jpg"}
    return {"image": image, "annotations": annotations}


def photo_bytes(number: int) -> bytes:
    """Encoded as PNG, whatever the name says, so that every pixel is known."""
    return bytes(cv2.imencode(".png", make_photo(number)[..., ::-1])[1])


def write_folder(folder: Path, numbers: range) -> Path:
    """`sa_<number>.jpg` and `.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"sa_{number}.jpg").write_bytes(photo_bytes(number))
        (folder / f"sa_{number}.json").write_text(json.dumps(make_document(number)))
    return folder


def write_tar(path: Path, numbers: range) -> Path:
    """The same in a tar, photos before their JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for ending in ("jpg", "json"):
            for number in numbers:
                document = json.dumps(make_document(number)).encode()
                content = photo_bytes(number) if ending == "jpg" else document
                member = tarfile.TarInfo(f"sa_{number}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def read_all(place: Path) -> dict[str, Any]:
    """Everything in a store, in its order."""
    parts = list(RegionStore.open(place).iterate())
    return {
        "ids": [i for part in parts for i in part.region_ids.tolist()],
        "images": [name for part in parts for name in part.images],
        "boxes": [box for part in parts for box in part.boxes_xyxy.tolist()],
        "rles": [rle for part in parts for rle in part.rles],
        "embeddings": [v.tobytes() for part in parts for v in part.vectors["embedding"]],
    }


def main() -> None:
    """Build slowly, committing after every photo: `python -m ... DATA STORE SECONDS`."""
    data, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    photos = open_photos(data, index_folder=beside_store(out, "shards"))
    build_store(photos, PlainTower(seconds=seconds), out, BuildSettings(commit_regions=1))


if __name__ == "__main__":
    main()
