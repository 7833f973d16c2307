"""The runner: the same files for any number of processes and stops, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.tiny_predictor import tiny_predictor
from tokenize_anything.evaluation.run_files import RunFolder
from tokenize_anything.evaluation.runner import (
    RunnerConfig,
    RunTimes,
    WorkItem,
    model_digest,
    run_evaluation,
)

ROOT = Path(__file__).parents[2]
RESULT_FILES = ("results.json", "metrics.json")


class Squares:
    """Rows of an item: its number and square, as often as the number says, and its group."""

    name = "squares"

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.answered: list[list[int]] = []
        self.threads: dict[str, set[str]] = {"load": set(), "answer": set(), "to_rows": set()}

    def load(self, item):
        self.threads["load"].add(threading.current_thread().name)
        return item.content

    def answer(self, loaded):
        if self.stop_at in loaded:
            os.kill(os.getpid(), signal.SIGKILL)
        self.threads["answer"].add(threading.current_thread().name)
        self.answered.append(list(loaded))
        return [(number**2, sum(loaded)) for number in loaded]

    def to_rows(self, item, loaded, answer):
        self.threads["to_rows"].add(threading.current_thread().name)
        square, of_group = answer
        return [{"number": loaded, "square": square, "of_group": of_group}] * (loaded % 4)

    def score(self, items, rows):
        yield "items", float(len(items))
        yield "squares", float(sum(row["square"] for row in rows))


def make_items(count: int = 23) -> list[WorkItem]:
    return [WorkItem(f"item {number}", (), number) for number in range(count)]


def run(task=None, *, items=None, settings=None, **config):
    options = {"group_size": 3, "show_progress": False} | config
    task, items = task or Squares(), items or make_items()
    return dict(run_evaluation(task, items, settings or {}, RunnerConfig(**options)))


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in RESULT_FILES]


def test_rows_are_those_of_a_loop_in_the_order_of_the_items(tmp_path):
    task = Squares()
    metrics = run(task, out=tmp_path / "run")
    groups = [list(range(start, min(start + 3, 23))) for start in range(0, 23, 3)]
    wanted = [
        {"number": number, "square": number**2, "of_group": sum(group)}
        for group in groups
        for number in group
        for _ in range(number % 4)
    ]
    assert task.answered == groups
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == wanted
    assert metrics == {"items": 23, "squares": sum(row["square"] for row in wanted)}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert metrics == run()  # and without a folder


def test_loading_and_writing_are_beside_the_model():
    task = Squares()
    run(task)
    assert task.threads["answer"] == {threading.current_thread().name}
    assert all(name.startswith("load") for name in task.threads["load"])
    assert all(name.startswith("rows") for name in task.threads["to_rows"])


def test_more_threads_change_nothing(tmp_path):
    run(out=tmp_path / "one", num_threads=1)
    run(out=tmp_path / "five", num_threads=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "five")


def test_times_are_told_and_written(tmp_path):
    told: list[RunTimes] = []
    run(out=tmp_path, on_times=told.append)
    (times,) = told
    assert times.items == 23 and times.processes == 1
    assert min(times.busy, times.model, times.load, times.rows, times.metric) > 0
    assert times.busy > times.model
    assert times.overhead == pytest.approx(times.busy / times.model - 1)
    assert json.loads((tmp_path / "times.json").read_text())["busy"] == times.busy


def test_a_finished_run_is_not_run_again(tmp_path):
    run(out=tmp_path)
    before = contents(tmp_path)
    task = Squares()
    run(task, out=tmp_path)
    assert task.answered == []
    assert contents(tmp_path) == before


TORN = b'{"key": "item 99", "rows": [{"num'


@pytest.mark.parametrize(("kept", "cut"), [(10, b""), (10, TORN), (9, TORN), (0, TORN)])
def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path, kept, cut):
    run(out=tmp_path)
    before = contents(tmp_path)
    part = tmp_path / "rows.0.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:kept]) + cut)
    (tmp_path / "results.json").unlink()
    task = Squares()
    run(task, out=tmp_path)
    whole = 3 * (kept // 3)  # a group that was cut is the same batch again
    assert task.answered[0] == [whole, whole + 1, whole + 2]
    assert sum(map(len, task.answered)) == 23 - whole
    assert contents(tmp_path) == before


def test_rows_of_more_processes_than_now_are_used(tmp_path):
    run(out=tmp_path / "one")
    run(out=tmp_path / "two")
    lines = (tmp_path / "two" / "rows.0.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "two" / "rows.0.jsonl").write_bytes(b"".join(lines[:6]))
    (tmp_path / "two" / "rows.7.jsonl").write_bytes(b"".join(lines[6:]))
    task = Squares()
    run(task, out=tmp_path / "two")
    assert task.answered == []
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


SCRIPT = """
import sys
from pathlib import Path
from tests.evaluation.test_runner import Squares, run
run(Squares(stop_at=int(sys.argv[2])), out=Path(sys.argv[1]))
"""


def test_a_run_that_was_killed_goes_on_and_gives_the_same(tmp_path):
    run(out=tmp_path / "whole")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "killed"), "13"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    num_lines = len((tmp_path / "killed" / "rows.0.jsonl").read_bytes().splitlines())
    assert 0 < num_lines <= 12
    task = Squares()
    run(task, out=tmp_path / "killed")
    assert sum(map(len, task.answered)) == 23 - num_lines
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_an_error_in_a_thread_is_the_error_of_the_run(tmp_path):
    class Damaged(Squares):
        def load(self, item):
            if item.content == 7:
                raise ValueError("photo 7 is damaged")
            return super().load(item)

    with pytest.raises(ValueError, match="photo 7 is damaged"):
        run(Damaged(), out=tmp_path)
    run(out=tmp_path)  # and what was done before is kept
    run(out=tmp_path.with_name("fresh"))
    assert contents(tmp_path) == contents(tmp_path.with_name("fresh"))


def test_another_run_does_not_share_the_folder(tmp_path):
    run(out=tmp_path, settings={"model": "a"})
    message = "out: .* holds another evaluation .*model 'a' there and 'b' here.*choose another"
    with pytest.raises(ValueError, match=message):
        run(out=tmp_path, settings={"model": "b"})
    with pytest.raises(ValueError, match="group_size 3 there and 4 here"):
        run(out=tmp_path, settings={"model": "a"}, group_size=4)


def test_a_damaged_folder_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"out: .*run\.json is damaged .*choose another folder"):
        run(out=tmp_path)


def test_joining_without_all_rows_says_which_are_lost(tmp_path):
    folder = RunFolder(tmp_path, {})
    with pytest.raises(RuntimeError, match=r"2 of 2 items have no rows, first \['a', 'b'\]"):
        folder.join(["a", "b"])


def with_photos(folder: Path, *, missing: tuple[int, ...]) -> list[WorkItem]:
    items = [WorkItem(n, (folder / f"{n}.jpg",), n) for n in range(5)]
    for number in set(range(5)) - set(missing):
        (folder / f"{number}.jpg").touch()
    return items


def test_missing_photos_are_listed(tmp_path):
    items = with_photos(tmp_path, missing=(1, 4))
    message = r"2 photos are missing: .*1\.jpg, .*4\.jpg; .*--skip-missing"
    with pytest.raises(FileNotFoundError, match=message):
        run(items=items)


def test_missing_photos_can_be_left_out_and_are_counted(tmp_path):
    task = Squares()
    items = with_photos(tmp_path, missing=(1, 4))
    with pytest.warns(UserWarning, match="2 photos are missing and left out"):
        metrics = run(task, items=items, skip_missing=True)
    assert task.answered == [[0, 2, 3]]
    assert metrics["items"] == 3 and metrics["missing photos"] == 2


def test_photos_that_are_all_missing_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="all 5 photos are missing"):
        run(items=with_photos(tmp_path, missing=(0, 1, 2, 3, 4)), skip_missing=True)


def test_max_items_takes_the_first():
    task = Squares()
    run(task, max_items=4)
    assert task.answered == [[0, 1, 2], [3]]


def test_nothing_to_do_is_an_error():
    with pytest.raises(ValueError, match=r"items: expected at least one .* got an empty split"):
        dict(run_evaluation(Squares(), [], {}))


def test_keys_must_differ():
    with pytest.raises(ValueError, match="items: expected different keys"):
        run(items=make_items(2) + make_items(1))


def test_processes_need_a_folder(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="out: several processes need a folder they share"):
        run()


@pytest.mark.parametrize("name", ["group_size", "num_threads", "max_items"])
def test_counts_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        RunnerConfig(**{name: 0})


def test_model_digest_tells_models_apart():
    predictor, same, other = tiny_predictor(), tiny_predictor(), tiny_predictor()
    with torch.no_grad():
        other.model.image_decoder.iou_token[0, 0] += 1
    assert model_digest(predictor) == model_digest(same) != model_digest(other)
    same.concepts = None
    assert model_digest(predictor) != model_digest(same)
    zooming = tiny_predictor()
    zooming.model.config = dataclasses.replace(zooming.model.config, zoom=0.5)
    assert model_digest(predictor) != model_digest(zooming)
    half = tiny_predictor()
    half.model.to(torch.bfloat16)
    assert model_digest(predictor) != model_digest(half)
