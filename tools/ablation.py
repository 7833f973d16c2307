"""The paper's tables 4 and 5 at small scale: what stage 1 learns, and what captions are read from.

    python tools/ablation.py --data DIR --out OUT

DIR holds train.json, val.json and images/. Every combination of concept loss, token and seed gives
a row of the CSV; rows that are there are not made again, and a run that was stopped goes on. All
combinations of a seed start from one model, which learned the ellipses inside boxes and no more.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TypeVar

from ablation_runs import append, finished, learn_captions, learn_regions, write_subsets

from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_tokenizer import train_caption_tokenizer
from tokenize_anything.training.config import PretrainConfig, load_config
from tokenize_anything.training.pretrain import Pretrainer
from tokenize_anything.training.relative_paths import resolve_paths

CONFIGS = Path(__file__).parent / "configs"
Config = TypeVar("Config", PretrainConfig, CaptionConfig)
LOSSES, TOKENS = ("none", "feature", "concept"), ("mask", "semantic")
SUBSETS = {"ablation_train.json": 1894, "ablation_captions.json": 421}


def read_config(kind: type[Config], name: str, out: Path) -> Config:
    """A configuration whose annotations are the subsets in the folder of the runs."""
    config = load_config(kind, CONFIGS / name)
    files = tuple(str((out / file).resolve()) for file in config.data.annotation_files)
    data = dataclasses.replace(config.data, annotation_files=files)
    return dataclasses.replace(config, data=data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--table", type=Path, default=Path("tools/eval_results/ablation.csv"))
    words = parser.parse_args()
    tokenizer = words.out / "text_tokenizer.model"
    words.out.mkdir(parents=True, exist_ok=True)
    if not tokenizer.is_file():
        write_subsets(words.data / "train.json", words.out, SUBSETS)
        train_caption_tokenizer([words.out / "ablation_captions.json"], tokenizer)
    start = read_config(PretrainConfig, "ablation_start.yaml", words.out)
    regions = read_config(PretrainConfig, "ablation_stage1.yaml", words.out)
    captions = read_config(CaptionConfig, "ablation_captions.yaml", words.out)
    steps = str(regions.num_steps), str(captions.num_steps)
    for seed in words.seeds:
        for loss in LOSSES:
            keys = [(loss, token, str(seed), *steps) for token in TOKENS]
            if set(keys) <= finished(words.table):
                continue
            first = dataclasses.replace(start, seed=seed, output_folder=f"start_{seed}")
            Pretrainer(resolve_paths(first, words.data, words.out)).run()
            first = dataclasses.replace(
                regions, init_from=f"start_{seed}/model.safetensors", concept_loss=loss, seed=seed,
                output_folder=f"{loss}_{seed}",
            )  # fmt: skip
            first = resolve_paths(first, words.data, words.out)
            iou, top1 = learn_regions(first, words.out, words.data)
            for key in [key for key in keys if key not in finished(words.table)]:
                second = dataclasses.replace(
                    captions, init_from=f"{loss}_{seed}/model.safetensors", seed=seed,
                    tokens=dataclasses.replace(captions.tokens, token=key[1]),
                    output_folder=f"{loss}_{seed}_{key[1]}",
                )  # fmt: skip
                scores = learn_captions(resolve_paths(second, words.data, words.out))
                append(words.table, (*key, *(f"{value:.4f}" for value in (iou, top1, *scores))))


if __name__ == "__main__":
    main()
