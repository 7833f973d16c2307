"""How many regions a second of processor time the data path of stage 1 prepares.

    python tools/bench_data_path.py --data DIR

DIR holds train.json and images/. Its photos are enlarged to the size of SA-1B's, as a folder and
as tar shards, and prepared as the paper's recipe asks: 1024 px, 64 regions a photo.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from bench_large_photos import write_large_photos
from bench_rows import append_row, environment
from torch.utils.data import DataLoader

from tokenize_anything.data.photo_json import PhotoFolder
from tokenize_anything.data.region_dataset import RegionDataset, RegionSamplingConfig, collate
from tokenize_anything.data.samples import ImageRecord, TextTable
from tokenize_anything.data.shards import ShardRecords, write_shards

REGIONS = 64
NO_TEXTS = TextTable((), np.zeros(0, dtype=np.int64))


def rate(records: Sequence[ImageRecord], image_size: int, workers: int) -> float:
    """Regions a second of processor time, over all photos once."""
    sampling = RegionSamplingConfig(regions_per_image=REGIONS)
    dataset = RegionDataset(records, NO_TEXTS, image_size, sampling=sampling)
    keys = [(0, index) for index in range(len(records))]
    loader = DataLoader(dataset, 1, sampler=keys, num_workers=workers, collate_fn=collate)  # type: ignore[arg-type]
    used = processor_seconds()
    regions = sum(int(batch.has_mask.sum()) for batch in loader)
    return regions / (processor_seconds() - used)


def processor_seconds() -> float:
    """Of this process and of those it has waited for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(one)[:2]) for one in who)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--out", default="tools/bench_results/data_path.csv")
    words = parser.parse_args()
    torch.set_num_threads(1)
    facts = environment("cpu", sys.argv)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_large_photos(
            words.data / "train.json", words.data / "images", place / "folder", words.photos
        )
        folder = PhotoFolder(place / "folder")
        shards = ShardRecords(write_shards(folder, NO_TEXTS, place / "tars"), place / "index")
        for kind, records in {"folder": folder, "shards": shards}.items():
            for workers in (0, 1):
                subject = f"{kind}, {workers} workers", f"{words.image_size} px"
                regions = rate(records, words.image_size, workers)
                append_row(words.out, facts, subject, ("processor", regions, "regions/s"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
