"""One run of each stage of the ablation, and its figures; see ablation.py."""

from __future__ import annotations

import csv
import functools
import json
import math
from pathlib import Path

from tokenize_anything import ConceptVocabulary, TAPPredictor, load_model
from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.evaluation.caption_scores import cider
from tokenize_anything.evaluation.recognition import evaluate_recognition
from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_finetune import VALIDATION_FILE, CaptionTrainer
from tokenize_anything.training.config import PretrainConfig
from tokenize_anything.training.pretrain import CONCEPTS_FILE, Pretrainer

NUM_VAL_IMAGES = 150
COLUMNS = ("concept_loss", "token", "seed", "steps", "caption_steps", "box_mean_iou",
           "concept_top1", "caption_cider", "caption_loss")  # fmt: skip


def write_subsets(source: Path, out: Path, counts: dict[str, int]) -> None:
    """For each name in `counts`, annotations of about so many photos, spread evenly."""
    content = json.loads(source.read_text(encoding="utf-8"))
    for name, count in counts.items():
        images = content["images"][:: max(1, len(content["images"]) // count)]
        kept = {image["id"] for image in images}
        rows = [row for row in content["annotations"] if row["image_id"] in kept]
        with replace_on_success(out / name) as temporary:
            temporary.write_text(json.dumps(content | {"images": images, "annotations": rows}))


def learn_regions(config: PretrainConfig, out: Path, data: Path) -> tuple[float, float]:
    """Stage 1. Returns the mean IoU of box prompts and the share of names that come first."""
    embed = functools.partial(embed_texts_cached, path=out / "text_embeddings.safetensors")
    path = Pretrainer(config, embed).run()
    concepts = path.with_name(CONCEPTS_FILE)
    vocabulary = ConceptVocabulary.load(concepts) if concepts.is_file() else None
    predictor = TAPPredictor(load_model(path, device="cpu"), concepts=vocabulary)
    figures = dict(
        evaluate_recognition(
            predictor, data / "val.json", data / "images", max_images=NUM_VAL_IMAGES
        )
    )
    return figures["box mean IoU"], figures.get("concept top-1", math.nan)


def learn_captions(config: CaptionConfig) -> tuple[float, float]:
    """Stage 2. Returns CIDEr and loss of the last validation."""
    folder = CaptionTrainer(config, cider).run().parent
    with (folder / VALIDATION_FILE).open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return float(last["cider"]), float(last["loss"])


def finished(path: Path) -> set[tuple[str, ...]]:
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {tuple(row[name] for name in COLUMNS[:5]) for row in csv.DictReader(file)}


def append(path: Path, row: tuple[object, ...]) -> None:
    is_new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, row] if is_new else [row])
