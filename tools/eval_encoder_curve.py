"""Curve of the image encoder: box masks and names against its width and depth, all else alike.

    python tools/eval_encoder_curve.py --data DIR --out OUT --sizes 128x12 192x6 192x12

DIR holds train.json, val.json and images/. One run per WIDTHxDEPTH, from noise, with a head for
every 64 channels and as many steps as the configuration or `--steps` says; what is finished in OUT
is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
from calibrate_fits import measure
from eval_names import vocabulary_rows
from eval_rows import append_rows

from tokenize_anything import TAPPredictor
from tokenize_anything.evaluation.region_truth import read_true_images
from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.training.config import PretrainConfig, load_config
from tokenize_anything.training.pretrain import CONCEPTS_FILE, Pretrainer
from tokenize_anything.training.relative_paths import resolve_paths

CONFIG = Path(__file__).parent / "configs" / "curve_encoder.yaml"


def with_encoder(config: PretrainConfig, size: str, steps: int) -> PretrainConfig:
    """A run of so many steps of an encoder of WIDTHxDEPTH, all else alike."""
    width, depth = map(int, size.split("x"))
    model = dataclasses.replace(
        config.model, encoder_dim=width, encoder_depth=depth, encoder_heads=width // 64,
        encoder_mlp_dim=4 * width,
    )  # fmt: skip
    folder = str(Path(config.output_folder) / f"{size}_{steps}")
    return dataclasses.replace(config, model=model, output_folder=folder, num_steps=steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--sizes", nargs="+", required=True, metavar="WIDTHxDEPTH")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--table", default="tools/eval_results/curves.csv")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    base = resolve_paths(load_config(PretrainConfig, CONFIG), words.data, words.out)
    embed = functools.partial(embed_texts_cached, path=words.out / "text_embeddings.safetensors")
    images = read_true_images(words.data / "val.json", words.data / "images")
    for size in words.sizes:
        steps = words.steps or base.num_steps
        path = Pretrainer(with_encoder(base, size, steps), embed).run()
        predictor = TAPPredictor.from_pretrained(
            path, concepts=path.with_name(CONCEPTS_FILE), device="cpu", dtype="bfloat16"
        )
        log_probs, names, by_box, _ = measure(predictor, images, with_clicks=False)
        subject = f"encoder {size}, {steps} steps"
        parameters = sum(p.numel() for p in predictor.model.image_encoder.parameters()) / 1e6
        rows = [
            (subject, "parameters of the encoder, millions", parameters),
            (subject, "box mean IoU, val", float(np.mean(by_box[:, 1]))),
            *vocabulary_rows(subject, log_probs, names),
        ]
        append_rows(words.table, str(path), str(words.data / "val.json"), sys.argv, rows)


if __name__ == "__main__":
    main()
