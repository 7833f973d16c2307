"""`tap evaluate` from outside: commands, tables, files, and errors in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.evaluation.tiny_truth import edit, write_truth
from tests.tiny_predictor import tiny_predictor
from tokenize_anything.checkpoints import save_model
from tokenize_anything.cli import main
from tokenize_anything.cli_evaluate import PROTOCOLS

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")


def tap(capsys, *words):
    """Run `tap evaluate`; exit code, stdout, stderr."""
    code = main(["evaluate", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def metrics_of(printed):
    return {
        name.strip(): float(value)
        for name, value in re.findall(r"^(\S.*?) {2,}(-?[\d.]+)$", printed, re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("protocol", "model", "some"),
    [
        ("segmentation", "baseline:filled_box", {"mIoU", "AP", "AP50"}),
        ("segmentation", "baseline:ellipse", {"mIoU", "AP", "AP50"}),
        ("classification", "baseline:commonest", {"AP", "AP50"}),
        ("interactive", "baseline:disc", {"point mIoU", "mask cIoU"}),
        ("clicks", "baseline:disc", {"mIoU after 1 click", "mIoU after 9 clicks"}),
    ],
)
def test_protocols_print_a_table_and_write_their_files(tmp_path, capsys, protocol, model, some):
    path, out = write_truth(tmp_path), tmp_path / "run"
    words = [protocol, "--model", model, "--data", path, "--out", out, "--no-progress"]
    code, printed, errors = tap(capsys, *words)
    assert (code, errors) == (0, "")
    assert printed.startswith(f"{protocol}, {model}, truth.json")
    written = json.loads((out / "metrics.json").read_text())
    assert metrics_of(printed) == pytest.approx(written, abs=5e-4)
    assert some <= written.keys()
    assert re.search(r"5 items, 1 process: .* the model .* decoding .* metrics", printed)
    assert f"to {out}" in printed


def test_a_model_file_with_all_options(tmp_path, capsys):
    path, model = write_truth(tmp_path), tmp_path / "tiny.safetensors"
    save_model(tiny_predictor().model, model)
    words = ["clicks", "--model", model, "--data", path, "--images", tmp_path / "images"]
    words += ["--clicks", 2, "--max-images", 2, "--group-size", 1, "--threads", 3]
    code, printed, errors = tap(capsys, *words, "--device", "cpu", "--dtype", "float32")
    assert code == 0
    assert list(metrics_of(printed)) == ["regions", "mIoU after 1 click", "mIoU after 2 clicks"]
    assert metrics_of(printed)["regions"] == 4
    assert "clicks" in errors  # the progress bar


def test_two_processes_go_on_with_what_one_began_and_give_the_same(tmp_path, capsys):
    path, model = write_truth(tmp_path), tmp_path / "tiny.safetensors"
    save_model(tiny_predictor().model, model)
    words = ["interactive", "--model", model, "--data", path, "--group-size", 1, "--no-progress"]
    for name in ("one", "two"):
        assert tap(capsys, *words, "--out", tmp_path / name)[0] == 0
    begun = tmp_path / "two" / "rows.0.jsonl"
    begun.write_bytes(begun.read_bytes().splitlines(keepends=True)[0])
    (tmp_path / "two" / "results.json").unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"]
    command += ["-m", "tokenize_anything.cli", "evaluate", *words, "--out", tmp_path / "two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("point mIoU") == 1  # the first process alone prints
    assert len((tmp_path / "two" / "rows.1.jsonl").read_bytes().splitlines()) == 2
    for name in ("results.json", "metrics.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_missing_photos_stop_or_are_skipped(tmp_path, capsys):
    path = write_truth(tmp_path)
    (tmp_path / "images" / "1.png").unlink()
    words = ["segmentation", "--model", "baseline:ellipse", "--data", path, "--no-progress"]
    code, printed, errors = tap(capsys, *words)
    assert (code, printed) == (2, "")
    assert re.fullmatch(r"tap: error: images: 1 photos are missing: .*1\.png; .*\n", errors)
    code, printed, errors = tap(capsys, *words, "--skip-missing")
    assert code == 0 and "tap: warning: 1 photos are missing and left out" in errors
    assert metrics_of(printed)["missing photos"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clicks", "--model", "baseline:ellipse"], "expected a baseline among disc for clicks"),
        (["clicks", "--model", "baseline:disc", "--images", "gone"], "--images: no folder at gone"),
        (["clicks", "--model", "baseline:disc", "--clicks", "12"], "num_clicks: expected 1 to 9"),
        (["clicks", "--threads", "0"], "expected a whole number from 1, got '0'"),
        (["segmentation", "--model", "baseline:ellipse", "--detections", "no"], "no file at no"),
        (["guessing"], "invalid choice: 'guessing'"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, words, message):
    code, printed, errors = tap(capsys, *words, "--data", write_truth(tmp_path), "--no-progress")
    assert (code, printed) == (2, "")
    assert errors.count("\n") == 1 and message in errors


def test_an_empty_split_is_an_error(tmp_path, capsys):
    path = edit(write_truth(tmp_path), lambda content: content.update(annotations=[]))
    for protocol in ("segmentation", "interactive", "clicks"):
        model = "baseline:disc" if protocol != "segmentation" else "baseline:ellipse"
        code, _, errors = tap(capsys, protocol, "--model", model, "--data", path)
        assert code == 2 and "is an empty split: no region on any photo" in errors


@pytest.mark.parametrize("command", PROTOCOLS, ids=lambda command: command.name)
def test_every_protocol_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", command.name, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--data" in printed and "--out" in printed and "--model" in printed
    assert all(f"baseline:{name}" in printed.replace("\n", "") for name in command.baselines)
