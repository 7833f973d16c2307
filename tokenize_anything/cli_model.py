"""The options of a command that say which model runs, and the predictor they ask for."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from tokenize_anything.cli_files import read_lines
from tokenize_anything.predictor import TAPPredictor


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --model, --concepts, --text-tokenizer, --device and --dtype."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME|FILE",
        default="tap_tiny",
        help="tap_tiny (built in, the default), tap_vit_b, tap_vit_l, tap_vit_h (downloaded), or a "
        ".safetensors or published .pkl file",
    )
    group.add_argument(
        "--concepts",
        metavar="NAME|FILE",
        help="a .txt file with names of the model's vocabulary, one per line, to choose among; or "
        "another vocabulary: merged_2560, lvis_1203, coco_80 (downloaded), or a .safetensors or "
        ".pkl file",
    )
    group.add_argument(
        "--text-tokenizer",
        metavar="FILE",
        help="SentencePiece model of the captions; the published weights need that of LLaMA",
    )
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    group.add_argument(
        "--dtype", default="auto", help="auto (default), float32, bfloat16 or float16"
    )


def add_caption_options(group: argparse._ArgumentGroup) -> None:
    """Add --beams and --no-captions."""
    group.add_argument(
        "--beams",
        metavar="N",
        type=parse_count,
        default=1,
        help="width of the beam search for captions (1: greedy)",
    )
    group.add_argument("--no-captions", action="store_true", help="do not write captions")


def check_caption_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError where options of `add_caption_options` contradict each other."""
    if arguments.no_captions and arguments.beams > 1:
        raise ValueError("--beams: there are no captions to search with --no-captions; drop one")


def parse_count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def read_concepts(path: str | None) -> str | list[str] | None:
    """The names in a .txt file; any other file or name as it is."""
    if path is None or Path(path).suffix.lower() != ".txt":
        return path
    names = read_lines(Path(path), option="--concepts")
    if not names:
        raise ValueError(f"--concepts: expected one name per line, got none in {path}")
    return names


def load_predictor(arguments: argparse.Namespace, concepts: str | list[str] | None) -> TAPPredictor:
    """The predictor of the model options; `no_captions` of the arguments quiets a warning."""
    with warnings.catch_warnings():
        if arguments.no_captions:
            warnings.filterwarnings("ignore", message="no text tokenizer")
        return TAPPredictor.from_pretrained(
            arguments.model,
            device=arguments.device,
            dtype=arguments.dtype,
            concepts=concepts,
            text_tokenizer=arguments.text_tokenizer,
        )
