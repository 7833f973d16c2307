"""Token builds on a local Ray: any number of workers, one of them killed, gives the same store."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.downstream.tiny_tokens import (
    CountingMaker,
    open_folder,
    read_entries,
    read_rows,
    write_photos,
)
from tokenize_anything.data.ray_workers import ClusterSettings
from tokenize_anything.downstream.token_build import TokenWork, build_tokens
from tokenize_anything.downstream.token_check import verify_tokens
from tokenize_anything.downstream.token_ray import build_tokens_on_ray

pytest.importorskip("lance", reason="needs tokenize-anything[search]")
ray = pytest.importorskip("ray", reason="needs tokenize-anything[cluster]")
ROOT = Path(__file__).parents[2]
COUNT, WORKERS = 24, 2
WORK = TokenWork(block=2, threads=1, commit_photos=6)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    environment = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    ray.init(
        num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False,
        runtime_env=environment, object_store_memory=2**27,
    )  # fmt: skip
    yield
    ray.shutdown()


def test_a_cluster_must_be_connected(tmp_path: Path) -> None:
    photos = open_folder(write_photos(tmp_path / "photos", 1))
    with pytest.raises(RuntimeError, match=r"not connected to a cluster; call ray\.init first"):
        build_tokens_on_ray(photos, CountingMaker, tmp_path / "out.lance")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_worker_changes_nothing(cluster: None, tmp_path: Path) -> None:
    """Two workers, one of them killed with photos in hand, against one process without Ray."""
    write_photos(tmp_path / "photos", COUNT)
    (tmp_path / "photos" / "1.png").write_bytes(b"no picture")
    photos = open_folder(tmp_path / "photos")
    whole = build_tokens(photos, CountingMaker(), tmp_path / "whole.lance", WORK)
    pids = tmp_path / "pids"
    pids.mkdir()
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(pids, killed), daemon=True)
    killer.start()
    report = build_tokens_on_ray(
        photos,
        partial(CountingMaker, seconds=0.5, pid_folder=str(pids)),
        tmp_path / "ray.lance",
        WORK,
        ClusterSettings(workers=WORKERS, photos_per_task=4),
    )
    killer.join()
    assert len(killed) == 1
    assert len(list(pids.iterdir())) >= 1 + WORKERS + 1  # who described, workers, a replacement
    assert report == whole
    assert read_rows(tmp_path / "ray.lance") == read_rows(tmp_path / "whole.lance")
    assert read_entries(tmp_path / "ray.lance") == read_entries(tmp_path / "whole.lance")
    assert verify_tokens(tmp_path / "ray.lance", tmp_path / "photos").problems == ()
    single = build_tokens_on_ray(
        photos, CountingMaker, tmp_path / "one.lance", WORK, ClusterSettings(workers=1)
    )
    assert single == whole
    assert read_rows(tmp_path / "one.lance") == read_rows(tmp_path / "whole.lance")


def kill_a_worker(pids: Path, killed: list[int]) -> None:
    """Wait until all workers live and have begun, then kill the latest."""
    while len(list(pids.iterdir())) < 1 + WORKERS:
        time.sleep(0.1)
    time.sleep(1)
    latest = max(pids.iterdir(), key=lambda path: path.stat().st_mtime)
    os.kill(int(latest.name), signal.SIGKILL)
    killed.append(int(latest.name))
