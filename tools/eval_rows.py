"""Rows of the committed evaluation files of eval_search and eval_downstream."""

from __future__ import annotations

import csv
import datetime
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from eval_box_tokens import checkpoint_digest

COLUMNS = (
    "date", "commit", "model", "sha256", "annotations", "command", "subject", "metric", "value",
)  # fmt: skip


def append_rows(
    out: str, model: str, annotations: str, argv: list[str], rows: Iterable[tuple[str, str, float]]
) -> None:
    """Append (subject, metric, value) and print them; paths in the command by their last names."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    words = [Path(word).name if Path(word).exists() and n else word for n, word in enumerate(argv)]
    shared = (
        datetime.date.today().isoformat(), commit, Path(model).name, checkpoint_digest(model),
        Path(annotations).name, "python " + shlex.join(words),
    )  # fmt: skip
    file = Path(out)
    is_new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if is_new:
            writer.writerow(COLUMNS)
        for subject, metric, value in rows:
            writer.writerow((*shared, subject, metric, f"{value:.4f}"))
            print(f"{subject:32s} {metric:24s} {value:8.4f}", flush=True)
