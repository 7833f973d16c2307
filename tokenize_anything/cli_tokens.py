"""`tap tokens`: a store with the tokens of every region of many photos."""

from __future__ import annotations

import argparse
import glob
from functools import partial
from pathlib import Path
from typing import Any

from tokenize_anything.cli_cluster import add_cluster_options, connect_to_cluster
from tokenize_anything.cli_everything import add_search_options, read_search_config
from tokenize_anything.cli_model import (
    add_caption_options,
    add_model_options,
    check_caption_options,
    load_predictor,
    parse_count,
    read_concepts,
)
from tokenize_anything.cli_photos import find_photos
from tokenize_anything.cli_table import printable
from tokenize_anything.data.lance_files import is_url
from tokenize_anything.downstream.token_build import TokenReport, TokenWork, build_tokens
from tokenize_anything.downstream.token_check import verify_tokens
from tokenize_anything.downstream.token_maker import TokenMaker, TokenSettings
from tokenize_anything.downstream.token_photos import BOX, MASK, CocoPhotos, FolderPhotos
from tokenize_anything.downstream.token_ray import build_tokens_on_ray
from tokenize_anything.everything_config import EverythingConfig

_MAX_LINES = 50
_EXAMPLE = """examples:
  tap tokens build photos/ --out photos.lance --points-per-side 16
  tap tokens build 'photos/**/*.jpg' --out s3://bucket/photos.lance
  tap tokens build instances_val2017.json --images val2017 --out coco.lance
  tap tokens build /shared/photos --out photos.lance --ray auto --workers 16 --gpus 1
"""


def add_tokens_command(commands: Any) -> None:
    """Add `tokens` to the subparsers of `tap`."""
    parser = commands.add_parser(
        "tokens",
        help="a store with the tokens of every region of many photos",
        description="Region tokens of many photos, in a store that other programs read.",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_build_command(subparsers)
    _add_verify_command(subparsers)


def _add_build_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "build",
        help="put the tokens of all regions of photos into a store, or bring it up to date",
        description="Find the regions of photos, or take those of a COCO file, and store tokens, "
        "boxes, masks, concepts and captions. Only photos that are new or have changed are done; "
        "regions of photos that are gone are deleted. Stopped by anything, the same command goes "
        "on.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "photos",
        metavar="FOLDER|PATTERN|LIST|COCO.json",
        help="a folder of pictures, a pattern in quotes, a .txt file with one per line, of which "
        "every region is found; or a COCO .json, whose boxes or masks are the prompts",
    )
    parser.add_argument(
        "--out", metavar="STORE", required=True, help="a folder, or a URL such as s3://bucket/name"
    )
    parser.add_argument("--images", metavar="DIR", type=Path, help="photos of a COCO .json")
    parser.add_argument(
        "--prompt",
        choices=(BOX, MASK),
        default=BOX,
        help="what of an annotation of a COCO .json is the prompt (default box)",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=Path,
        help="photos are called by their paths below it (default: the folder given, that of the "
        "list, or the part of the pattern before the first *)",
    )
    _add_answer_options(parser)
    add_search_options(parser)
    add_model_options(parser)
    add_cluster_options(parser)
    parser.set_defaults(run=run_build)


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answer and work")
    add_caption_options(group)
    group.add_argument(
        "--vectors",
        choices=("float32", "float16"),
        default="float32",
        help="as stored (default float32)",
    )
    group.add_argument(
        "--on-bad",
        choices=("skip", "stop"),
        default="skip",
        help="photos that cannot be used are left out and named (default), or end the build",
    )
    usual = TokenWork()
    for name, text in (
        ("block", "photos named and described together"),
        ("threads", "that read photos ahead"),
        ("commit-photos", "photos a commit; a kill loses what came after the last one"),
    ):
        default = getattr(usual, name.replace("-", "_"))
        group.add_argument(
            f"--{name}", metavar="N", type=parse_count, default=default, help=f"{text} ({default})"
        )


def _add_verify_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="read all of a token store and check it, and that photos have not changed",
        description="Read every region and check files, check sums, ids, vectors, boxes and "
        "counts; with --root also that each photo is the one its tokens were made from.",
        allow_abbrev=False,
    )
    parser.add_argument("store", metavar="STORE", help="made by `tap tokens build`")
    parser.add_argument("--root", metavar="DIR", type=Path, help="the folder of all photos")
    parser.set_defaults(run=run_verify)


