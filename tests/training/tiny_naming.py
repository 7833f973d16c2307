"""Tiny runs of the view namer on drawn photos."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer
from tests.tiny_predictor import tiny_vocabulary
from tests.training.tiny_runs import data_config
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions
from tokenize_anything.modeling import TAP
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.optimizer import OptimizerConfig

SIDE, BATCH = 32, 7
TWO_LOOKS: dict[str, Any] = {"wide_size": 64, "wide_crop_size": 96}


def save_outliner(path: Path) -> Path:
    """A model with a segmenter, which a namer can start from, its concepts and its tokenizer."""
    tensors, metadata = Companions(tiny_vocabulary(), tiny_tokenizer()).pack()
    model = tiny_tap(tiny_config(zoom=0.5, view_dim=5, view_size=64))
    return save_model(model, path, metadata=metadata, extra_tensors=tensors)


def load(path: Path) -> TAP:
    """In float32 on the CPU."""
    return load_model(path, device="cpu", dtype="float32")


def naming_config(folder: Path, output: Path, model: Path, **changes: Any) -> NamingConfig:
    """A run on what `write_photos` wrote to `folder`."""
    values: dict[str, Any] = dict(
        data=data_config(folder),
        output_folder=str(output),
        init_from=str(model),
        namer_size=SIDE,
        crop_size=64,
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2),
        batch_size=BATCH,
        num_steps=6,
        precision="float32",
        save_every=100,
        log_every=1,
    )
    return NamingConfig(**(values | changes))


def read_rows(run: Path) -> list[dict[str, str]]:
    """Of the log of a run."""
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))
