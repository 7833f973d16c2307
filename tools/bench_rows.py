"""Rows of the committed benchmark files: what was measured, on what, by which command."""

from __future__ import annotations

import csv
import datetime
import platform
import shlex
import subprocess
from pathlib import Path

import torch

COLUMNS = (
    "date", "commit", "torch", "python", "device", "threads", "command",
    "model", "dtype", "what", "value", "unit",
)  # fmt: skip


def environment(device: str, argv: list[str]) -> dict[str, str]:
    """Facts that every row of one run shares."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _cpu_name()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name,
        "threads": str(torch.get_num_threads()),
        "command": "python " + shlex.join(argv),
    }


def append_row(
    path: str, facts: dict[str, str], subject: tuple[str, str], result: tuple[str, float, str]
) -> None:
    """Append one measurement (what, value, unit) of a subject (model, dtype) and print it."""
    (model, dtype), (what, value, unit) = subject, result
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if is_new:
            writer.writeheader()
        row = {"model": model, "dtype": dtype, "what": what, "value": f"{value:.4g}", "unit": unit}
        writer.writerow({**facts, **row})
    print(f"{model:16s} {dtype:9s} {what:36s} {value:9.4g} {unit}", flush=True)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
