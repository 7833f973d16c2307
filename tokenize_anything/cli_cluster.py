"""The options of a command that can run on a Ray cluster, and the connection they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from tokenize_anything.cli_model import parse_count
from tokenize_anything.data.ray_workers import ClusterSettings, import_ray


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add --ray, --workers, --cpus and --gpus."""
    group = parser.add_argument_group("on a Ray cluster")
    group.add_argument(
        "--ray", metavar="ADDRESS", help="local, auto, or the address of a cluster's head"
    )
    group.add_argument(
        "--workers", metavar="N", type=parse_count, default=2, help="how many (default 2)"
    )
    group.add_argument(
        "--cpus", metavar="X", type=float, default=1, help="for each worker (default 1)"
    )
    group.add_argument(
        "--gpus", metavar="X", type=float, default=0, help="for each worker (default 0)"
    )


@contextmanager
def connect_to_cluster(arguments: argparse.Namespace) -> Iterator[ClusterSettings]:
    """Connect to the cluster of --ray, and leave it at the end.

    Raises:
        ImportError: Ray is missing.
        ConnectionError: nothing at the address.
        ValueError: a number that is too small.
    """
    cluster = ClusterSettings(workers=arguments.workers, cpus=arguments.cpus, gpus=arguments.gpus)
    ray = import_ray()
    if arguments.ray == "local":
        ray.init(include_dashboard=False)
    else:
        ray.init(address=arguments.ray)
    try:
        yield cluster
    finally:
        ray.shutdown()
