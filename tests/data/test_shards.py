"""Tar shards: there and back, random access, damage, and what other tools make of them."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.data.photos import SHAPES, write_photos
from tests.data.test_photo_json import SA1B_REGION, document
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_dataset import RegionDataset, collate, read_image
from tokenize_anything.data.samples import ImageRecord, TextTable
from tokenize_anything.data.shards import (
    ShardRecords,
    find_shards,
    index_shard,
    load_index,
    read_texts,
    write_shards,
)

COUNT, PER_SHARD = 5, 2


@dataclasses.dataclass(frozen=True)
class Written:
    """Records that were written, and the shards they are in."""

    records: list[ImageRecord]
    texts: TextTable
    shards: list[Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("shards")
    write_photos(root / "set", count=COUNT)
    records, texts = read_regions([root / "set" / "photos.json"], root / "set" / "images")
    paths = write_shards(records, texts, root / "shards", names=SHAPES, images_per_shard=PER_SHARD)
    return Written(records, texts, paths)


def write_tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


# --- there and back -------------------------------------------------------------------------------


def test_records_come_back_as_they_were(written: Written, tmp_path: Path) -> None:
    found = ShardRecords(written.shards, tmp_path)
    assert found.sizes == (2, 2, 1) and len(found) == COUNT and found.problems == []
    for record, original in zip(found, written.records, strict=True):
        assert (record.height, record.width) == (original.height, original.width)
        assert record.regions == original.regions and record.skipped == ()
        assert record.encoded == original.path.read_bytes()
        np.testing.assert_array_equal(read_image(record), read_image(original))
    assert found[3].path == written.shards[1] / "000000003.png"
    assert [record.path.name for record in found[1:3]] == ["000000001.png", "000000002.png"]
    assert found[-1].regions == written.records[-1].regions
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            found[index]


def test_texts_lie_beside_the_shards(written: Written, tmp_path: Path) -> None:
    texts, names = read_texts(written.shards)
    assert texts.texts == written.texts.texts and names == SHAPES
    np.testing.assert_array_equal(texts.counts, written.texts.counts)
    elsewhere = write_tar(tmp_path / "a.tar", a__jpg=b"")
    assert read_texts([elsewhere])[0].texts == ()
    with pytest.raises(
        ValueError, match="expected one folder for shards with texts, got 2 folders"
    ):
        read_texts([*written.shards, elsewhere])
    (tmp_path / "texts.json").write_text('{"texts": 3}')
    with pytest.raises(ValueError, match=r"texts\.json is damaged .*write the shards again"):
        read_texts([elsewhere])


def test_shards_are_the_same_whenever_they_are_written(written: Written, tmp_path: Path) -> None:
    again = write_shards(
        written.records, written.texts, tmp_path, names=SHAPES, images_per_shard=PER_SHARD
    )
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written.shards]
    assert sorted(os.listdir(tmp_path)) == ["000000.tar", "000001.tar", "000002.tar", "texts.json"]


def test_shards_of_shards_are_possible(written: Written, tmp_path: Path) -> None:
    found = ShardRecords(written.shards, tmp_path)
    (path,) = write_shards(found, written.texts, tmp_path / "one", images_per_shard=99)
    again = ShardRecords([path], tmp_path)
    assert [r.regions for r in again] == [r.regions for r in written.records]


def test_training_samples_are_those_of_the_files(written: Written, tmp_path: Path) -> None:
    shards = ShardRecords(written.shards, tmp_path)
    plain = RegionDataset(written.records, written.texts, 48)
    packed = RegionDataset(shards, written.texts, 48)
    keys = list(itertools.product(range(2), range(COUNT)))
    loaders = [
        DataLoader(dataset, batch_size=5, sampler=keys, collate_fn=collate, num_workers=workers)
        for dataset, workers in ((plain, 0), (packed, 2))
    ]
    for one, two in zip(*loaders, strict=True):
        for name in ("images", "boxes_xyxy", "masks", "has_mask", "text_index", "indices"):
            assert (getattr(one, name) == getattr(two, name)).all(), name


def test_webdataset_reads_the_shards(written: Written) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    samples = list(webdataset.WebDataset([str(p) for p in written.shards], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(COUNT)]
    for sample, record in zip(samples, written.records, strict=True):
        assert sample["png"] == record.path.read_bytes()
        assert b'"annotations"' in sample["json"]


def test_sa1b_tars_are_read_as_they_are(tmp_path: Path) -> None:
    content = {"./sa_7.jpg": b"JPEG", "./sa_7.json": document(SA1B_REGION)}
    shard = write_tar(tmp_path / "sa_000020.tar", **content)
    (record,) = ShardRecords([shard], tmp_path / "index")
    assert record.encoded == b"JPEG" and record.regions[0].region_id == 41
    assert record.path == shard / "./sa_7.jpg"


# --- the index ------------------------------------------------------------------------------------


def test_an_index_is_made_once_and_anew_when_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_tar(tmp_path / "a.tar", a__jpg=b"1", a__json=document())
    first = load_index(shard, tmp_path)
    (kept,) = tmp_path.glob("*.npz")
    monkeypatch.setattr("tokenize_anything.data.shards.index_shard", None)  # may not be called
    again = load_index(shard, tmp_path)
    np.testing.assert_array_equal(first.members, again.members)
    np.testing.assert_array_equal(first.names, again.names)
    monkeypatch.undo()
    write_tar(shard, a__jpg=b"1", a__json=document(), b__jpg=b"22", b__json=document())
    os.utime(shard, ns=(5, 5))
    assert load_index(shard, tmp_path).names.tolist() == [b"a.jpg", b"b.jpg"]
    kept.write_bytes(kept.read_bytes()[:50])  # a damaged index is made anew too
    assert len(load_index(shard, tmp_path).names) == 2


# --- damage ---------------------------------------------------------------------------------------


def test_a_shard_cut_short_keeps_its_whole_images_and_says_so(tmp_path: Path) -> None:
    """Cut at every place of a tar with two images."""
    whole = write_tar(
        tmp_path / "whole.tar", a__jpg=b"A" * 700, a__json=document(SA1B_REGION), b__jpg=b"B",
        b__json=document(),
    ).read_bytes()  # fmt: skip
    ends = [4 * 512, 5 * 512 + 512]  # where the headers say the images end
    cut = tmp_path / "cut.tar"
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [m.offset_data + m.size for m in tar if m.name.endswith(".json")]
    assert index_shard(tmp_path / "whole.tar").problems == ()
    for length in range(512, ends[-1] + 700, 97):
        cut.write_bytes(whole[:length])
        expected = sum(length >= end for end in ends)
        index = index_shard(cut)
        assert len(index.names) == expected, length
        is_whole = len(whole[:length]) >= -(-ends[-1] // 512) * 512 + 512
        assert bool(index.problems) != is_whole, length
        if not is_whole:
            assert "cut short after" in index.problems[0]


def test_a_shard_that_shrinks_later_is_noticed(written: Written, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(written.shards[0].read_bytes())
    records = ShardRecords([shard], tmp_path)
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"a\.tar is cut short: \d+ bytes expected at \d+"):
        records[1]


@pytest.mark.parametrize("content", [b"", b"not a tar" * 100, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar cannot be read .*expected an uncompressed tar"):
        ShardRecords([tmp_path / "a.tar"], tmp_path)


def test_images_without_json_are_named(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", a__jpg=b"", b__jpg=b"", b__json=document(), c__json=b"")
    records = ShardRecords([shard], tmp_path)
    assert len(records) == 1
    assert records.problems == [
        f"{shard}: a.jpg: no JSON beside the image", f"{shard}: c.json: no image beside the JSON",
    ]  # fmt: skip


def test_shards_without_any_image_are_refused(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", readme__md=b"hello")
    with pytest.raises(ValueError, match="shards: expected images with a JSON each in"):
        ShardRecords([shard], tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"shards: no file at .*gone\.tar"):
        ShardRecords([tmp_path / "gone.tar"], tmp_path)
    for name in ("b.tar", "a.tar"):
        write_tar(tmp_path / name, a__jpg=b"")
    assert find_shards([str(tmp_path / "*.tar")]) == [tmp_path / "a.tar", tmp_path / "b.tar"]
    with pytest.raises(FileNotFoundError, match=r"shards: no file at .*/c\*\.tar"):
        find_shards([str(tmp_path / "a.tar"), str(tmp_path / "c*.tar")])


def test_a_missing_image_leaves_no_shard(written: Written, tmp_path: Path) -> None:
    gone = dataclasses.replace(written.records[1], path=tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        write_shards([written.records[0], gone], written.texts, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    with pytest.raises(ValueError, match="images_per_shard: expected at least 1, got 0"):
        write_shards([], written.texts, tmp_path / "out", images_per_shard=0)
