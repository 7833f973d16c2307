"""Curves of the view segmenter: mean IoU of boxes against photos to learn from, and against width.

    python tools/eval_curves.py --data DIR --out OUT --photos 237 947 3788 --dims 8 16 24

DIR holds train.json, train_boxes.json, val.json and images/. One run per number of photos (of the
configuration's width) and per width (on all photos); what is finished in OUT is not done again.
`--models` scores files of one run too, such as copies of its model after more and more steps; with
`--clicks` the masks of single clicks and not of boxes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from eval_masks import mean_box_iou, mean_click_iou
from eval_rows import append_rows

from tokenize_anything import TAPPredictor
from tokenize_anything.evaluation.region_truth import read_true_images
from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.training.config import load_config
from tokenize_anything.training.relative_paths import resolve_paths
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_training import ViewTrainer

CONFIG = Path(__file__).parent / "configs" / "curve_views.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    for name in ("--photos", "--dims"):
        parser.add_argument(name, type=int, nargs="*", default=[])
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--clicks", action="store_true")
    parser.add_argument("--table", default="tools/eval_results/curves.csv")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    base = resolve_paths(load_config(ViewConfig, CONFIG), words.data, words.out)
    embed = functools.partial(embed_texts_cached, path=words.out / "text_embeddings.safetensors")
    images = read_true_images(words.data / "val.json", words.data / "images")
    runs = [{"max_images": n} for n in words.photos] + [{"view_dim": n} for n in words.dims]
    annotations = str(words.data / "val.json")
    for changes in runs:
        ((name, value),) = changes.items()
        config = dataclasses.replace(base, output_folder=str(words.out / f"{name}_{value}"))
        path = ViewTrainer(dataclasses.replace(config, **changes), embed).run()
        with (path.parent / "log.csv").open(newline="") as file:
            seen = [float(row["mean_iou"]) for row in list(csv.DictReader(file))[-6:]]
        found = ("train, last 300 steps", float(np.mean(seen))), ("val", score(path, images))
        rows = [(f"{name} {value}", f"box mean IoU, {where}", iou) for where, iou in found]
        append_rows(words.table, str(path), annotations, sys.argv, rows)
    for path in words.models:
        kind, measure = ("point", mean_click_iou) if words.clicks else ("box", mean_box_iou)
        row = (path.stem, f"{kind} mean IoU, val", score(path, images, measure))
        append_rows(words.table, str(path), annotations, sys.argv, [row])


def score(path: Path, images: list, measure: Callable = mean_box_iou) -> float:
    """Mean IoU of boxes or clicks, of all regions of some photos."""
    return measure(TAPPredictor.from_pretrained(path, device="cpu", dtype="bfloat16"), images)


if __name__ == "__main__":
    main()
