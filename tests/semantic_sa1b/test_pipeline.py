"""The build: right vectors, nothing wrong let through, and the same store however often stopped."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.semantic_sa1b.tiny_sa1b import (
    DIM,
    PlainTower,
    make_document,
    make_masks,
    make_photo,
    photo_bytes,
    read_all,
    region_id,
    write_folder,
    write_tar,
)
from tokenize_anything.data.region_store import RegionStore, exclusive_writer
from tokenize_anything.data.region_store_check import verify_store
from tokenize_anything.data.sa1b import open_photos
from tokenize_anything.geometry import encode_rle, masks_to_boxes
from tokenize_anything.semantic_sa1b.clip_teacher import crop_region
from tokenize_anything.semantic_sa1b.pipeline import (
    BuildReport,
    BuildSettings,
    beside_store,
    build_store,
)
from tokenize_anything.semantic_sa1b.skipped import Skipped, read_skipped

pytest.importorskip("lance", reason="needs tokenize-anything[search]")
ROOT = Path(__file__).parents[2]
COUNT = 7


def build(data: Path, out: Path, tower: Any = None, **settings: Any) -> BuildReport:
    photos = open_photos(data, index_folder=beside_store(out, "shards"))
    return build_store(photos, tower or PlainTower(), out, BuildSettings(**settings))


def embed_plainly(number: int) -> list[np.ndarray]:
    """float16 vectors of length 1 of a photo's regions, one at a time."""
    tower, vectors = PlainTower(), []
    for mask in make_masks(number):
        pixels = crop_region(make_photo(number), mask, tower.crop_settings)
        vector = torch.tanh(pixels.flatten() @ tower.weights).double()
        vectors.append((vector / vector.norm()).numpy().astype(np.float16))
    return vectors


def test_the_store_holds_every_mask_in_order(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(COUNT)), tmp_path / "out.lance"
    report = build(data, out, commit_regions=4, threads=3, batch_size=2)
    stored = read_all(out)
    regions = [(n, k) for n in range(COUNT) for k in range(len(make_masks(n)))]
    assert stored["ids"] == [region_id(n, k) for n, k in regions]
    assert stored["images"] == [f"sa_{n}.jpg" for n, _ in regions]
    masks = [make_masks(n)[k] for n, k in regions]
    assert stored["boxes"] == [masks_to_boxes(mask[None])[0].tolist() for mask in masks]
    assert stored["rles"] == [encode_rle(mask) for mask in masks]
    found = np.frombuffer(b"".join(stored["embeddings"]), np.float16).reshape(-1, DIM)
    expected = np.stack([vector for n in range(COUNT) for vector in embed_plainly(n)])
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=3e-4)
    assert report == BuildReport("plain@7", COUNT, COUNT, len(regions), {})
    assert json.loads(beside_store(out, "report.json").read_text())["num_regions"] == len(regions)
    assert verify_store(out).problems == ()


