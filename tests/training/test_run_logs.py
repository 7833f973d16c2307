"""The logs of a run: files of each process, what is skipped, TensorBoard, going on."""

from __future__ import annotations

import builtins
import csv
from pathlib import Path
from typing import Any

import pytest

from tokenize_anything.training.run_logs import RunLogs
from tokenize_anything.training.tensorboard_log import TensorBoardLog

SCORES = {"box_iou": 0.5, "point_iou": 0.25, "mean_iou": 0.375}


def make_logs(folder: Path, step: int = 0, **options: Any) -> RunLogs:
    logs = RunLogs(folder, ("loss", "lr"), **options)
    logs.rewind(step)
    return logs


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_first_process_writes_the_numbers(tmp_path: Path) -> None:
    logs = make_logs(tmp_path, has_validation=True)
    logs.add_training(1, {"loss": 2.0, "lr": 0.5, "other": 1.0})
    logs.add_validation(1, SCORES)
    logs.close()
    assert rows_of(tmp_path / "log.csv") == [["step", "loss", "lr"], ["1", "2", "0.5"]]
    assert rows_of(tmp_path / "validation.csv")[1] == ["1", "0.5", "0.25", "0.375"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "validation.csv"]


def test_other_processes_write_only_what_they_skipped(tmp_path: Path) -> None:
    logs = make_logs(tmp_path, rank=2, has_validation=True, has_tensorboard=True)
    logs.add_training(1, {"loss": 2.0, "lr": 0.5})
    logs.add_validation(1, SCORES)
    assert list(tmp_path.iterdir()) == []
    logs.add_skipped(4, ["a.jpg: broken", 'b.jpg: "two"\nlines, and a comma'])
    logs.add_skipped(5, [])
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.2.csv"]
    assert rows_of(tmp_path / "skipped.2.csv") == [
        ["step", "reason"], ["4", "a.jpg: broken"], ["4", 'b.jpg: "two" lines, and a comma'],
    ]  # fmt: skip


def test_all_logs_go_on_at_the_step_of_the_run(tmp_path: Path) -> None:
    logs = make_logs(tmp_path, has_validation=True)
    for step in (1, 2, 3):
        logs.add_training(step, {"loss": 2.0, "lr": 0.5})
        logs.add_validation(step, SCORES)
        logs.add_skipped(step, ["a"])
    make_logs(tmp_path, 2, has_validation=True)
    for name in ("log.csv", "validation.csv", "skipped.csv"):
        assert [row[0] for row in rows_of(tmp_path / name)] == ["step", "1", "2"], name


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tokenize-anything[train]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = make_logs(tmp_path, has_tensorboard=True)
    for step in (1, 2, 3):
        logs.add_training(step, {"loss": step / 8, "lr": 0.5, "other": 1.0})
    logs.close()
    logs = make_logs(tmp_path, 2, has_tensorboard=True)  # killed behind step 2, and resumed
    logs.add_training(3, {"loss": 7.0, "lr": 0.5})
    logs.add_validation(3, SCORES)
    logs.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert set(shown.Tags()["scalars"]) == {
        "training/loss", "training/lr", *(f"validation/{name}" for name in SCORES),
    }  # fmt: skip
    losses = [(event.step, event.value) for event in shown.Scalars("training/loss")]
    assert losses == [(1, 0.125), (2, 0.25), (3, 7.0)]
    assert [event.value for event in shown.Scalars("validation/mean_iou")] == [0.375]


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install tokenize-anything\[train\]"):
        TensorBoardLog(tmp_path, 0)
