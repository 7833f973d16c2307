"""`tap convert`: checkpoints between the published format and the native one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenize_anything.build import locate_checkpoint, read_weights
from tokenize_anything.checkpoints import (
    parse_dtype,
    read_extra_tensors,
    read_header,
    save_state,
)
from tokenize_anything.cli_files import check_outputs
from tokenize_anything.cli_table import printable
from tokenize_anything.companions import (
    Companions,
    check_companions,
    check_same_space,
    find_companions,
    read_concepts,
)
from tokenize_anything.config import TAPConfig
from tokenize_anything.published_format import convert_checkpoint

_EXAMPLE = """examples:
  tap convert tap_vit_l tap_vit_l.safetensors --text-tokenizer tokenizer.model
  tap convert own.pkl own.safetensors --concepts own_concepts.pkl --dtype float32
  tap convert own.safetensors own.pkl
"""


def add_convert_command(commands: Any) -> None:
    """Add `convert` to the subparsers of `tap`."""
    parser = commands.add_parser(
        "convert",
        help="checkpoints to .safetensors, or back to the published .pkl",
        description="Rewrite a checkpoint. A .safetensors file holds weights, sizes, concepts and "
        "text tokenizer in one.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="a model's name, .pkl or .safetensors file"
    )
    parser.add_argument("destination", metavar="DESTINATION", help=".safetensors or .pkl file")
    parser.add_argument("--dtype", default="float16", help="float16 (default), bfloat16 or float32")
    parser.add_argument(
        "--concepts",
        metavar="NAME|FILE",
        help="vocabulary to put in: merged_2560, lvis_1203, coco_80 (downloaded), or a "
        ".safetensors or .pkl file",
    )
    parser.add_argument("--text-tokenizer", metavar="FILE", help="SentencePiece model to put in")
    parser.set_defaults(run=run_convert)


def run_convert(arguments: argparse.Namespace) -> None:
    """Check the arguments, convert, and say what came out."""
    destination = Path(arguments.destination)
    if destination.suffix not in (".safetensors", ".pkl"):
        raise ValueError(
            f"DESTINATION: expected a name ending in .safetensors or .pkl, got {destination.name!r}"
        )
    named = [arguments.source, arguments.concepts, arguments.text_tokenizer]
    check_outputs({"DESTINATION": destination}, inputs=[Path(path) for path in named if path])
    parse_dtype(arguments.dtype)
    source = locate_checkpoint(arguments.source)
    if destination.suffix == ".pkl":
        _write_published(arguments, source, destination)
    else:
        _write_native(arguments, source, destination)


def _write_published(arguments: argparse.Namespace, source: Path, destination: Path) -> None:
    for option, value in (
        ("--concepts", arguments.concepts),
        ("--text-tokenizer", arguments.text_tokenizer),
    ):
        if value is not None:
            raise ValueError(
                f"{option}: a published .pkl file has no place for it; write a .safetensors file"
            )
    convert_checkpoint(source, destination, dtype=arguments.dtype)
    print(f"wrote {printable(str(destination))}: {_megabytes(destination)}, {arguments.dtype}")


def _write_native(arguments: argparse.Namespace, source: Path, destination: Path) -> None:
    config, state = read_weights(source, dtype=arguments.dtype)
    companions = _collect_companions(arguments, source, config)
    tensors, metadata = companions.pack()
    if source.suffix == ".safetensors":
        tensors = {**read_extra_tensors(source), **tensors}
        metadata = {**read_header(source).metadata, **metadata}
    save_state(
        config,
        state,
        destination,
        dtype=arguments.dtype,
        metadata=metadata,
        extra_tensors=tensors,
    )
    print(
        f"wrote {printable(str(destination))}: {_megabytes(destination)}, {arguments.dtype}, "
        f"images of {config.image_size}, {_contents(companions)}"
    )


def _collect_companions(
    arguments: argparse.Namespace, source: Path, config: TAPConfig
) -> Companions:
    """What the options name, else what belongs to the source."""
    named = read_concepts(arguments.concepts)
    own = find_companions(
        arguments.source,
        source,
        arguments.text_tokenizer,
        config.vocabulary_size,
        with_concepts=named is None,
    )
    check_same_space(named, own.concept_space)
    space = own.concept_space or (named.space if named else "")
    companions = Companions(named or own.concepts, own.text_tokenizer, space)
    check_companions(config, companions.concepts, companions.text_tokenizer)
    return companions


def _contents(companions: Companions) -> str:
    names, tokenizer = companions.concepts, companions.text_tokenizer
    concepts = "no concepts (--concepts)" if names is None else f"{len(names)} concepts"
    pieces = "no text tokenizer (--text-tokenizer)"
    if tokenizer is not None:
        pieces = f"a text tokenizer of {tokenizer.vocabulary_size} pieces"
    return f"{concepts}, {pieces}"


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
