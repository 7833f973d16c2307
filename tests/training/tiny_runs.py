"""Tiny training runs on drawn photos: configurations, and a text encoder that needs no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tiny import tiny_config
from tokenize_anything.config import TAPConfig
from tokenize_anything.data.augment import AugmentConfig
from tokenize_anything.data.region_dataset import RegionSamplingConfig
from tokenize_anything.training.caption_config import CaptionConfig, RegionTokenConfig
from tokenize_anything.training.config import DataConfig, PretrainConfig
from tokenize_anything.training.optimizer import OptimizerConfig

MODEL = tiny_config()


def embed_by_hash(texts: Sequence[str], dim: int = MODEL.semantic_dim) -> Tensor:
    """(n,dim) unit vectors that depend on each text alone."""
    rows = [
        np.random.default_rng(list(hashlib.sha256(text.encode()).digest())).normal(size=dim)
        for text in texts
    ]
    return F.normalize(torch.from_numpy(np.reshape(rows, (-1, dim)).astype(np.float32)), dim=-1)


def data_config(folder: Path) -> DataConfig:
    """Of what `write_photos` wrote."""
    return DataConfig(
        annotation_files=(str(folder / "photos.json"),), image_folder=str(folder / "images")
    )


def pretrain_config(folder: Path, output: Path, **changes: Any) -> PretrainConfig:
    """A stage-1 run of two images a step, all kinds of dropout on, in this process."""
    values: dict[str, Any] = dict(
        data=data_config(folder),
        output_folder=str(output),
        model=MODEL,
        augment=AugmentConfig(scale_range=(0.8, 1.3)),
        sampling=RegionSamplingConfig(regions_per_image=3),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup_steps=2),
        batch_size=2,
        num_steps=6,
        drop_path=0.2,
        decoder_dropout=0.1,
        second_stage_probability=0.7,
        precision="float32",
        num_workers=0,
        save_every=100,
        log_every=1,
    )
    return PretrainConfig(**(values | changes))


def caption_config(folder: Path, output: Path, model: Path, tokenizer: Path, **changes: Any) -> Any:
    """A stage-2 run of a few captions a step."""
    values: dict[str, Any] = dict(
        data=data_config(folder),
        output_folder=str(output),
        init_from=str(model),
        text_tokenizer=str(tokenizer),
        tokens=RegionTokenConfig(point_views=2, max_points=3),
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup_steps=2, weight_decay=0.0),
        batch_size=8,
        num_steps=6,
        text_dropout=0.1,
        label_smoothing=0.0,
        precision="float32",
        save_every=100,
        log_every=1,
    )
    return CaptionConfig(**(values | changes))


def caption_model_config(pieces: int) -> TAPConfig:
    """The tiny model with room for the captions of drawn photos."""
    return tiny_config(vocabulary_size=pieces, max_text_length=29)
