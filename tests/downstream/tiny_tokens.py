"""Photos, a tiny model, and token builds to kill: `python -m tests.downstream.tiny_tokens ...`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.tiny_predictor import make_photo, tiny_predictor
from tokenize_anything import RegionPredictions, TAPPredictor
from tokenize_anything.cli_photos import find_photos
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.token_build import TokenWork, build_tokens
from tokenize_anything.downstream.token_ledger import PhotoEntry, PhotoLedger
from tokenize_anything.downstream.token_maker import TokenMaker, TokenSettings
from tokenize_anything.downstream.token_photos import FolderPhotos
from tokenize_anything.everything_config import EverythingConfig

SIZES_HW = ((41, 67), (53, 29), (23, 31))
SEARCH = EverythingConfig(points_per_side=3, max_overlap=0.5, min_iou=0.2, max_regions=5)
SETTINGS = TokenSettings(search=SEARCH)


def hopeful_predictor(shift: float = 2.0) -> TAPPredictor:
    """A tiny model that thinks well of its masks, so that some regions are kept."""
    predictor = tiny_predictor()
    with torch.no_grad():
        predictor.model.image_decoder.iou_head.layers[-1].bias += shift
    return predictor


class CountingMaker(TokenMaker):
    """Notes which photos it works on; can be slow, and can say that it lives."""

    def __init__(self, *, seconds: float = 0.0, pid_folder: str = "") -> None:
        super().__init__(hopeful_predictor(), SETTINGS)
        self.seconds, self.worked_on = seconds, list[str]()
        if pid_folder:
            (Path(pid_folder) / str(os.getpid())).touch()

    def _predict(self, photos: Sequence[Any]) -> list[RegionPredictions]:
        time.sleep(self.seconds)
        self.worked_on += [photo.source for photo in photos]
        return super()._predict(photos)


def write_photos(folder: Path, count: int) -> Path:
    """`0.png`, `1.png`, ... and every third one in a folder of its own, with a quote in it."""
    for number in range(count):
        place = folder / "it's" if number % 3 == 2 else folder
        place.mkdir(parents=True, exist_ok=True)
        height, width = SIZES_HW[number % len(SIZES_HW)]
        Image.fromarray(make_photo(height, width, number)).save(place / f"{number}.png")
    return folder


def open_folder(folder: Path) -> FolderPhotos:
    return FolderPhotos.under(folder, find_photos([str(folder)], option="PHOTOS"))


def read_rows(place: str | Path, *, in_order: bool = True) -> dict[str, list[Any]]:
    """Everything in a store, in its order or by region id; exact to the last bit."""
    table = RegionStore.open(place).dataset.to_table()
    if not in_order:
        table = table.sort_by("region_id")
    content: dict[str, list[Any]] = table.to_pydict()
    return content


def read_entries(place: str | Path) -> dict[str, PhotoEntry]:
    return PhotoLedger.open(str(place)).entries()


def vectors_of(content: dict[str, list[Any]], name: str) -> np.ndarray:
    return np.array(content[name], np.float32)


def main() -> None:
    """Build slowly, committing after every block: FOLDER STORE SECONDS."""
    torch.set_num_threads(1)
    folder, out, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    maker = CountingMaker(seconds=seconds)
    build_tokens(open_folder(folder), maker, out, TokenWork(block=2, commit_photos=1))


if __name__ == "__main__":
    main()
