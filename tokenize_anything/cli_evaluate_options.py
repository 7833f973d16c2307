"""What the protocols of `tap evaluate` share: their description, options, model and photos."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tokenize_anything.cli_files import read_lines
from tokenize_anything.evaluation.answers import RegionModel
from tokenize_anything.evaluation.rule_predictor import MASK_RULES, RulePredictor
from tokenize_anything.evaluation.runner import Metric, RunnerConfig
from tokenize_anything.predictor import TAPPredictor

BASELINE = "baseline:"

Evaluate = Callable[[argparse.Namespace, RegionModel, RunnerConfig], Iterator[Metric]]


def mask_baseline(arguments: argparse.Namespace, name: str) -> RegionModel:
    """A predictor that draws masks by the rule of this name."""
    return RulePredictor(name, MASK_RULES[name])


def no_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the protocol has no options of its own."""


@dataclass(frozen=True)
class EvaluationCommand:
    """One protocol of `tap evaluate`.

    name: the word after `tap evaluate`.
    help: one line.
    evaluate: runs it, with the arguments, the predictor and the runner's configuration.
    add_options: adds what only this protocol takes.
    data_help: what --data is.
    has_images: whether it takes --images.
    baselines: names that `--model baseline:NAME` may have here.
    make_baseline: makes one of them.
    writes_captions: whether a model without a text tokenizer deserves a warning.
    """

    name: str
    help: str
    evaluate: Evaluate
    add_options: Callable[[argparse.ArgumentParser], None] = no_options
    data_help: str = "annotations, COCO- or LVIS-style JSON"
    has_images: bool = True
    baselines: tuple[str, ...] = tuple(MASK_RULES)
    make_baseline: Callable[[argparse.Namespace, str], RegionModel] = mask_baseline
    writes_captions: bool = False


def add_shared_options(parser: argparse.ArgumentParser, command: EvaluationCommand) -> None:
    """Add the options that every protocol has."""
    baselines = ", ".join(BASELINE + name for name in command.baselines)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME|FILE",
        default="tap_tiny",
        help="tap_tiny (built in, the default), tap_vit_b, tap_vit_l, tap_vit_h (downloaded), a "
        f".safetensors or published .pkl file, or what needs no learning: {baselines}",
    )
    group.add_argument(
        "--concepts",
        metavar="NAME|FILE",
        help="vocabulary instead of the model's: merged_2560, lvis_1203, coco_80 (downloaded), a "
        ".safetensors or .pkl file, or a .txt file with some names of the model's, one per line",
    )
    group.add_argument(
        "--text-tokenizer", metavar="FILE", help="SentencePiece model of the captions"
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto (default), cpu, cuda or mps; with torchrun each process takes its own GPU",
    )
    group.add_argument(
        "--dtype", default="auto", help="auto (default), float32, bfloat16 or float16"
    )
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="PATH", required=True, help=command.data_help)
    if command.has_images:
        group.add_argument(
            "--images",
            metavar="DIR",
            help="folder of the photos; `images` beside the data by default, else where that is",
        )
    group.add_argument(
        "--skip-missing", action="store_true", help="leave out photos that are missing"
    )
    group.add_argument(
        "--max-images", metavar="N", type=parse_count, help="only the first N; for a quick look"
    )
    _add_run_options(parser)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="keep results.json, metrics.json and times.json here, made if needed; the same "
        "command goes on with a run that stopped",
    )
    group.add_argument(
        "--group-size", metavar="N", type=parse_count, help="photos answered together"
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=parse_count,
        default=RunnerConfig.num_threads,
        help=f"that decode photos, and as many that write results ({RunnerConfig.num_threads})",
    )
    group.add_argument("--no-progress", action="store_true", help="draw no progress bar")


def parse_count(text: str) -> int:
    """A whole number from 1, for argparse.

    Raises:
        ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def image_folder(arguments: argparse.Namespace) -> Path:
    """Folder of the photos.

    Raises:
        FileNotFoundError: --images is no folder.
    """
    if arguments.images is None:
        beside = Path(arguments.data).parent
        return beside / "images" if (beside / "images").is_dir() else beside
    folder = Path(arguments.images)
    if not folder.is_dir():
        raise FileNotFoundError(f"--images: no folder at {folder}")
    return folder


def load_evaluated_model(arguments: argparse.Namespace, command: EvaluationCommand) -> RegionModel:
    """The model, or the baseline in its place.

    Raises:
        ValueError: a baseline this protocol does not have, or see `TAPPredictor.from_pretrained`.
        FileNotFoundError: a file that is not there.
    """
    if arguments.model.startswith(BASELINE):
        name = arguments.model.removeprefix(BASELINE)
        if name not in command.baselines:
            raise ValueError(
                f"--model: expected a baseline among {', '.join(command.baselines)} for "
                f"{command.name}, got {name!r}"
            )
        return command.make_baseline(arguments, name)
    with warnings.catch_warnings():
        if not command.writes_captions:
            warnings.filterwarnings("ignore", message="no text tokenizer")
        return TAPPredictor.from_pretrained(
            arguments.model,
            device=_own_device(arguments.device),
            dtype=arguments.dtype,
            concepts=_read_concepts(arguments.concepts),
            text_tokenizer=arguments.text_tokenizer,
        )


def _own_device(device: str) -> str:
    """Under torchrun the GPU of this process."""
    rank = os.environ.get("LOCAL_RANK")
    is_shared = device in ("auto", "cuda") and rank is not None and torch.cuda.is_available()
    return f"cuda:{rank}" if is_shared else device


def _read_concepts(path: str | None) -> str | list[str] | None:
    """The names in a .txt file; any other file or name as it is."""
    if path is None or Path(path).suffix.lower() != ".txt":
        return path
    return read_lines(Path(path), option="--concepts")
