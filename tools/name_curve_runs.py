"""One run of the curves of names, and its figures; see eval_name_curve.py."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from eval_names import Row, name_rows
from text_teachers import TEACHERS
from tqdm import tqdm

from tokenize_anything import TAPPredictor
from tokenize_anything.evaluation.region_truth import TrueRegion, load_true_images
from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.training.named_views import NamedViews
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.naming_training import NamerTrainer
from tokenize_anything.training.training_data import TrainingData


class CurveTrainer(NamerTrainer):
    """Cuts the regions of the same photos out once, whatever else the runs differ in."""

    views_of: ClassVar[dict[int, NamedViews]] = {}

    def make_views(self, data: TrainingData) -> NamedViews:
        """Those of the run before, if it had as many photos."""
        count = self.config.max_images
        if count not in self.views_of:
            self.views_of.clear()
            self.views_of[count] = super().make_views(data)
        return self.views_of[count]


def learn_names(config: NamingConfig, teacher: str, out: Path) -> CurveTrainer:
    """A finished run in the concept space of one of the text encoders."""
    path = out / f"embeddings_{teacher}.safetensors"
    embed = functools.partial(embed_texts_cached, path=path, embed=TEACHERS[teacher])
    trainer = CurveTrainer(config, embed)
    trainer.run()
    return trainer


def score_names(trainer: CurveTrainer, images: list, subject: str) -> list[Row]:
    """How often names are right at the end of training, and on photos that were not learnt."""
    with (trainer.folder / "log.csv").open(newline="", encoding="utf-8") as file:
        seen = [float(row["accuracy"]) for row in list(csv.DictReader(file))[-6:]]
    path = trainer.folder / "model.safetensors"
    predictor = TAPPredictor.from_pretrained(path, device="cpu", dtype="bfloat16")
    predictor.concepts = trainer.teacher.vocabulary
    log_probs, regions = name_boxes(predictor, images)
    first = subject, "accuracy, train, last 300 steps", float(np.mean(seen))
    return [first, *name_rows(subject, log_probs, regions, predictor.concepts.names)]


def name_boxes(predictor: TAPPredictor, images: list) -> tuple[np.ndarray, list[TrueRegion]]:
    """Log-probabilities (R,K) of the concepts of all regions, asked by their boxes."""
    log_probs, regions = [], []
    for image in tqdm(load_true_images(images), total=len(images), mininterval=5):
        if not image.regions:
            continue
        boxes = [region.box_xyxy for region in image.regions]
        found = predictor.predict_mask_concept_caption(image.path, boxes=boxes, captions=False)
        embeddings = torch.tensor(found.semantic_embeddings)
        log_probs.append(predictor.concepts.log_probs(embeddings).numpy())
        regions += image.regions
    return np.concatenate(log_probs), regions
