"""Run one `tap evaluate`; put its metrics and times into a CSV, for those of the same command.

python tools/record_evaluation.py tools/eval_results/segmentation.csv segmentation \
    --model baseline:grabcut --data DIR/val.json --images DIR/images
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenize_anything.build import locate_checkpoint
from tokenize_anything.cli import main as tap
from tokenize_anything.cli_evaluate_options import BASELINE

COLUMNS = ("date", "commit", "model", "sha256", "annotations", "command", "metric", "value")
STAGES = ("busy", "model", "load", "rows", "metric")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", metavar="CSV", type=Path)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what follows `tap evaluate`")
    return record(**vars(parser.parse_args()))


def record(path: Path, words: Sequence[str], runs: Path = Path("out/evaluation")) -> int:
    """Run `tap evaluate` with these words; a stopped run goes on where `runs` keeps it."""
    facts = describe(words)
    out = runs / f"{words[0]}-{hashlib.sha256(repr(facts[2:]).encode()).hexdigest()[:12]}"
    code = tap(["evaluate", *words, "--out", str(out)])
    if code:
        return code
    metrics = json.loads((out / "metrics.json").read_text())
    times = json.loads((out / "times.json").read_text())
    if facts[3] and times["model"]:  # nobody waits for a baseline
        metrics |= {f"seconds {stage}": times[stage] for stage in STAGES}
        metrics["percent the runner adds"] = 100 * (times["busy"] / times["model"] - 1)
    kept = [row for row in read_rows(path) if (row[2], row[5]) != (facts[2], facts[5])]
    new = [(*facts, metric, f"{value:.4f}") for metric, value in metrics.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([COLUMNS, *kept, *new])
    shutil.rmtree(out)  # so that the next run is measured from its start
    return 0


def describe(words: Sequence[str]) -> tuple[str, ...]:
    """The columns before metric and value; files and folders by their last names."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model, data = (words[words.index(option) + 1] for option in ("--model", "--data"))
    weights = b"" if model.startswith(BASELINE) else locate_checkpoint(model).read_bytes()
    digest = hashlib.sha256(weights).hexdigest()[:16] if weights else ""
    command = "tap evaluate " + shlex.join(Path(word).name or word for word in words)
    date = datetime.date.today().isoformat()
    return date, commit, Path(model).name, digest, Path(data).name, command


def read_rows(path: Path) -> list[list[str]]:
    """Rows of a CSV without its head."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))[1:]


if __name__ == "__main__":
    sys.exit(main())
