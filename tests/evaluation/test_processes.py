"""Every protocol as real processes: one, two, and two after a kill write the same files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.photos import write_photos
from tests.evaluation.oracles import clip_labels, write_davis

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RUN = [sys.executable, "-m"]
TWO = ["torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
COMMAND = ["tokenize_anything.cli", "evaluate"]
COMMANDS = {
    "segmentation": [],
    "classification": [],
    "interactive": [],
    "clicks": ["--clicks", "3"],
    "captioning": ["--prompt", "mask_point", "--num-beams", "2", "--plain-words"],
    "recognition": ["--with-boxes", "--plain-words"],
    "video": [],
}


def start(*words, out):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*RUN, *words, "--out", str(out), "--no-progress"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def finish(process):
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return printed


def kill_in_the_middle(process, out):
    """Kill a run as soon as a line of its rows is there."""
    rows = out / "rows.0.jsonl"
    while process.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return len(rows.read_bytes().splitlines())


@pytest.fixture
def data(request, tmp_path) -> tuple[Path, int]:
    """Annotations, and how many items they hold."""
    if request.getfixturevalue("protocol") != "video":
        return write_photos(tmp_path / "set", count=14), 14
    clips = {f"clip{number}": clip_labels(3 + number % 2) for number in range(8)}
    return write_davis(tmp_path / "davis", clips), len(clips)


@pytest.mark.parametrize("protocol", COMMANDS)
def test_one_process_two_and_two_after_a_kill(tmp_path, protocol, data):
    path, count = data
    words = [*COMMAND, protocol, "--data", str(path), "--group-size", "1", *COMMANDS[protocol]]
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    num_lines = kill_in_the_middle(start(*words, out=killed), killed)
    assert 0 < num_lines < count
    tables = [finish(start(*words, out=one))]
    tables += [finish(start(*TWO, *words, out=out)) for out in (two, killed)]
    assert len({table.split("items")[0] for table in tables}) == 1
    for name in ("results.json", "metrics.json"):
        files = [(out / name).read_bytes() for out in (one, two, killed)]
        assert files[0] == files[1] == files[2]
    if protocol == "video":
        pictures = [sorted((out / "masks").rglob("*.png")) for out in (one, two, killed)]
        contents = [[picture.read_bytes() for picture in each] for each in pictures]
        assert contents[0] == contents[1] == contents[2] != []
