"""Stage 2 by two processes: the same as by one, also when both are killed in the middle."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.tiny import tiny_tap
from tests.training.processes import run_two
from tests.training.tiny_runs import caption_config, caption_model_config
from tokenize_anything.checkpoints import save_model
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import train_caption_tokenizer
from tokenize_anything.training.checkpointing import load_training_state
from tokenize_anything.training.config import save_config


def run_workers(config: CaptionConfig, path: Path, *, last_step: int) -> list[int]:
    """Exit codes of two processes on gloo."""
    save_config(config, path)
    ended = run_two("tests.training.caption_worker", str(path), str(last_step))
    return [code for code, _ in ended]


def read_log(folder: Path) -> np.ndarray:
    with (folder / "log.csv").open(newline="") as file:
        return np.array([row for row in list(csv.reader(file))[1:]], dtype=float)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_two_processes_killed_and_resumed_equal_one(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    file = write_photos(folder)
    tokenizer = train_caption_tokenizer([file], folder / "text.model", vocabulary_size=60)
    stage1 = save_model(
        tiny_tap(caption_model_config(tokenizer.vocabulary_size)), folder / "stage1.safetensors"
    )
    configs = [
        caption_config(
            folder, tmp_path / name, stage1, folder / "text.model", text_dropout=0.0,
            num_steps=5, save_every=2,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    CaptionTrainer(configs[0]).run()
    codes = run_workers(configs[1], tmp_path / "two.yaml", last_step=3)
    assert -signal.SIGKILL in codes and 0 not in codes
    assert load_training_state(tmp_path / "two" / "training_state.pt")["step"] == 2
    assert run_workers(configs[1], tmp_path / "two.yaml", last_step=0) == [0, 0]
    np.testing.assert_allclose(read_log(tmp_path / "two"), read_log(tmp_path / "one"), rtol=1e-4)
    states = [load_training_state(tmp_path / n / "training_state.pt") for n in ("one", "two")]
    assert states[0]["step"] == states[1]["step"] == 5
    for name, value in states[0]["text_decoder"].items():
        torch.testing.assert_close(states[1]["text_decoder"][name], value, rtol=1e-3, atol=1e-3)
