"""What bench_inference times, and the check of the answers before it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import numpy as np
import torch

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
