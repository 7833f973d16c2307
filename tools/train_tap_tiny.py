"""Train the built-in model: tokenizer, stage 1 in phases, stage 2, two heads, outlines; one file.

    python tools/train_tap_tiny.py --data DIR --out OUT

DIR holds train.json, train_boxes.json and images/. What is finished in OUT is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pack_tap_tiny import pack_outlines, pack_stages

from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.training import pretrain
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import train_caption_tokenizer
from tokenize_anything.training.config import PretrainConfig, load_config
from tokenize_anything.training.relative_paths import resolve_paths
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_training import ViewTrainer

CONFIGS = Path(__file__).parent / "configs"
STAGE1 = tuple(CONFIGS / f"tap_tiny_stage1{phase}.yaml" for phase in "abcdefghijklmn")
STAGE2 = CONFIGS / "tap_tiny_stage2.yaml"
VIEWS = CONFIGS / "tap_tiny_views.yaml"
StageConfig = TypeVar("StageConfig", PretrainConfig, CaptionConfig, ViewConfig)


def read_config(kind: type[StageConfig], path: Path, data: Path, out: Path) -> StageConfig:
    """Read a configuration and put its relative paths under the folders of this run."""
    return resolve_paths(load_config(kind, path), data, out)


def train(data: Path, out: Path, stage1: Sequence[Path], stage2: Path, views: Path = VIEWS) -> Path:
    """Run all phases in order. Returns the path of the packed model."""
    out.mkdir(parents=True, exist_ok=True)
    embed = functools.partial(embed_texts_cached, path=out / "text_embeddings.safetensors")
    for path in stage1:
        pretrain.Pretrainer(read_config(PretrainConfig, path, data, out), embed).run()
    config = read_config(CaptionConfig, stage2, data, out)
    if not Path(config.text_tokenizer).is_file():
        train_caption_tokenizer(config.data.annotation_files, config.text_tokenizer)
    trainer = CaptionTrainer(config)
    packed = pack_stages(trainer, trainer.run(), out / "without_outlines.safetensors")
    segmenter = dataclasses.replace(
        read_config(ViewConfig, views, data, out), init_from=str(packed)
    )
    trained = ViewTrainer(segmenter, embed).run()
    return pack_outlines(segmenter, trained, out / "tap_tiny.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--stage1", type=Path, nargs="+", default=STAGE1, help="YAML, in order")
    parser.add_argument("--stage2", type=Path, default=STAGE2, help="YAML")
    parser.add_argument("--views", type=Path, default=VIEWS, help="YAML")
    print(train(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
