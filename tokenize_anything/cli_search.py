"""`tap search`: regions of a token store that are like a text or another region."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.cli_files import (
    PICTURE_FORMATS,
    check_outputs,
    encode_picture,
    write_whole,
)
from tokenize_anything.cli_model import load_predictor, parse_count
from tokenize_anything.cli_prompts import add_prompt_options, collect_prompts, sketch_paths
from tokenize_anything.cli_table import printable
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.hit_sheets import draw_hits
from tokenize_anything.downstream.region_filters import FILTER_NAMES, RegionFilter
from tokenize_anything.downstream.region_search import RegionHits, RegionSearch, SearchMode
from tokenize_anything.downstream.search_index import build_index
from tokenize_anything.image_loading import load_image

_EXAMPLE = """examples:
  tap search tokens.lance "a red mug"
  tap search tokens.lance dog --filter area=0.05.. --save dogs.png --photos photos
  tap search tokens.lance --image photo.jpg --box 40,30,200,220 --top 20 --json hits.json
  tap search tokens.lance --like 81 --filter 'source=holiday/*'
  tap search tokens.lance --build-index
"""


def add_search_command(commands: Any) -> None:
    """Add `search` to the subparsers of `tap`."""
    parser = commands.add_parser(
        "search",
        help="regions of a token store that are like a text or a region",
        description="Find the regions of a token store (tap tokens build) that are most similar to "
        "a text, to a region of a photo, or to one of the store.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("store", metavar="STORE", help="made by `tap tokens build`")
    parser.add_argument(
        "query", metavar="TEXT", nargs="?", help='what to find, right after STORE: "a red mug"'
    )
    parser.add_argument("--image", metavar="PHOTO", help="find what is like a region of this photo")
    parser.add_argument(
        "--like", metavar="REGION_ID", type=int, help="find what is like this region of the store"
    )
    add_prompt_options(parser)
    _add_search_options(parser)
    _add_model_options(parser)
    _add_output_options(parser)
    parser.set_defaults(run=run_search)


def run_search(arguments: argparse.Namespace) -> None:
    """Check what can be checked, search, and write what was found."""
    _check_options(arguments)
    where = RegionFilter.parse(arguments.filter)
    store = RegionStore.open(arguments.store)
    if arguments.build_index:
        store = build_index(store, progress=True)
        print(f"{printable(arguments.store)}: indexed {len(store)} regions")
        if _count_queries(arguments) == 0:
            return
    hits = _search(arguments, store, where)
    _write_outputs(arguments, hits)


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--filter",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help=f"search only some regions ({', '.join(FILTER_NAMES)}): area=0.01..0.5 is the box as "
        "a share of its photo, source='cats/*' the photo, concept=cat the region's name; all "
        "filters given must hold",
    )
    group.add_argument(
        "--top", metavar="K", type=parse_count, default=10, help="how many regions (10)"
    )
    group.add_argument(
        "--exact", action="store_true", help="compare with every region, even if there is an index"
    )
    group.add_argument(
        "--build-index",
        action="store_true",
        help="make or renew the index for quick, approximate searches in large stores",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model", "for --image: the one that made the store")
    group.add_argument(
        "--model", metavar="NAME|FILE", default="tap_tiny", help="as in `tap predict` (tap_tiny)"
    )
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    group.add_argument(
        "--dtype", default="auto", help="auto (default), float32, bfloat16 or float16"
    )
    parser.set_defaults(text_tokenizer=None, no_captions=True)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--save", metavar="FILE", help="write a contact sheet of what was found (.png, .jpg)"
    )
    group.add_argument(
        "--photos",
        metavar="DIR",
        default=".",
        help="for --save: the folder that the store was built from (the current one)",
    )
    group.add_argument(
        "--json", metavar="FILE", help="write what was found as JSON, masks as COCO run-length code"
    )


def _count_queries(arguments: argparse.Namespace) -> int:
    return sum(value is not None for value in (arguments.query, arguments.image, arguments.like))


def _check_options(arguments: argparse.Namespace) -> None:
    count = _count_queries(arguments)
    if count > 1 or (count == 0 and not arguments.build_index):
        raise ValueError(
            "query: expected one of a TEXT, --image PHOTO with --box, --point or --sketch, and "
            f"--like REGION_ID, got {count} of them"
        )
    if arguments.prompts and arguments.image is None:
        raise ValueError("--image: --box, --point and --sketch are on a photo; add --image PHOTO")
    outputs = {"--json": arguments.json, "--save": arguments.save}
    inputs = [arguments.image, *sketch_paths(arguments.prompts or [])]
    check_outputs(
        {option: Path(path) for option, path in outputs.items() if path is not None},
        inputs=[Path(path) for path in inputs if path],
    )
    if arguments.save is not None and Path(arguments.save).suffix.lower() not in PICTURE_FORMATS:
        raise ValueError(
            f"--save: expected a name ending in {', '.join(PICTURE_FORMATS)}, got "
            f"{arguments.save!r}"
        )


def _search(arguments: argparse.Namespace, store: RegionStore, where: RegionFilter) -> RegionHits:
    mode: SearchMode = "exact" if arguments.exact else "auto"
    top = arguments.top
    if arguments.image is None:
        search = RegionSearch(store, mode=mode)
        if arguments.like is not None:
            return search.like(arguments.like, top, where=where)
        return search.by_text(arguments.query, top, where=where)
    photo = load_image(arguments.image, name="--image")
    named = collect_prompts(arguments.prompts or [], *photo.shape[:2])
    search = RegionSearch(store, predictor=load_predictor(arguments, None), mode=mode)
    return search.by_region(photo, named.prompts, top, where=where)


def _write_outputs(arguments: argparse.Namespace, hits: RegionHits) -> None:
    """Make all outputs before the first one is written, so that a failure leaves none."""
    contents: dict[str, bytes] = {}
    if arguments.json is not None:
        contents[arguments.json] = hits.to_json().encode()
    if arguments.save is not None and len(hits):
        sheet = np.asarray(draw_hits(hits, arguments.photos))
        contents[arguments.save] = encode_picture(sheet, Path(arguments.save))
    for path, content in contents.items():
        write_whole(Path(path), content)
    print(_format_hits(hits) if len(hits) else "no region passes the filters")
    for path in contents:
        print(f"wrote {printable(path)}")


def _format_hits(hits: RegionHits) -> str:
    """A line for each region, under a line of titles."""
    rows = hits.rows
    cells = [["#", "cosine", "region", "concept", "photo", "box", "caption"]]
    for row, box in enumerate(rows.boxes_xyxy):
        texts = [rows.texts["concept"][row], rows.texts["source"][row]]
        cells.append(
            [
                str(row + 1),
                f"{hits.similarities[row]:.3f}",
                str(rows.region_ids[row]),
                *(printable(text) or "-" for text in texts),
                ",".join(f"{edge:g}" for edge in box),
                printable(rows.texts["caption"][row]) or "-",
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
