"""Time the automatic mode beside transformers' mask-generation pipeline at the same grid.

python tools/bench_everything.py --points-per-side 32

Both models are ViT-B with random weights, and each keeps the same share of its masks by predicted
IoU; then neither keeps any, which is the least work there is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from bench_cases import make_predictor
from bench_mask_generation import MaskGenerationBench
from bench_rows import append_row, environment
from PIL import Image

from tokenize_anything.everything_config import EverythingConfig

Row = tuple[str, tuple[str, float, str]]  # model, (what, value, unit)


def compare(arguments: argparse.Namespace) -> Iterator[Row]:
    """Seconds per photo of both, and their ratio."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC))
    side, seconds = arguments.points_per_side, {}
    predictor = make_predictor("tap_vit_b", arguments.device, arguments.dtype)
    head, seen = predictor.model.image_decoder.iou_head, []
    hook = head.register_forward_hook(lambda *call: seen.append(call[-1][:, 1:].float()))
    predictor.predict_everything(photo, config=EverythingConfig(points_per_side=side, min_iou=1))
    hook.remove()
    with torch.no_grad():
        head.layers[-1].bias += 0.5 - torch.cat(seen).quantile(1 - arguments.kept)
    sam = MaskGenerationBench(arguments.device, arguments.dtype, side)
    threshold = sam.scores(photo).quantile(1 - arguments.kept).item()
    for kept, ours, theirs in ((arguments.kept, 0.5, threshold), (0, 1.0, 1e6)):
        config = EverythingConfig(points_per_side=side, min_iou=ours)
        calls = {
            "tap_vit_b": lambda config=config: len(
                predictor.predict_everything(photo, config=config)
            ),
            "SamModel ViT-B": lambda theirs=theirs: sam(photo, theirs),
        }
        for model, call in calls.items():
            start = time.perf_counter()
            count = call()
            seconds[model] = time.perf_counter() - start
            what = f"everything {side} x {side}, {kept:.0%} of masks kept"
            yield model, (what, seconds[model], "s")
            yield model, (what + ": masks", count, "masks")
        ratio = seconds["SamModel ViT-B"] / seconds["tap_vit_b"]
        yield "tap_vit_b", (what + ": times faster", ratio, "x")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--kept", type=float, default=0.1, help="share of masks by predicted IoU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", default="tools/bench_results/everything.csv")
    arguments = parser.parse_args()
    facts = environment(arguments.device, sys.argv)
    for model, row in compare(arguments):
        append_row(arguments.out, facts, (model, arguments.dtype), row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
