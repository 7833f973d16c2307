"""The averaged model, training states as files, and the log."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from tokenize_anything.training.checkpointing import (
    ModelAverage,
    keep_copy,
    load_training_state,
    save_training_state,
)
from tokenize_anything.training.csv_log import CsvLog

# --- average ---------------------------------------------------------------------------------


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))


@pytest.mark.parametrize("decay", [0.1, 0.15, 0.9])
def test_the_average_follows_the_parameters_and_copies_the_buffers(decay: float) -> None:
    model = make_model()
    average = ModelAverage(model, decay)
    expected = [p.detach().clone() for p in model.parameters()]
    for update in range(1, 5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(7, 3))  # moves the running statistics
        average.update(model)
        rate = min(decay, (1 + update) / (10 + update))
        expected = [
            rate * old + (1 - rate) * new.detach()
            for old, new in zip(expected, model.parameters(), strict=True)
        ]
        for mean, value in zip(average.model.parameters(), expected, strict=True):
            torch.testing.assert_close(mean, value)
        for copied, buffer in zip(average.model.buffers(), model.buffers(), strict=True):
            assert torch.equal(copied, buffer)
    assert average.num_updates == 4


def test_the_average_is_a_model_of_its_own_for_use() -> None:
    model = make_model().train()
    average = ModelAverage(model, 0.9)
    assert not average.model.training and model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    first = next(average.model.parameters())
    assert first.data_ptr() != next(model.parameters()).data_ptr()


# --- files -----------------------------------------------------------------------------------


def test_a_state_comes_back(tmp_path: Path) -> None:
    state = {"step": 7, "model": {"weight": torch.randn(2, 3)}, "names": ["a"], "rate": 0.5}
    save_training_state(tmp_path / "new folder" / "state.pt", state)
    loaded = load_training_state(tmp_path / "new folder" / "state.pt")
    assert torch.equal(loaded["model"].pop("weight"), state["model"]["weight"])  # type: ignore[index]
    assert loaded == state | {"model": {}}
    assert os.listdir(tmp_path / "new folder") == ["state.pt"]


class Unpicklable:
    def __reduce__(self) -> tuple[type, tuple[()]]:
        raise OSError("the disk is full")


def test_a_failed_write_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_training_state(path, {"step": 1})
    with pytest.raises(OSError, match="the disk is full"):
        save_training_state(path, {"step": 2, "broken": Unpicklable()})
    assert load_training_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.pt"]


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made by a pickle",)


def test_a_state_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": RunsCode()}, tmp_path / "state.pt")
    with pytest.raises(
        ValueError, match=r"state\.pt is damaged or was not written by this library"
    ):
        load_training_state(tmp_path / "state.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(ValueError, match=r"plain\.pt is damaged"):
        load_training_state(tmp_path / "plain.pt")
    assert not (tmp_path / "made by a pickle").exists()


@pytest.mark.parametrize("kept", [0, 10, -20])
def test_a_state_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "state.pt"
    save_training_state(path, {"weight": torch.randn(50)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"state\.pt is damaged .*delete it to start the run anew"):
        load_training_state(path)


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training state: no file at .*state\.pt"):
        load_training_state(tmp_path / "state.pt")


# --- copies ----------------------------------------------------------------------------------


def test_the_last_copies_are_kept_as_they_were(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        save_training_state(tmp_path / "state.pt", {"step": step})
        keep_copy(tmp_path, ["state.pt"], step, keep_last=2)
    copies = sorted((tmp_path / "checkpoints").iterdir())
    assert [copy.name for copy in copies] == ["step_00000020", "step_00000100"]
    assert [load_training_state(copy / "state.pt")["step"] for copy in copies] == [20, 100]
    save_training_state(tmp_path / "state.pt", {"step": 101})
    keep_copy(tmp_path, ["state.pt"], 100, keep_last=1)  # of the same step: replaced
    (copy,) = (tmp_path / "checkpoints").iterdir()
    assert load_training_state(copy / "state.pt")["step"] == 101
    keep_copy(tmp_path, ["state.pt"], 102, keep_last=0)
    assert not list((tmp_path / "checkpoints").iterdir())


# --- log -------------------------------------------------------------------------------------


def write_log(path: Path, steps: range) -> CsvLog:
    log = CsvLog(path, ("loss", "lr"))
    log.rewind(0)
    for step in steps:
        log.append(step, {"loss": step / 7, "lr": 0.5, "other": 1.0})
    return log


def test_rows_are_written_in_the_order_of_the_columns(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", range(1, 3))
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == ["step,loss,lr", "1,0.142857,0.5", "2,0.285714,0.5"]


@pytest.mark.parametrize("step, kept", [(0, []), (3, ["1", "2", "3"]), (9, ["1", "2", "3", "4"])])
def test_rewinding_drops_later_rows(tmp_path: Path, step: int, kept: list[str]) -> None:
    log = write_log(tmp_path / "log.csv", range(1, 5))
    log.rewind(step)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,loss,lr"
    assert [line.split(",")[0] for line in lines[1:]] == kept


@pytest.mark.parametrize("tail", ["5,0.3", "5", "\n", "5,0.1,0.2,0.3\n", "x,1,2\n"])
def test_rewinding_drops_a_row_cut_short(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "log.csv"
    log = write_log(path, range(1, 5))
    whole = path.read_text()
    path.write_text(whole + tail)
    log.rewind(9)
    assert path.read_text() == whole


def test_not_a_number_is_logged_as_such(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", range(0))
    log.append(1, {"loss": float("nan"), "lr": float("inf")})
    assert (tmp_path / "log.csv").read_text().splitlines()[1] == "1,nan,inf"
