"""`tap semantic`: the concept space, and an embedding of every mask of a data set."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from tokenize_anything.cli_cluster import add_cluster_options, connect_to_cluster
from tokenize_anything.cli_semantic_concepts import add_concepts_command
from tokenize_anything.cli_table import printable
from tokenize_anything.data.region_store_check import verify_store
from tokenize_anything.data.sa1b import open_photos
from tokenize_anything.open_clip_towers import DEFAULT_CLIP
from tokenize_anything.semantic_sa1b.clip_teacher import ClipTeacher
from tokenize_anything.semantic_sa1b.pipeline import (
    BuildReport,
    BuildSettings,
    beside_store,
    build_store,
)
from tokenize_anything.semantic_sa1b.ray_pipeline import build_store_on_ray

_EXAMPLE = """examples:
  tap semantic build sa1b/ --out sa1b.lance
  tap semantic build instances_val2017.json --images val2017 --tower ViT-B-32:openai \\
    --out coco.lance
  tap semantic build /shared/sa1b --out sa1b.lance --ray auto --workers 64 --gpus 1
"""


def add_semantic_command(commands: Any) -> None:
    """Add `semantic` to the subparsers of `tap`."""
    parser = commands.add_parser(
        "semantic",
        help="concept spaces, and CLIP embeddings of every mask of a data set",
        description="The concept space: vectors of names and of regions.",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_build_command(subparsers)
    _add_verify_command(subparsers)
    add_concepts_command(subparsers)


def _add_build_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "build",
        help="embed every mask of a data set into a region store",
        description="Embed the crop of every mask with CLIP. Stopped by anything, the same command "
        "goes on where it was; what is left out is counted and named beside the store.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        help="folder of sa_*.jpg and sa_*.json, or of such .tar files, one .tar, or a COCO .json",
    )
    parser.add_argument("--out", metavar="STORE", type=Path, required=True, help="folder to fill")
    parser.add_argument("--images", metavar="DIR", type=Path, help="photos of a COCO .json")
    parser.add_argument(
        "--tower",
        metavar="NAME",
        default=DEFAULT_CLIP,
        help=f"{DEFAULT_CLIP} (default, the paper's; downloaded), another name of open_clip, "
        "NAME:TAG, hf-hub:owner/name, or a folder with open_clip_config.json",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help="weights, in place of published ones"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype", default="auto", help="auto (default), float32, bfloat16, float16"
    )
    whole = {"type": int, "metavar": "N"}
    parser.add_argument("--batch-size", default=64, help="crops at once (default 64)", **whole)
    parser.add_argument(
        "--threads", default=4, help="that read and crop photos (default 4)", **whole
    )
    add_cluster_options(parser)
    parser.set_defaults(run=run_build)


def _add_verify_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="read all of a region store and check it",
        description="Read every region and check files, check sums, ids, vectors and boxes.",
        allow_abbrev=False,
    )
    parser.add_argument("store", metavar="STORE", help="made by `tap semantic build`")
    parser.set_defaults(run=run_verify)


def run_build(arguments: argparse.Namespace) -> None:
    """Find the photos, embed their masks, and say what came out."""
    settings = BuildSettings(batch_size=arguments.batch_size, threads=arguments.threads)
    photos = open_photos(
        arguments.data,
        index_folder=beside_store(arguments.out, "shards"),
        images=arguments.images,
    )
    make_embedder = partial(
        ClipTeacher,
        arguments.tower,
        arguments.checkpoint,
        towers="image",
        device=arguments.device,
        dtype=arguments.dtype,
    )
    if arguments.ray is None:
        report = build_store(photos, make_embedder(), arguments.out, settings)
    else:
        with connect_to_cluster(arguments) as cluster:
            report = build_store_on_ray(photos, make_embedder, arguments.out, settings, cluster)
    print(
        f"{printable(str(arguments.out))}: {report.num_regions} regions of {report.num_images} "
        f"images, vectors of {printable(report.identity)}"
    )
    _print_skipped(report, arguments.out)


def _print_skipped(report: BuildReport, store: Path) -> None:
    if report.skipped:
        print(f"left out, each named in {printable(str(beside_store(store, 'skipped.jsonl')))}:")
        for reason, count in sorted(report.skipped.items()):
            print(f"{count:>9}  {reason}")


def run_verify(arguments: argparse.Namespace) -> None:
    """Check a store; raises ValueError when something is wrong with it."""
    report = verify_store(arguments.store, show_progress=True)
    print(
        f"{printable(arguments.store)}: {report.num_regions} regions of {report.num_images} "
        f"images, vectors of {printable(report.columns.identity)}"
    )
    for problem in report.problems:
        print(printable(problem))
    if report.problems:
        raise ValueError(
            f"STORE: {len(report.problems)} problems in {arguments.store}, see above; build it "
            f"again, or take a copy"
        )
    print("sound")
