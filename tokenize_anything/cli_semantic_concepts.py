"""`tap semantic concepts`: a concept file from lists of names and a text encoder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenize_anything.cli_files import check_outputs
from tokenize_anything.cli_table import printable
from tokenize_anything.concepts import SOURCE_TEMPLATE, TARGET_TEMPLATE
from tokenize_anything.open_clip_towers import DEFAULT_CLIP, ClipTowers
from tokenize_anything.semantic_sa1b.vocabulary import (
    NameList,
    join_names,
    merge_names,
    read_names,
    separators_to_blanks,
)
from tokenize_anything.text_towers import MINILM, SentenceTower, TextTower, embed_concepts

_EXAMPLE = """examples:
  tap semantic concepts kitchen.txt --out kitchen.safetensors
  tap semantic concepts kitchen.txt --tower all-MiniLM-L6-v2 --out kitchen.safetensors
  tap semantic concepts coco.txt ade20k.txt --separated lvis.txt --merge --out merged.safetensors
"""


def add_concepts_command(subparsers: Any) -> None:
    """Add `concepts` to the subparsers of `tap semantic`."""
    parser = subparsers.add_parser(
        "concepts",
        help="a concept file from lists of names",
        description="Embed names with a text encoder, for --concepts of a model whose concept "
        "space is that encoder's.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "names", metavar="NAMES.txt", nargs="*", type=Path, help="text files, a name a line"
    )
    parser.add_argument(
        "--separated",
        metavar="NAMES.txt",
        nargs="+",
        type=Path,
        default=[],
        help="more files, whose names have _ or - for blanks (LVIS, Objects365, Open Images)",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="lower case, without plurals whose singular is there, sorted, as the paper does; "
        "otherwise the names stay as they are, in their order",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help=".safetensors file")
    parser.add_argument(
        "--tower",
        metavar="NAME",
        default=DEFAULT_CLIP,
        help=f"{DEFAULT_CLIP} (default, for the published models; downloaded), {MINILM} (for "
        "tap_tiny), another name of open_clip, NAME:TAG, hf-hub:owner/name, or a folder with "
        "open_clip_config.json",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        help="weights of the tower, in place of published ones",
    )
    parser.add_argument(
        "--target",
        action="store_true",
        help=f'the teacher\'s side, "{TARGET_TEMPLATE}", in place of "{SOURCE_TEMPLATE}"',
    )
    parser.add_argument(
        "--scale", metavar="S", type=_parse_scale, help="logit scale (default: the tower's own)"
    )
    parser.add_argument(
        "--device", default="auto", help="of CLIP towers: auto (default), cpu, cuda or mps"
    )
    parser.set_defaults(run=run_concepts)


def run_concepts(arguments: argparse.Namespace) -> None:
    """Check the arguments, embed the names, and say what came out."""
    if arguments.out.suffix != ".safetensors":
        raise ValueError(
            f"--out: expected a name ending in .safetensors, got {arguments.out.name!r}"
        )
    inputs = [*arguments.names, *arguments.separated, arguments.checkpoint]
    check_outputs({"--out": arguments.out}, inputs=[path for path in inputs if path])
    found = _collect_names(arguments)
    tower = _open_tower(arguments)
    vocabulary = embed_concepts(
        found.names,
        tower,
        template=TARGET_TEMPLATE if arguments.target else SOURCE_TEMPLATE,
        logit_scale=arguments.scale,
    )
    vocabulary.save(arguments.out)
    if found.repeated:
        print(
            f"{len(found.repeated)} came more than once and count once: {_shorten(found.repeated)}"
        )
    if found.plurals:
        print(f"{len(found.plurals)} plurals left out: {_shorten(found.plurals)}")
    print(
        f"wrote {printable(str(arguments.out))}: {len(vocabulary)} concepts of "
        f"{len(vocabulary.weights)} dimensions, space {printable(vocabulary.space)}"
    )


def _collect_names(arguments: argparse.Namespace) -> NameList:
    if not arguments.names and not arguments.separated:
        raise ValueError("NAMES.txt: expected at least one text file with a name a line, got none")
    sources = [read_names(path) for path in arguments.names]
    sources += [separators_to_blanks(read_names(path)) for path in arguments.separated]
    return merge_names(sources) if arguments.merge else join_names(sources)


def _open_tower(arguments: argparse.Namespace) -> TextTower:
    if arguments.tower == MINILM:
        if arguments.checkpoint is not None:
            raise ValueError(f"--checkpoint: {MINILM} brings its own weights; leave it out")
        return SentenceTower()
    return ClipTowers(
        arguments.tower,
        arguments.checkpoint,
        towers="text",
        device=arguments.device,
        dtype="float32",
    )


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _parse_scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0.0 < scale < 1e4:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return scale
