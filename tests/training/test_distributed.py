"""Two processes against one: DDP, sharded weights, parts of a batch, stopping and going on."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.photos import write_photos
from tests.training.processes import ROOT, run_two
from tests.training.states import assert_equal_states
from tests.training.tiny_runs import embed_by_hash
from tests.training.two_processes import PARTS, parallel_config
from tokenize_anything.build import load_model
from tokenize_anything.training.checkpointing import load_training_state
from tokenize_anything.training.pretrain import Pretrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distributed") / "set"
    write_photos(root, count=5)
    return root


@pytest.fixture(scope="module")
def runs(data: Path) -> Path:
    """Folder with what two processes left, by case."""
    ended = run_two("tests.training.two_processes", str(data), str(data.parent))
    assert [code for code, _ in ended] == [0, 0], ended
    return data.parent


def state_of(folder: Path) -> dict[str, Any]:
    return load_training_state(folder / "training_state.pt")


def train_alone(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    Pretrainer(parallel_config(data, out, **changes), embed_by_hash).run()
    return state_of(out)


@pytest.fixture(scope="module")
def alone(data: Path) -> Path:
    """What one process left that had the whole batch."""
    train_alone(data, data.parent / "alone")
    return data.parent / "alone"


def gradients(state: dict[str, Any]) -> list[Tensor]:
    """Of the first step, shortened to length 1; the optimiser has averaged them with nine 0."""
    return [10 * values["exp_avg"] for _, values in sorted(state["optimizer"]["state"].items())]


def assert_same_step(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Gradients of the first step, and running statistics after it, to rounding."""
    assert left["step"] == right["step"] == 1
    pairs = zip(gradients(left), gradients(right), strict=True)
    difference = torch.cat([(one - two).abs().flatten() for one, two in pairs])
    assert difference.quantile(0.999) < 1e-6
    assert difference.max() < 1e-5  # rounding may switch a single ReLU
    for name, value in left["model"].items():
        if "running" in name:
            torch.testing.assert_close(value, right["model"][name], rtol=1e-6, atol=1e-6)


def read_rows(path: Path) -> list[list[float]]:
    with path.open(newline="") as file:
        return [[float(value) for value in row] for row in list(csv.reader(file))[1:]]


@pytest.mark.parametrize("case", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_their_batches(runs: Path, alone: Path, case: str) -> None:
    first = [state_of(f / "checkpoints" / "step_00000001") for f in (alone, runs / case)]
    assert_same_step(first[0], first[1])
    # Rounding may put a pixel of a predicted mask on the other side of its threshold.
    for name, tolerance in (("log.csv", 1e-5), ("validation.csv", 1e-3)):
        rows = [read_rows(folder / name)[0] for folder in (alone, runs / case)]
        np.testing.assert_allclose(rows[0], rows[1], rtol=tolerance, atol=1e-6)


def test_two_processes_stay_together(runs: Path, alone: Path) -> None:
    for name in ("log.csv", "validation.csv"):
        rows = [read_rows(folder / name) for folder in (alone, runs / "ddp")]
        assert len(rows[0]) == 2
        np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3)


@pytest.mark.parametrize("case", ["parts", "sharded parts"])
def test_parts_of_a_batch_equal_the_whole(
    data: Path, runs: Path, tmp_path: Path, case: str
) -> None:
    whole = train_alone(data, tmp_path, **(PARTS | {"accumulate": 1}))
    assert_same_step(whole, state_of(runs / case))


def test_a_run_of_two_stopped_and_resumed_equals_uninterrupted_bit_for_bit(runs: Path) -> None:
    states = [state_of(runs / name) for name in ("dropout", "stopped")]
    assert states[0]["step"] == 2
    assert_equal_states(states[0], states[1])
    for name in ("log.csv", "validation.csv"):
        files = [(runs / case / name).read_bytes() for case in ("dropout", "stopped")]
        assert files[0] == files[1], name


def test_each_process_drops_out_something_else(runs: Path) -> None:
    with_dropout, without = (read_rows(runs / case / "log.csv")[0] for case in ("dropout", "ddp"))
    assert with_dropout[1] != without[1]


def test_the_first_process_leaves_what_a_run_leaves(runs: Path, alone: Path) -> None:
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (alone, runs / "ddp")]
    assert names[0] == names[1]


def test_one_process_goes_on_where_sharded_ones_stopped(
    data: Path, runs: Path, alone: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(runs / "fsdp", tmp_path / "run")
    state = state_of(folder)
    model = load_model(folder / "best.safetensors", device="cpu", dtype="float32")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["average"][name]), name
    continued = train_alone(data, folder)
    assert (state["step"], continued["step"]) == (1, 2)
    rows = [read_rows(place / "log.csv") for place in (folder, alone)]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3)


@pytest.mark.slow
def test_torchrun_starts_and_ends_a_run(data: Path, runs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", "-m", "tests.training.two_processes", str(data), str(tmp_path)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert_equal_states(state_of(tmp_path / "ddp"), state_of(runs / "ddp"))
