"""Two processes of one run, with what `torchrun` puts into their environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[str]


def start_two(module: str, *arguments: str) -> list[Process]:
    """Start `python -m module` twice, without the start-up time of `torchrun`."""
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def wait_for(started: Sequence[Process]) -> list[tuple[int, str]]:
    """Exit code and stderr of each, when all have ended."""
    errors = [process.communicate()[1] for process in started]
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def run_two(module: str, *arguments: str) -> list[tuple[int, str]]:
    """`start_two`, then `wait_for` them."""
    return wait_for(start_two(module, *arguments))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
