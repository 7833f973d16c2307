"""Run a protocol of `tap evaluate` with models and baselines; append metrics and times to a CSV.

python tools/record_evaluation.py tools/eval_results/segmentation.csv segmentation \
    tap_tiny baseline:ellipse baseline:grabcut -- --data DIR/val.json --images DIR/images
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tokenize_anything.build import locate_checkpoint
from tokenize_anything.cli import main as tap
from tokenize_anything.cli_evaluate_options import BASELINE

COLUMNS = ("date", "commit", "model", "sha256", "annotations", "command", "metric", "value")
STAGES = ("busy", "model", "load", "rows", "metric")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("protocol")
    parser.add_argument("models", nargs="+", help="then -- and the options of the protocol")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    arguments, options = parser.parse_args(words[:cut]), words[cut + 1 :]
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as out:
            command = ["evaluate", arguments.protocol, "--model", model, *options]
            code = tap([*command, "--out", out])
            if code:
                return code
            metrics = json.loads((Path(out) / "metrics.json").read_text())
            times = json.loads((Path(out) / "times.json").read_text())
        metrics |= {f"seconds {stage}": times[stage] for stage in STAGES}
        append_rows(arguments.csv, describe(model, command, options), metrics)
    return 0


def describe(model: str, command: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
    """The columns before metric and value; files and folders by their last names."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    is_baseline = model.startswith(BASELINE)
    weights = b"" if is_baseline else locate_checkpoint(model).read_bytes()
    digest = "" if is_baseline else hashlib.sha256(weights).hexdigest()[:16]
    plain = [Path(word).name if Path(word).exists() else word for word in command]
    data = Path(options[options.index("--data") + 1]).name
    date = datetime.date.today().isoformat()
    return date, commit, Path(model).name, digest, data, "tap " + shlex.join(plain)


def append_rows(path: Path, shared: Sequence[str], metrics: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerows((*shared, metric, f"{value:.4f}") for metric, value in metrics.items())


if __name__ == "__main__":
    sys.exit(main())
