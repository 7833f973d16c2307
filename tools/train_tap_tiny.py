"""Train the built-in model: two stages, two heads, outlines, clicks, names, captions; one file.

    python tools/train_tap_tiny.py --data DIR --out OUT

DIR holds train.json, train_boxes.json and images/. What is finished in OUT is not done again.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TypeVar

from pack_tap_tiny import pack_model, pack_stages

from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.training import pretrain
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import train_caption_tokenizer
from tokenize_anything.training.click_config import ClickConfig
from tokenize_anything.training.click_training import ClickTrainer
from tokenize_anything.training.config import PretrainConfig, load_config
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.naming_training import NamerTrainer
from tokenize_anything.training.relative_paths import resolve_paths
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_training import ViewTrainer

CONFIGS = Path(__file__).parent / "configs"
StageConfig = TypeVar(
    "StageConfig", PretrainConfig, CaptionConfig, ClickConfig, NamingConfig, ViewConfig
)


def read_config(kind: type[StageConfig], path: Path, data: Path, out: Path) -> StageConfig:
    """Read a configuration and put its relative paths under the folders of this run."""
    return resolve_paths(load_config(kind, path), data, out)


def train(data: Path, out: Path, configs: Path = CONFIGS) -> Path:
    """Run all phases in order. Returns the path of the packed model."""
    out.mkdir(parents=True, exist_ok=True)
    embed = functools.partial(embed_texts_cached, path=out / "text_embeddings.safetensors")
    for path in sorted(configs.glob("tap_tiny_stage1?.yaml")):
        pretrain.Pretrainer(read_config(PretrainConfig, path, data, out), embed).run()
    config = read_config(CaptionConfig, configs / "tap_tiny_stage2.yaml", data, out)
    if not Path(config.text_tokenizer).is_file():
        train_caption_tokenizer(config.data.annotation_files, config.text_tokenizer)
    trainer = CaptionTrainer(config)
    pack_stages(trainer, trainer.run(), out / "without_outlines.safetensors")
    phases = (("views", "clicksa"), ("correctionsa", "clicksb"), ("correctionsb", "clicksc"))
    for outlines, clicks in phases:
        path = configs / f"tap_tiny_{outlines}.yaml"
        ViewTrainer(read_config(ViewConfig, path, data, out), embed).run()
        path = configs / f"tap_tiny_{clicks}.yaml"
        ClickTrainer(read_config(ClickConfig, path, data, out)).run()
    sketches = configs / "tap_tiny_sketches.yaml"
    ViewTrainer(read_config(ViewConfig, sketches, data, out), embed).run()
    for path in sorted(configs.glob("tap_tiny_names?.yaml")):
        naming = read_config(NamingConfig, path, data, out)
        named = NamerTrainer(naming, embed).run()
    captions = read_config(CaptionConfig, configs / "tap_tiny_captions.yaml", data, out)
    return pack_model(CaptionTrainer(captions).run(), named, out / "tap_tiny.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of the YAML files")
    print(train(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
