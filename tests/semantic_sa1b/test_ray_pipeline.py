"""The build on a local Ray: any number of workers, one of them killed, gives the same store."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.semantic_sa1b.tiny_sa1b import PlainTower, read_all, write_folder
from tokenize_anything.data.region_store_check import verify_store
from tokenize_anything.data.sa1b import AnnotatedPhotos, open_photos
from tokenize_anything.semantic_sa1b.pipeline import BuildSettings, beside_store, build_store
from tokenize_anything.semantic_sa1b.ray_pipeline import ClusterSettings, build_store_on_ray

pytest.importorskip("lance", reason="needs tokenize-anything[search]")
ray = pytest.importorskip("ray", reason="needs tokenize-anything[cluster]")
ROOT = Path(__file__).parents[2]
COUNT, WORKERS = 24, 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    environment = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    ray.init(
        num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False,
        runtime_env=environment, object_store_memory=2**27,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def photos(tmp_path: Path) -> AnnotatedPhotos:
    data = write_folder(tmp_path / "data", range(COUNT))
    (data / "sa_5.jpg").write_bytes(b"no picture")
    return open_photos(data, index_folder=tmp_path / "shards")


def test_not_connected_is_said(photos: AnnotatedPhotos, tmp_path: Path) -> None:
    assert not ray.is_initialized()
    with pytest.raises(RuntimeError, match=r"not connected to a cluster; call ray.init first"):
        build_store_on_ray(photos, PlainTower, tmp_path / "out.lance")


@pytest.mark.parametrize("name", ["workers", "photos_per_task"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        ClusterSettings(**{name: 0})
    with pytest.raises(ValueError, match="gpus: expected at least 0, got -1"):
        ClusterSettings(gpus=-1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_changes_nothing(
    cluster: None, photos: AnnotatedPhotos, tmp_path: Path
) -> None:
    """Three workers, one of them killed with photos in hand, against one process without Ray."""
    settings = BuildSettings(commit_regions=8, threads=1)
    whole = build_store(photos, PlainTower(), tmp_path / "whole.lance", settings)
    pids = tmp_path / "pids"
    pids.mkdir()
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(pids, killed), daemon=True)
    killer.start()
    report = build_store_on_ray(
        photos,
        partial(PlainTower, seconds=0.4, pid_folder=str(pids)),
        tmp_path / "ray.lance",
        settings,
        ClusterSettings(workers=WORKERS, photos_per_task=2),
    )
    killer.join()
    assert len(killed) == 1
    assert len(list(pids.iterdir())) >= 1 + WORKERS + 1  # who described, workers, a replacement
    assert read_all(tmp_path / "ray.lance") == read_all(tmp_path / "whole.lance")
    assert report == whole
    assert verify_store(tmp_path / "ray.lance").problems == ()
    for ending in ("report.json", "skipped.jsonl"):
        texts = [
            beside_store(tmp_path / f"{n}.lance", ending).read_text() for n in ("ray", "whole")
        ]
        assert texts[0] == texts[1]


def kill_a_worker(pids: Path, killed: list[int]) -> None:
    """Wait until all workers live and have begun, then kill the latest."""
    while len(list(pids.iterdir())) < 1 + WORKERS:
        time.sleep(0.1)
    time.sleep(1)
    latest = max(pids.iterdir(), key=lambda path: path.stat().st_mtime)
    os.kill(int(latest.name), signal.SIGKILL)
    killed.append(int(latest.name))


class OtherTower(PlainTower):
    """Another identity in every process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.identity = f"process {os.getpid()}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_with_other_weights_stop_the_build(
    cluster: None, photos: AnnotatedPhotos, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="give all machines the same weights") as caught:
        build_store_on_ray(photos, OtherTower, tmp_path / "out.lance")
    errors: Any = caught.value
    assert errors is not None
