"""Curves of the view segmenter: mean IoU of boxes against photos to learn from, and against width.

    python tools/eval_curves.py --data DIR --out OUT --photos 237 947 3788 --dims 8 16 24

DIR holds train.json, train_boxes.json, val.json and images/. One run per number of photos (of the
configuration's width) and per width (on all photos); what is finished in OUT is not done again.
`--steps` ends runs of all photos sooner, for a third curve.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
from eval_boxes import mean_box_iou
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
    for name in ("--photos", "--dims", "--steps"):
        parser.add_argument(name, type=int, nargs="*", default=[])
    parser.add_argument("--table", default="tools/eval_results/curves.csv")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    base = resolve_paths(load_config(ViewConfig, CONFIG), words.data, words.out)
    embed = functools.partial(embed_texts_cached, path=words.out / "text_embeddings.safetensors")
    images = read_true_images(words.data / "val.json", words.data / "images")
    runs = [{"max_images": n} for n in words.photos] + [{"view_dim": n} for n in words.dims]
    for changes in [*runs, *({"num_steps": n} for n in words.steps)]:
        ((name, value),) = changes.items()
        config = dataclasses.replace(base, output_folder=str(words.out / f"{name}_{value}"))
        path = ViewTrainer(dataclasses.replace(config, **changes), embed).run()
        with (path.parent / "log.csv").open(newline="") as file:
            seen = [float(row["mean_iou"]) for row in list(csv.DictReader(file))[-6:]]
        scores = [("train, last 300 steps", float(np.mean(seen)))]
        trained = TAPPredictor.from_pretrained(path, device="cpu", dtype="bfloat16")
        scores.append(("val", mean_box_iou(trained, images)))
        rows = [(f"{name} {value}", f"box mean IoU, {where}", score) for where, score in scores]
        append_rows(words.table, str(path), str(words.data / "val.json"), sys.argv, rows)


if __name__ == "__main__":
    main()