def test_neither_tars_nor_settings_change_the_vectors(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", range(COUNT))
    write_tar(tmp_path / "tars" / "sa_000000.tar", range(3))
    write_tar(tmp_path / "tars" / "sa_000001.tar", range(3, COUNT))
    build(tmp_path / "folder", tmp_path / "a.lance")
    build(tmp_path / "tars", tmp_path / "b.lance", threads=1, batch_size=3, commit_seconds=0)
    first, second = read_all(tmp_path / "a.lance"), read_all(tmp_path / "b.lance")
    assert second.pop("images")[0] == "sa_000000.tar/sa_0.jpg"
    del first["images"]
    assert first == second


# --- stopped and resumed ------------------------------------------------------------------------


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", range(COUNT))
    break_photo(data, 4, "not JSON")
    change_region(data, 1, segmentation=None)
    build(data, tmp_path / "whole.lance")
    out = tmp_path / "killed.lance"
    arguments = [str(data), str(out), "0.5"]
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.semantic_sa1b.tiny_sa1b", *arguments], cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_regions(out, 4)
    finally:
        writer.kill()
        writer.wait()
    num_before = len(RegionStore.open(out))
    assert verify_store(out).problems == ()
    tower = PlainTower()
    report = build(data, out, tower)
    assert tower.num_embedded == report.num_regions - num_before > 0
    assert read_all(out) == read_all(tmp_path / "whole.lance")
    for ending in ("report.json", "skipped.jsonl"):
        whole = beside_store(tmp_path / "whole.lance", ending).read_text()
        assert sorted(beside_store(out, ending).read_text()) == sorted(whole)


def wait_for_regions(out: Path, count: int) -> None:
    for _ in range(600):
        time.sleep(0.1)
        if out.is_dir() and list(out.glob("_versions/*.manifest")):
            if len(RegionStore.open(out)) >= count:
                return
    raise AssertionError("the build did not get that far")


def test_only_what_is_new_is_embedded(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(3)), tmp_path / "out.lance"
    build(data, out)
    tower = PlainTower()
    build(data, out, tower)
    assert tower.num_embedded == 0
    write_folder(tmp_path / "data", range(2, 5))
    build(data, out, tower)
    assert tower.num_embedded == len(make_masks(3)) + len(make_masks(4))
    build(data, tmp_path / "at_once.lance")
    assert read_all(out) == read_all(tmp_path / "at_once.lance")


def test_a_repaired_photo_is_taken_up_and_its_line_goes(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(3)), tmp_path / "out.lance"
    break_photo(data, 2, "no picture")
    change_region(data, 0, segmentation=None)
    assert build(data, out).skipped == {"image cannot be used": 1, "region without mask": 1}
    (data / "sa_2.jpg").write_bytes(photo_bytes(2))
    assert build(data, out).skipped == {"region without mask": 1}
    assert len(read_skipped(beside_store(out, "skipped.jsonl"))) == 1


def test_a_full_disk_stops_the_build_and_it_goes_on_later(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(COUNT)), tmp_path / "out.lance"
    build(write_folder(tmp_path / "some", range(2)), out)
    before, limits = read_all(out), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not append .* free space on the disk"):
            build(data, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_all(out) == before
    build(data, out)
    build(data, tmp_path / "at_once.lance")
    assert read_all(out) == read_all(tmp_path / "at_once.lance")


def test_a_full_disk_under_the_log_stops_the_build(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(2)), tmp_path / "out.lance"
    build(data, out)
    for number in range(40):
        (data / f"lonely_{number}.jpg").touch()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*skipped.jsonl .*run the same command"):
            build(data, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert build(data, out).skipped == {"file cannot be used": 40}


# --- bad data -----------------------------------------------------------------------------------


def break_photo(data: Path, number: int, how: str) -> None:
    image, document = data / f"sa_{number}.jpg", data / f"sa_{number}.json"
    if how == "no picture":
        image.write_bytes(b"this is no picture")
    elif how == "cut short":
        image.write_bytes(image.read_bytes()[:-300])
    elif how == "another size":
        image.write_bytes(photo_bytes(number + 1))
    elif how == "not JSON":
        document.write_text(document.read_text()[:-40])
    elif how == "no image entry":
        document.write_text(json.dumps({"annotations": []}))


@pytest.mark.parametrize(
    "how, detail",
    [
        ("no picture", "sa_1.jpg': expected an image, got bytes in no format Pillow can read"),
        ("cut short", "sa_1.jpg': the image cannot be decoded"),
        ("another size", "sa_1.jpg is (59, 67), its annotation says (53, 43) (height, width)"),
        ("not JSON", "sa_1.jpg: expected JSON with image (width, height) and annotations"),
        ("no image entry", "sa_1.jpg: expected JSON with image"),
    ],
)
def test_a_bad_photo_is_named_and_left_out(tmp_path: Path, how: str, detail: str) -> None:
    data, out = write_folder(tmp_path / "data", range(3)), tmp_path / "out.lance"
    break_photo(data, 1, how)
    report = build(data, out)
    assert report.skipped == {"image cannot be used": 1}
    (entry,) = read_skipped(beside_store(out, "skipped.jsonl"))
    assert (entry.image, entry.region_id) == ("sa_1.jpg", None)
    assert detail in entry.detail
    assert RegionStore.open(out).images() == {"sa_0.jpg", "sa_2.jpg"}


def change_region(data: Path, number: int, **changes: Any) -> None:
    """Change the first region of a photo; `...` takes a key away."""
    document = make_document(number)
    annotation = document["annotations"][0] | changes
    document["annotations"][0] = {k: v for k, v in annotation.items() if v is not ...}
    (data / f"sa_{number}.json").write_text(json.dumps(document))


EMPTY = encode_rle(np.zeros((53, 43), bool))
SMALL = encode_rle(np.ones((5, 5), bool))
CORNER = np.zeros((53, 43), bool)
CORNER[:2, :2] = True


@pytest.mark.parametrize(
    "changes, reason, detail",
    [
        ({"segmentation": EMPTY}, "empty mask", ""),
        (
            {"segmentation": SMALL},
            "mask of another size",
            "expected (53, 43) (height, width), got (5",
        ),
        ({"segmentation": None}, "region without mask", ""),
        ({"segmentation": ...}, "region without mask", ""),
        ({"segmentation": {"size": [53, 43], "counts": "zz"}}, "damaged mask", "compressed counts"),
        ({"segmentation": {"size": [53, 43], "counts": [5]}}, "damaged mask", "add up to"),
        ({"segmentation": {"size": [53, 43], "counts": 5.5}}, "damaged mask", "counts as text"),
        ({"segmentation": [[1, 2, 3]]}, "annotation cannot be used", "expected a run-length mask"),
        (
            {"bbox": [40, 60, 9, 9]},
            "annotation cannot be used",
            "lies outside the image of (43, 53)",
        ),
        ({"bbox": [-20, 3, 9, 9]}, "annotation cannot be used", "lies outside the image"),
        ({"bbox": [1, 2, 3]}, "annotation cannot be used", "expected bbox as 4 finite numbers"),
        (
            {"bbox": [30, 40, 9, 9], "segmentation": encode_rle(CORNER)},
            "mask outside its box",
            "box (",
        ),
        ({"id": None}, "region without id", ""),
        ({"id": region_id(1, 1)}, "region id used before", "by another region of the photo"),
        ({"id": region_id(0, 1)}, "region id used before", "by a region of another photo"),
    ],
)
def test_a_bad_region_is_named_and_left_out(
    tmp_path: Path, changes: dict[str, Any], reason: str, detail: str
) -> None:
    data, out = write_folder(tmp_path / "data", range(3)), tmp_path / "out.lance"
    change_region(data, 1, **changes)
    report = build(data, out, commit_regions=1)
    assert report.skipped == {reason: 1}
    (entry,) = read_skipped(beside_store(out, "skipped.jsonl"))
    assert (entry.reason, entry.image) == (reason, "sa_1.jpg")
    assert detail in entry.detail
    if reason != "annotation cannot be used":  # those lines name the region themselves
        is_second = changes.get("id") == region_id(1, 1)
        assert entry.region_id == changes.get("id", region_id(1, 0)) or is_second
    assert report.num_regions == sum(len(make_masks(number)) for number in range(3)) - 1
    assert verify_store(out).problems == ()


def test_plain_runs_are_stored_compressed(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(2)), tmp_path / "out.lance"
    mask = make_masks(1)[0]
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    change_region(data, 1, segmentation={"size": list(mask.shape), "counts": runs})
    build(data, out)
    build(write_folder(tmp_path / "plain", range(2)), tmp_path / "b.lance")
    assert read_all(out) == read_all(tmp_path / "b.lance")


def test_files_without_partner_and_a_cut_tar_are_named(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(2)), tmp_path / "out.lance"
    (data / "sa_8.jpg").write_bytes(photo_bytes(8))
    (data / "sa_9.json").write_text("{}")
    assert build(data, out).skipped == {"file cannot be used": 2}
    tar = write_tar(tmp_path / "sa_000000.tar", range(3))
    tar.write_bytes(tar.read_bytes()[:-12000])
    report = build(tar, tmp_path / "tar.lance")
    lines = read_skipped(beside_store(tmp_path / "tar.lance", "skipped.jsonl"))
    assert report.skipped == {"file cannot be used": len(lines)}
    assert "sa_000000.tar: the shard is cut short after" in lines[0].detail
    assert 0 < report.num_images < 3


@dataclass
class FailingTower(PlainTower):
    """Gives what no store may hold for the second region of each photo."""

    value: float = float("nan")

    def embed_images(self, pixels: Tensor, *, batch_size: int) -> Tensor:
        """(n,D)."""
        vectors = super().embed_images(pixels, batch_size=batch_size)
        vectors[1] *= self.value
        return vectors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_missing_embedding_is_named_and_left_out(tmp_path: Path, value: float) -> None:
    data, out = write_folder(tmp_path / "data", range(2)), tmp_path / "out.lance"
    report = build(data, out, FailingTower(value=value))
    assert report.skipped == {"embedding is not finite": 2}
    lines = read_skipped(beside_store(out, "skipped.jsonl"))
    assert [(entry.image, entry.region_id) for entry in lines] == [
        ("sa_0.jpg", region_id(0, 1)), ("sa_1.jpg", region_id(1, 1)),
    ]  # fmt: skip


class WrongTower(PlainTower):
    """Says it makes other vectors than it does."""

    def embed_images(self, pixels: Tensor, *, batch_size: int) -> Tensor:
        """(n,D-1)."""
        return super().embed_images(pixels, batch_size=batch_size)[:, 1:]


def test_a_tower_of_another_width_stops_the_build(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", range(2))
    with pytest.raises(ValueError, match=r"embedder: expected vectors \(2, 19\), got \(2, 18\)"):
        build(data, tmp_path / "out.lance", WrongTower())


def test_another_tower_needs_another_store(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(2)), tmp_path / "out.lance"
    build(data, out)
    with pytest.raises(ValueError, match="vectors of 'plain@7', expected 'plain@8'"):
        build(data, out, PlainTower("plain@8"))


def test_two_builds_do_not_write_at_once(tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", range(2)), tmp_path / "out.lance"
    with exclusive_writer(out), pytest.raises(BlockingIOError, match="another process is writing"):
        build(data, out)


@pytest.mark.parametrize("name", ["batch_size", "threads", "commit_regions"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected more than 0, got 0"):
        BuildSettings(**{name: 0})


def test_a_cut_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "x.skipped.jsonl"
    log.write_text(
        '{"reason": "a", "detail": "b", "image": "c", "region_id": 5}\n{"reason": "a", "det'
    )
    assert read_skipped(log) == [Skipped("a", "b", "c", 5)]
    assert read_skipped(tmp_path / "nothing") == []
