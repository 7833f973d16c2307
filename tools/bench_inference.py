"""Time encode, decode and captions; check the answers first; append rows to a CSV.

python tools/bench_inference.py --models tap_tiny tap_vit_b --dtypes float32 bfloat16 --sam
"""

from __future__ import annotations

import argparse
import sys

import torch
from bench_cases import bench_model, best_time
from bench_rows import append_row, environment
from bench_sam import SamBench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tap_tiny", "tap_vit_b"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sam", action="store_true", help="also time transformers' SamModel")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="tools/bench_results/inference.csv")
    arguments = parser.parse_args()
    facts = environment(arguments.device, sys.argv)
    for dtype in arguments.dtypes:
        for name in arguments.models:
            for result in bench_model(name, arguments.device, dtype, arguments.repeats):
                append_row(arguments.out, facts, (name, dtype), result)
        if arguments.sam:
            for what, seconds in SamBench(arguments.device, dtype).run(best_time):
                subject = ("SamModel ViT-B", dtype)
                append_row(arguments.out, facts, subject, (what, seconds, "s"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
