"""Score a model on COCO-style regions and append the figures to a CSV.

python tools/evaluate_regions.py --model tap_tiny --annotations DIR/val.json --images DIR/images
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import shlex
import subprocess
import sys
from pathlib import Path

from tokenize_anything import TAPPredictor
from tokenize_anything.build import locate_checkpoint
from tokenize_anything.evaluation.recognition import evaluate_recognition

COLUMNS = ("date", "commit", "model", "sha256", "annotations", "command", "metric", "value")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tap_tiny")
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--images", required=True, help="folder of the photos")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-images", type=int)
    parser.add_argument("--out", default="tools/eval_results/recognition.csv")
    arguments = parser.parse_args()
    predictor = TAPPredictor.from_pretrained(arguments.model, dtype=arguments.dtype)
    weights = locate_checkpoint(arguments.model).read_bytes()
    metrics = list(
        evaluate_recognition(
            predictor, arguments.annotations, arguments.images, max_images=arguments.max_images
        )
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    command = ["tools/evaluate_regions.py", "--model", Path(arguments.model).name]
    command += ["--annotations", Path(arguments.annotations).name, "--dtype", arguments.dtype]
    shared = (
        datetime.date.today().isoformat(), commit, Path(arguments.model).name,
        hashlib.sha256(weights).hexdigest()[:16], Path(arguments.annotations).name,
        "python " + shlex.join(command),
    )  # fmt: skip
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    is_new = not out.exists()
    with out.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if is_new:
            writer.writerow(COLUMNS)
        for metric, value in metrics:
            writer.writerow((*shared, metric, f"{value:.4f}"))
            print(f"{metric:32s} {value:10.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
