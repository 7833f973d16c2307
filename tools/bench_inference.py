"""Time encode, decode and captions; check the answers first; append rows to a CSV.

    python tools/bench_inference.py --models tap_tiny tap_vit_b --dtypes float32 bfloat16 --sam
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from bench_rows import append_row, environment
from bench_sam import SamBench

from tokenize_anything import PointPrompts, TAPPredictor, build_model
from tokenize_anything.config import PRESETS
from tokenize_anything.text_generation import generate

PROMPT_COUNTS = (1, 16, 64, 256)
CAPTIONED = 64


def best_time(action: Callable[[], object], repeats: int) -> float:
    """Shortest of `repeats` runs after a warm-up, seconds."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def make_predictor(name: str, device: str, dtype: str) -> TAPPredictor:
    """tap_tiny with its weights; the published sizes with random ones."""
    if name == "tap_tiny":
        return TAPPredictor.from_pretrained(name, device=device, dtype=dtype)
    torch.manual_seed(0)
    model = build_model(PRESETS[name](), device=device).to(getattr(torch, dtype))
    return TAPPredictor(model)


def grid_prompts(count: int, height: int, width: int) -> PointPrompts:
    """`count` clicks spread over the image."""
    rng = np.random.default_rng(0)
    return PointPrompts.from_points(rng.uniform(0, 1, (count, 2)) * (width - 1, height - 1))


def check_answers(predictor: TAPPredictor, image: np.ndarray) -> None:
    """One prompt alone and all in one call must agree, or no time is worth anything."""
    prompts = grid_prompts(5, *image.shape[:2])
    encoded = predictor.encode_images(image)
    together = predictor.predict_mask_concept_caption(encoded, prompts=prompts, captions=False)
    alone = predictor.predict_mask_concept_caption(encoded, prompts=prompts[3], captions=False)
    tolerance = 1e-3 if predictor.dtype == torch.float32 else 5e-2
    np.testing.assert_allclose(alone.iou_scores[0], together.iou_scores[3], atol=tolerance)
    if predictor.dtype == torch.float32 and np.mean(alone.masks[0] != together.masks[3]) > 1e-3:
        raise AssertionError("one prompt alone and in a batch give different masks")


def bench_model(name: str, device: str, dtype: str, repeats: int) -> list[tuple[str, float, str]]:
    """(what, value, unit) rows of one model."""
    predictor = make_predictor(name, device, dtype)
    image = np.random.default_rng(0).integers(0, 256, (768, 1024, 3)).astype(np.uint8)
    check_answers(predictor, image)
    rows = [("encode", best_time(lambda: predictor.encode_images(image), repeats), "s")]
    encoded = predictor.encode_images(image)
    for count in PROMPT_COUNTS:
        prompts = grid_prompts(count, *image.shape[:2])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        runs = 1 if count > CAPTIONED else repeats
        seconds = best_time(
            lambda p=prompts: predictor.decode_regions(encoded, p, all_slots=False), runs
        )
        rows.append((f"decode {count} prompts", seconds, "s"))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        rows.append((f"peak memory added by {count} prompts", grown / 2**20, "GiB"))
    tokens = torch.randn(CAPTIONED, predictor.model.config.decoder_dim, device=device)
    tokens = tokens.to(predictor.dtype)
    decoder = predictor.model.text_decoder
    write = best_time(lambda: generate(decoder, tokens, start_id=1, end_id=2), repeats)
    return [*rows, (f"captions for {CAPTIONED} regions", write, "s")]


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
            for what, value, unit in bench_model(name, arguments.device, dtype, arguments.repeats):
                append_row(arguments.out, facts, name, dtype, what, value, unit)
        if arguments.sam:
            for what, seconds in SamBench(arguments.device, dtype).run(best_time):
                append_row(arguments.out, facts, "SamModel ViT-B", dtype, what, seconds, "s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
