"""One run of the curves of names, and its figures; see eval_name_curve.py."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import ClassVar

import numpy as np
from calibrate_fits import measure
from eval_names import Row, vocabulary_rows
from text_teachers import TEACHERS

from tokenize_anything import TAPPredictor
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
    log_probs, names, *_ = measure(predictor, images, with_clicks=False)
    first = subject, "accuracy, train, last 300 steps", float(np.mean(seen))
    return [first, *vocabulary_rows(subject, log_probs, names)]
