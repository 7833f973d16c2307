"""Recall of annotated masks by the automatic mode against the number of clicks; rows to a CSV.

python tools/eval_everything.py --annotations DIR/val.json --images DIR/images
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np

from tokenize_anything import TAPPredictor
from tokenize_anything.build import locate_checkpoint
from tokenize_anything.evaluation.everything_recall import measure_recall, superpixel_pyramid
from tokenize_anything.everything_config import EverythingConfig

COLUMNS = (
    "date", "commit", "model", "sha256", "annotations", "command", "subject", "metric", "value",
)  # fmt: skip


def propose(predictor: TAPPredictor, config: EverythingConfig, rgb: np.ndarray) -> np.ndarray:
    return predictor.predict_everything(rgb, config=config, captions=False).masks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tap_tiny")
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--images", required=True, help="folder of the photos")
    parser.add_argument("--points-per-side", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--crop-layers", type=int, default=EverythingConfig.crop_layers)
    parser.add_argument("--min-iou", type=float, default=EverythingConfig.min_iou)
    parser.add_argument("--min-stability", type=float, default=EverythingConfig.min_stability)
    parser.add_argument("--max-images", type=int)
    parser.add_argument("--out", default="tools/eval_results/everything.csv")
    arguments = parser.parse_args()
    predictor = TAPPredictor.from_pretrained(arguments.model, dtype="float32")
    proposers, options = {}, ("crop_layers", "min_iou", "min_stability")
    given = {name: getattr(arguments, name) for name in options}
    where = f", {arguments.crop_layers} layers of crops" if arguments.crop_layers else ""
    for side in arguments.points_per_side:
        config = EverythingConfig(points_per_side=side, **given)
        proposers[f"{side * side} clicks{where}"] = partial(propose, predictor, config)
        name = f"superpixels, up to {side * side}"
        proposers[name] = partial(superpixel_pyramid, num_segments=side * side)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    weights = locate_checkpoint(arguments.model).read_bytes()
    places = {arguments.annotations, arguments.images}
    words = [Path(word).name if word in places else word for word in sys.argv]
    shared = (
        datetime.date.today().isoformat(), commit, Path(arguments.model).name,
        hashlib.sha256(weights).hexdigest()[:16], Path(arguments.annotations).name,
        "python " + shlex.join(words),
    )  # fmt: skip
    out = Path(arguments.out)
    with out.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if not stream.tell():
            writer.writerow(COLUMNS)
        for subject, metric, value in measure_recall(
            proposers, arguments.annotations, arguments.images, max_images=arguments.max_images
        ):
            writer.writerow((*shared, subject, metric, f"{value:.4f}"))
            print(f"{subject:28s} {metric:28s} {value:10.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
