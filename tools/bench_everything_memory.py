"""Memory of the automatic mode over many photos: peak and present, after 1, 2, 5, 10, ... photos.

python tools/bench_everything_memory.py --images DIR
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

import torch
from bench_rows import append_row, environment
from tqdm import tqdm

from tokenize_anything import TAPPredictor
from tokenize_anything.everything_config import EverythingConfig


def present_memory() -> float:
    """Resident memory of this process in GiB, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tap_tiny")
    parser.add_argument("--images", required=True, help="folder of photos")
    parser.add_argument("--max-images", type=int, default=200)
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", default="tools/bench_results/everything.csv")
    arguments = parser.parse_args()
    words = [Path(word).name if word == arguments.images else word for word in sys.argv]
    facts = environment(arguments.device, words)
    subject = (Path(arguments.model).name, arguments.dtype)
    predictor = TAPPredictor.from_pretrained(
        arguments.model, device=arguments.device, dtype=arguments.dtype
    )
    config = EverythingConfig(points_per_side=arguments.points_per_side)
    photos = sorted(Path(arguments.images).iterdir())[: arguments.max_images]
    for number, path in enumerate(tqdm(photos, mininterval=5), 1):
        predictor.predict_everything(path, config=config)
        if str(number).rstrip("0") in ("1", "2", "5") or number == len(photos):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            for kind, value in (("peak", peak), ("present", present_memory())):
                what = f"everything, {kind} memory after {number} photos"
                append_row(arguments.out, facts, subject, (what, value, "GiB"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
