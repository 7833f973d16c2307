"""What a region costs `tap semantic build`: processor time to cut it out, to embed it, and bytes.

    python tools/bench_semantic_build.py --data DIR --tower NAME

DIR holds train.json and images/. Its photos are enlarged to the size of SA-1B's, 100 masks each. Of
the tower only the image side is built, with random weights: its speed does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_large_photos import write_large_photos
from bench_rows import append_row, environment

from tokenize_anything.data.sa1b import open_photos
from tokenize_anything.open_clip_files import import_open_clip
from tokenize_anything.semantic_sa1b.clip_teacher import CropSettings
from tokenize_anything.semantic_sa1b.region_crops import crop_photo

CROPS = 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--tower", default="ViT-B-32", help="a name of open_clip")
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--out", default="tools/bench_results/semantic_build.csv")
    words = parser.parse_args()
    torch.set_num_threads(1)
    facts = environment("cpu", sys.argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        write_large_photos(words.data / "train.json", words.data / "images", folder, words.photos)
        photos = open_photos(folder, index_folder=name)
        start = time.process_time()
        cropped = [crop_photo(photos, index, CropSettings()) for index in range(words.photos)]
        regions = sum(len(photo.region_ids) for photo in cropped)
        rate = regions / (time.process_time() - start)
        runs = [len(r["counts"]) for photo in cropped for r in photo.rles]
        files = [path.stat().st_size for path in folder.iterdir()]
        subject = "photos of SA-1B's size", "uint8"
        append_row(words.out, facts, subject, ("read and crop", rate, "regions/s of processor"))
        append_row(words.out, facts, subject, ("mask as text", sum(runs) / len(runs), "B/region"))
        append_row(words.out, facts, subject, ("photo and JSON", sum(files) / words.photos, "B"))
    tower = import_open_clip().create_model(words.tower).visual.eval()
    pixels = torch.zeros(CROPS, 3, 224, 224)
    with torch.no_grad():
        tower(pixels[:2])
        start = time.process_time()
        tower(pixels)
    rate = CROPS / (time.process_time() - start)
    append_row(words.out, facts, (words.tower, "float32"), ("embed", rate, "crops/s of processor"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
