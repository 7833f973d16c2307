"""Runs of two processes on drawn photos, for test_distributed.py.

    torchrun --nproc-per-node 2 -m tests.training.two_processes DATA OUT

Each case leaves what a run leaves, in OUT and the name of the case.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from tests.training.tiny_runs import data_config, embed_by_hash, pretrain_config
from tokenize_anything.data.region_dataset import RegionSamplingConfig
from tokenize_anything.training.config import MaskValidationConfig, PretrainConfig
from tokenize_anything.training.pretrain import Pretrainer

STEPS = 2
DROPOUT = {"drop_path": 0.3, "decoder_dropout": 0.2}
PARTS = {"accumulate": 2, "freeze": ("image_encoder",), "num_steps": 1}
# Name of a run, and what it has beyond `parallel_config`; two of one name are one after another.
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ddp", {}),
    ("fsdp", {"parallel": "fsdp", "stop_step": 1}),
    ("dropout", DROPOUT),
    ("stopped", {**DROPOUT, "stop_step": 1}),
    ("stopped", DROPOUT),
    ("parts", PARTS),
    ("sharded parts", {**PARTS, "parallel": "fsdp"}),
)


def parallel_config(data: Path, out: Path, **changes: Any) -> PretrainConfig:
    """Four images a step, two stages of prompts, nothing that draws for each process alone."""
    validation = MaskValidationConfig(data=data_config(data), every=1, max_images=3)
    values: dict[str, Any] = {
        "batch_size": 4, "num_steps": STEPS, "drop_path": 0.0, "decoder_dropout": 0.0,
        "second_stage_probability": 1.0, "student_scale": 5.0, "teacher_scale": 5.0,
        "sampling": RegionSamplingConfig(regions_per_image=5),
        "save_every": 1, "keep_last": STEPS, "validation": validation,
    }  # fmt: skip
    return pretrain_config(data, out, **(values | changes))


def main() -> None:
    """Train each case."""
    torch.set_num_threads(1)
    data, out = map(Path, sys.argv[1:])
    for name, changes in CASES:
        Pretrainer(parallel_config(data, out / name, **changes), embed_by_hash).run()


if __name__ == "__main__":
    main()