def run_build(arguments: argparse.Namespace) -> None:
    """Find the photos, make their tokens, and say what came out."""
    _check_out(arguments.out)
    check_caption_options(arguments)
    photos = _open_photos(arguments)
    settings = TokenSettings(
        search=read_search_config(arguments),
        captions=not arguments.no_captions,
        beams=arguments.beams,
        vector_dtype=arguments.vectors,
    )
    work = TokenWork(
        block=arguments.block,
        threads=arguments.threads,
        commit_photos=arguments.commit_photos,
        stops_on_bad=arguments.on_bad == "stop",
    )
    concepts = read_concepts(arguments.concepts)
    make_maker = partial(_make_maker, _model_options(arguments), concepts, settings)
    if arguments.ray is None:
        report = build_tokens(photos, make_maker(), arguments.out, work)
    else:
        with connect_to_cluster(arguments) as cluster:
            report = build_tokens_on_ray(photos, make_maker, arguments.out, work, cluster)
    _print_report(report, arguments.out)


def run_verify(arguments: argparse.Namespace) -> None:
    """Check a store; raises ValueError when something is wrong with it."""
    report = verify_tokens(arguments.store, arguments.root, show_progress=True)
    print(
        f"{printable(arguments.store)}: {report.num_regions} regions of {report.num_images} "
        f"photos, tokens of {printable(report.columns.identity)}"
    )
    for problem in report.problems:
        print(printable(problem))
    if report.problems:
        raise ValueError(
            f"STORE: {len(report.problems)} problems in {arguments.store}, see above; build it "
            f"again, or take a copy"
        )
    print("sound" if arguments.root else "sound; --root DIR compares the photos too")


def _check_out(place: str) -> None:
    folder = Path(place).absolute().parent
    if not is_url(place) and not folder.is_dir():
        raise FileNotFoundError(f"--out: the folder {folder} does not exist; create it first")


def _open_photos(arguments: argparse.Namespace) -> FolderPhotos | CocoPhotos:
    word, has_file = arguments.photos, Path(arguments.photos).suffix.lower() == ".json"
    if not has_file:
        if arguments.images is not None or arguments.prompt != BOX:
            raise ValueError("--images, --prompt: they go with a COCO .json; drop them")
        paths = find_photos([word], option="PHOTOS")
        return FolderPhotos.under(arguments.root or _usual_root(word), paths)
    if read_search_config(arguments) != EverythingConfig():
        raise ValueError(
            f"PHOTOS: the regions of {word} are those of its annotations; drop the options of the "
            f"search"
        )
    if arguments.images is None or arguments.root is not None:
        raise ValueError(f"--images: name the folder of the photos of {word}, and no --root")
    return CocoPhotos.open(word, arguments.images, arguments.prompt)


def _usual_root(word: str) -> Path:
    """The folder that paths of photos are relative to."""
    path = Path(word)
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    fixed = [part for part in path.parts]
    wild = next(index for index, part in enumerate(fixed) if glob.has_magic(part))
    return Path(*fixed[:wild])


def _model_options(arguments: argparse.Namespace) -> argparse.Namespace:
    """What `load_predictor` reads, for other processes."""
    names = ("model", "device", "dtype", "text_tokenizer", "no_captions")
    return argparse.Namespace(**{name: getattr(arguments, name) for name in names})


def _make_maker(
    arguments: argparse.Namespace, concepts: str | list[str] | None, settings: TokenSettings
) -> TokenMaker:
    return TokenMaker(load_predictor(arguments, concepts), settings)


def _print_report(report: TokenReport, place: str) -> None:
    print(
        f"{printable(place)}: {report.num_regions} regions of {report.num_photos} photos, tokens "
        f"of {printable(report.identity)}"
    )
    print(f"{report.num_done} photos done now, {report.num_removed} removed")
    _print_lines("photos that cannot be used", report.problems)
    _print_lines("annotations that cannot be used", report.left_out)


def _print_lines(title: str, lines: tuple[str, ...]) -> None:
    if lines:
        print(f"{len(lines)} {title}:")
    for line in lines[:_MAX_LINES]:
        print(f"  {printable(line)}")
    if len(lines) > _MAX_LINES:
        print(f"  and {len(lines) - _MAX_LINES} more")
