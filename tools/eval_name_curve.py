"""Curves of the view namer: names of boxes against photos to learn from, its width, its teacher.

    python tools/eval_name_curve.py --data DIR --out OUT --photos 237 947 3788 --dims 8 16 \
        --teachers wordllama random

DIR holds train.json, train_boxes.json, val.json and images/. One run per number of photos, width
and text encoder, all else as in the configuration; what is finished in OUT is not learnt again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from eval_rows import append_rows
from name_curve_runs import learn_names, score_names
from text_teachers import TEACHERS

from tokenize_anything.evaluation.region_truth import read_true_images
from tokenize_anything.training.config import load_config
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.relative_paths import resolve_paths

CONFIG = Path(__file__).parent / "configs" / "curve_names.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--photos", type=int, nargs="*", default=[])
    parser.add_argument("--dims", type=int, nargs="*", default=[])
    parser.add_argument("--teachers", nargs="*", default=[], choices=TEACHERS)
    parser.add_argument("--table", default="tools/eval_results/curves.csv")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    base = resolve_paths(load_config(NamingConfig, CONFIG), words.data, words.out)
    images = read_true_images(words.data / "val.json", words.data / "images")
    runs = [("max_images", {"max_images": count}, "minilm") for count in words.photos]
    runs += [("namer_dim", {"namer_dim": width}, "minilm") for width in words.dims]
    runs += [("teacher", {}, name) for name in words.teachers]
    for key, changes, teacher in runs:
        value = changes.get(key, teacher)
        config = dataclasses.replace(base, output_folder=str(words.out / f"{key}_{value}"))
        trainer = learn_names(dataclasses.replace(config, **changes), teacher, words.out)
        rows = score_names(trainer, images, f"names, {key} {value}")
        path = str(trainer.folder / "model.safetensors")
        append_rows(words.table, path, str(words.data / "val.json"), sys.argv, rows)


if __name__ == "__main__":
    main()
