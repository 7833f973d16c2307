"""Train the built-in model: tokenizer, stage 1 in phases, stage 2, two heads; all in one file.

    python tools/train_tap_tiny.py --data DIR --out OUT

DIR holds train.json, train_boxes.json and images/. What is finished in OUT is not done again.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.text_towers import MINILM
from tokenize_anything.training import pretrain
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import train_caption_tokenizer
from tokenize_anything.training.concept_head import fit_concept_head, name_indices
from tokenize_anything.training.config import PretrainConfig, load_config
from tokenize_anything.training.iou_head import collect_iou_samples, fit_iou_head
from tokenize_anything.training.relative_paths import resolve_paths

CONFIGS = Path(__file__).parent / "configs"
STAGE1 = tuple(CONFIGS / f"tap_tiny_stage1{phase}.yaml" for phase in "abcdefghijklmn")
STAGE2 = CONFIGS / "tap_tiny_stage2.yaml"
StageConfig = TypeVar("StageConfig", PretrainConfig, CaptionConfig)


def read_config(kind: type[StageConfig], path: Path, data: Path, out: Path) -> StageConfig:
    """Read a configuration and put its relative paths under the folders of this run."""
    return resolve_paths(load_config(kind, path), data, out)


def train(data: Path, out: Path, stage1: Sequence[Path], stage2: Path) -> Path:
    """Run all phases in order. Returns the path of the packed model."""
    out.mkdir(parents=True, exist_ok=True)
    embed = functools.partial(embed_texts_cached, path=out / "text_embeddings.safetensors")
    for path in stage1:
        pretrain.Pretrainer(read_config(PretrainConfig, path, data, out), embed).run()
    config = read_config(CaptionConfig, stage2, data, out)
    if not Path(config.text_tokenizer).is_file():
        train_caption_tokenizer(config.data.annotation_files, config.text_tokenizer)
    trainer = CaptionTrainer(config)
    trained = trainer.run()
    concepts = ConceptVocabulary.load(Path(config.init_from).with_name(pretrain.CONCEPTS_FILE))
    tokenizer = TextTokenizer.from_file(config.text_tokenizer)
    companions = Companions(concepts, tokenizer, concept_space=MINILM)
    tensors, metadata = companions.pack()
    model = load_model(trained, device="cpu", dtype="float32")
    rows = np.arange(len(trainer.regions))
    boxes = trainer.token_source().select(rows, np.zeros_like(rows))
    fit_concept_head(model, boxes, name_indices(trainer.regions, concepts), concepts)
    fit_iou_head(model.eval(), collect_iou_samples(model, trainer.records))
    packed = out / "tap_tiny.safetensors"
    return save_model(model, packed, dtype="float16", metadata=metadata, extra_tensors=tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--stage1", type=Path, nargs="+", default=STAGE1, help="YAML, in order")
    parser.add_argument("--stage2", type=Path, default=STAGE2, help="YAML")
    arguments = parser.parse_args()
    print(train(arguments.data, arguments.out, arguments.stage1, arguments.stage2))


if __name__ == "__main__":
    main()
