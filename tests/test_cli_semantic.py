"""`tap semantic build` and `verify` on a few photos, with a small CLIP of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.semantic_sa1b.tiny_sa1b import make_masks, make_photo, region_id, write_folder, write_tar
from tests.tiny_clip import DIM, make_tiny_clip, needs_open_clip, write_tiny_clip
from tokenize_anything.cli import main
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.semantic_sa1b.clip_teacher import ClipTeacher

pytest.importorskip("lance", reason="needs tokenize-anything[search]")
pytestmark = needs_open_clip
COUNT = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_clip(tmp_path / "clip", make_tiny_clip())
    return tmp_path


def build(data: str, out: str) -> int:
    return main(["semantic", "build", data, "--tower", "clip", "--device", "cpu", "--out", out])


def test_every_mask_gets_its_embedding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(folder / "photos", range(COUNT))
    (folder / "photos" / "sa_9.jpg").write_bytes(b"no picture")
    (folder / "photos" / "sa_9.json").write_bytes((folder / "photos" / "sa_1.json").read_bytes())
    assert build("photos", "regions.lance") == 0
    teacher = ClipTeacher(str(folder / "clip"), towers="image", device="cpu")
    ids = [[region_id(n, i) for i in range(len(make_masks(n)))] for n in range(COUNT)]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"regions.lance: {sum(map(len, ids))} regions of {COUNT} images, vectors of "
        f"{teacher.identity}",
        "left out, each named in regions.lance.skipped.jsonl:",
        "        1  image cannot be used",
    ]
    (entry,) = map(json.loads, Path("regions.lance.skipped.jsonl").read_text().splitlines())
    assert entry["image"] == "sa_9.jpg" and "expected an image" in entry["detail"]
    store = RegionStore.open("regions.lance")
    for number in range(COUNT):
        vectors = store.read_vectors(ids[number], "embedding")
        assert vectors.shape == (len(ids[number]), DIM) and vectors.dtype == np.float16
        expected = teacher.embed_regions(make_photo(number), np.array(make_masks(number)))
        np.testing.assert_allclose(vectors, expected, atol=2e-3)


def test_tars_give_the_same_and_a_second_build_has_nothing_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(folder / "photos", range(COUNT))
    write_tar(folder / "tars" / "a.tar", range(COUNT))
    assert build("photos", "one.lance") == build("tars", "two.lance") == 0
    ids = [region_id(0, 0), region_id(COUNT - 1, 1)]
    vectors = [
        RegionStore.open(f"{n}.lance").read_vectors(ids, "embedding") for n in ("one", "two")
    ]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    capsys.readouterr()
    before = RegionStore.open("one.lance").dataset.version
    assert build("photos", "one.lance") == 0
    assert len(RegionStore.open("one.lance")) == sum(len(make_masks(n)) for n in range(COUNT))
    assert RegionStore.open("one.lance").dataset.version == before


def test_a_sound_store_and_a_damaged_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(folder / "photos", range(COUNT))
    assert build("photos", "regions.lance") == 0
    capsys.readouterr()
    assert main(["semantic", "verify", "regions.lance"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "sound"
    (file,) = (folder / "regions.lance" / "data").iterdir()
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(byte ^ 0xFF for byte in content[middle : middle + 8])
    file.write_bytes(content)
    assert main(["semantic", "verify", "regions.lance"]) != 0
    printed = capsys.readouterr()
    assert "problems in regions.lance, see above; build it again" in printed.err
    assert "sound" not in printed.out


def test_what_is_not_there_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        (["build", "nothing", "--out", "a.lance"], "data: nothing at nothing"),
        (["verify", "a.lance"], "region store: no folder at a.lance"),
    ]:
        assert main(["semantic", *words]) != 0
        assert message in capsys.readouterr().err
