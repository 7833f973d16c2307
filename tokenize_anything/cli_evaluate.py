"""`tap evaluate PROTOCOL`: a model and a data set to a table of metrics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenize_anything.cli_evaluate_captions import CAPTION_PROTOCOLS
from tokenize_anything.cli_evaluate_options import (
    EvaluationCommand,
    add_shared_options,
    load_evaluated_model,
)
from tokenize_anything.cli_evaluate_regions import REGION_PROTOCOLS
from tokenize_anything.cli_evaluate_video import VIDEO_PROTOCOLS
from tokenize_anything.cli_table import printable
from tokenize_anything.evaluation.processes import ProcessShare
from tokenize_anything.evaluation.runner import Metric, RunnerConfig, RunTimes

# One line for each family of protocols.
PROTOCOLS: tuple[EvaluationCommand, ...] = (
    *REGION_PROTOCOLS,
    *CAPTION_PROTOCOLS,
    *VIDEO_PROTOCOLS,
)

_EXAMPLE = """examples:
  tap evaluate segmentation --model tap_vit_l --data instances_val2017.json --images val2017 \\
      --detections boxes.json --out runs/coco
  tap evaluate clicks --data val.json --images photos
  torchrun --nproc-per-node 8 -m tokenize_anything.cli evaluate classification \\
      --model tap_vit_l --concepts lvis_1203 --data lvis_v1_val.json --images coco --out runs/lvis
"""


def add_evaluate_command(commands: Any) -> None:
    """Add `evaluate` and its protocols to the subparsers of `tap`."""
    parser = commands.add_parser(
        "evaluate",
        help="metrics of a model on a data set",
        description="Score a model by one of the protocols of docs/evaluation.md.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    protocols = parser.add_subparsers(title="protocols", metavar="PROTOCOL", required=True)
    for command in PROTOCOLS:
        each = protocols.add_parser(
            command.name, help=command.help, description=command.help, allow_abbrev=False
        )
        command.add_options(each)
        add_shared_options(each, command)
        each.set_defaults(run=run_evaluate, command=command)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Load the model, run the protocol, and print the metrics in the first process."""
    command: EvaluationCommand = arguments.command
    times: list[RunTimes] = []
    config = RunnerConfig(
        out=None if arguments.out is None else Path(arguments.out),
        group_size=arguments.group_size or RunnerConfig.group_size,
        num_threads=arguments.threads,
        skip_missing=arguments.skip_missing,
        max_items=arguments.max_images,
        show_progress=not arguments.no_progress,
        on_times=times.append,
    )
    predictor = load_evaluated_model(arguments, command)
    metrics = list(command.evaluate(arguments, predictor, config))
    if ProcessShare.from_environment().is_first:
        print(_report(arguments, metrics, times))


def _report(arguments: argparse.Namespace, metrics: list[Metric], times: list[RunTimes]) -> str:
    data = printable(Path(arguments.data).name)
    lines = [f"{arguments.command.name}, {printable(arguments.model)}, {data}", ""]
    width = max((len(name) for name, _ in metrics), default=0)
    lines += [f"{name:{width}}  {_format(value):>10}" for name, value in metrics]
    lines += ["", *map(_describe_times, times)]
    if arguments.out is not None:
        lines.append(
            f"wrote results.json, metrics.json and times.json to {printable(arguments.out)}"
        )
    return "\n".join(lines)


def _format(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) >= 1000 else f"{value:.3f}"


def _describe_times(times: RunTimes) -> str:
    return (
        f"{times.items} items, {times.processes} process{'es' if times.processes > 1 else ''}: "
        f"{times.busy:.1f} s, of which the model {times.model:.1f} s (the runner adds "
        f"{100 * times.overhead:.1f} %); beside it decoding {times.load:.1f} s and writing "
        f"{times.rows:.1f} s; then metrics {times.metric:.1f} s"
    )
