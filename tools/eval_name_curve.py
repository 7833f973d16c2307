"""Curve of the view namer: how often names of boxes are right against photos to learn from.

    python tools/eval_name_curve.py --data DIR --out OUT --photos 237 947 3788

DIR holds train.json, train_boxes.json, val.json and images/. One run per number of photos; what is
finished in OUT is not done again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
from calibrate_fits import measure
from eval_rows import append_rows

from tokenize_anything import TAPPredictor
from tokenize_anything.evaluation.region_truth import read_true_images
from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.training.config import load_config
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.naming_training import NamerTrainer
from tokenize_anything.training.relative_paths import resolve_paths

CONFIG = Path(__file__).parent / "configs" / "curve_names.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--photos", type=int, nargs="+", required=True)
    parser.add_argument("--table", default="tools/eval_results/curves.csv")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    base = resolve_paths(load_config(NamingConfig, CONFIG), words.data, words.out)
    embed = functools.partial(embed_texts_cached, path=words.out / "text_embeddings.safetensors")
    images = read_true_images(words.data / "val.json", words.data / "images")
    for count in words.photos:
        folder = str(words.out / f"names_{count}")
        config = dataclasses.replace(base, output_folder=folder, max_images=count)
        path = NamerTrainer(config, embed).run()
        with (path.parent / "log.csv").open(newline="") as file:
            seen = [float(row["accuracy"]) for row in list(csv.DictReader(file))[-6:]]
        predictor = TAPPredictor.from_pretrained(path, device="cpu", dtype="bfloat16")
        log_probs, names, *_ = measure(predictor, images, with_clicks=False)
        found = (np.argsort(-log_probs)[:, :5] == names[:, None]).cumsum(axis=1).mean(axis=0)
        rows = [
            ("accuracy, train, last 300 steps", float(np.mean(seen))),
            ("concept top-1 of those in the vocabulary, val", float(found[0])),
            ("concept top-5 of those in the vocabulary, val", float(found[4])),
        ]
        rows = [(f"names, max_images {count}", metric, value) for metric, value in rows]
        append_rows(words.table, str(path), str(words.data / "val.json"), sys.argv, rows)


if __name__ == "__main__":
    main()
