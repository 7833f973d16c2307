"""What a further prompt costs with the second look; the answers are checked first.

    python tools/bench_second_look.py --dtypes auto float32 bfloat16 --sides 512 3464

On a photo of scikit-image, enlarged to these sides, without captions. A further prompt is a
sixteenth of what 17 take longer than one; a single one is asked on the photo encoded before.
"""

from __future__ import annotations

import argparse
import functools
import resource
import sys
from collections.abc import Callable, Iterator

import numpy as np
from bench_cases import best_time, make_predictor
from bench_rows import append_row, environment
from PIL import Image
from skimage.data import astronaut

from tokenize_anything import PointPrompts, RegionPredictions, TAPPredictor

MODEL, MORE, SIDE = "tap_tiny", 16, 512


def draw(kind: str, count: int, height: int, width: int) -> PointPrompts:
    rng = np.random.default_rng(0)
    middles = rng.uniform(0.15, 0.85, (count, 2)) * (width, height)
    halves = rng.uniform(30, 60, (count, 2)) * width / SIDE
    if kind == "click":
        return PointPrompts.from_points(middles)
    return PointPrompts.from_boxes(np.concatenate([middles - halves, middles + halves], axis=1))


def check(ask: Callable[..., RegionPredictions], prompts: PointPrompts) -> None:
    together, alone = ask(prompts=prompts), ask(prompts=prompts[3])
    if np.mean(alone.masks[0] != together.masks[3]) > 1e-2:
        raise AssertionError("one prompt alone and in a batch give different masks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["auto", "float32", "bfloat16"])
    parser.add_argument("--sides", type=int, nargs="+", default=[SIDE], help="pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="tools/bench_results/second_look.csv")
    arguments = parser.parse_args()
    facts = environment("cpu", sys.argv)
    for dtype in arguments.dtypes:
        predictor = make_predictor(MODEL, "cpu", dtype)
        for side in arguments.sides:
            where = f", {side} pixels" if side > SIDE else ""
            for what, *result in bench(predictor, side, arguments.repeats):
                append_row(arguments.out, facts, (MODEL, dtype), (what + where, *result))
    peak = ("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")
    append_row(arguments.out, facts, (MODEL, "all"), peak)


def bench(predictor: TAPPredictor, side: int, repeats: int) -> Iterator[tuple[str, float, str]]:
    photo = np.asarray(Image.fromarray(astronaut()).resize((side, side)))
    answer = functools.partial(predictor.predict_mask_concept_caption, captions=False)
    ask = functools.partial(answer, photo)
    for kind in ("box", "click"):
        many = draw(kind, 1 + MORE, *photo.shape[:2])
        check(ask, many)
        for look, zoom in (("second look", None), ("one look", 0.0)):
            one = best_time(functools.partial(ask, prompts=many[0], zoom=zoom), repeats)
            whole = best_time(functools.partial(ask, prompts=many, zoom=zoom), repeats)
            yield f"first {kind}, {look}", one, "s"
            yield f"further {kind}, {look}", (whole - one) / MORE, "s"
        single = functools.partial(answer, predictor.encode_images(photo), prompts=many[0])
        yield f"single {kind}, second look", best_time(single, repeats), "s"
    asked = ask(prompts=many[:8]).semantic_tokens
    yield "8 captions", best_time(lambda: predictor.write_captions(asked), repeats), "s"


if __name__ == "__main__":
    main()
