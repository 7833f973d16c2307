"""Region store: what comes out is what went in, whole or not at all, and bad use is named."""

from __future__ import annotations

import multiprocessing
import pickle
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.tiny_store import (
    BATCH,
    COLUMNS,
    DIM,
    TOKEN_DIM,
    assert_rows_equal,
    batch_ids,
    make_rows,
)
from tokenize_anything.data.region_embeddings import read_present
from tokenize_anything.data.region_rows import RegionColumns, VectorColumn
from tokenize_anything.data.region_store import RegionStore, StoredVectors, exclusive_writer
from tokenize_anything.data.region_store_check import verify_store

lance = pytest.importorskip("lance", reason="needs tokenize-anything[search]")
ROOT = Path(__file__).parents[2]
IDS = [40, 3, 700, -8, 41, 2**40, 5]


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    made = RegionStore.create(tmp_path / "regions.lance", COLUMNS)
    made.append(make_rows(IDS[:4]))
    made.append(make_rows(IDS[4:]))
    return made


def data_files(store: RegionStore) -> list[Path]:
    """In the order of the fragments."""
    names = [file.path for f in store.dataset.get_fragments() for file in f.metadata.files]
    return [Path(store.path) / "data" / name for name in names]


# --- there and back -----------------------------------------------------------------------------


def test_rows_come_back_as_they_went_in(store: RegionStore) -> None:
    assert_rows_equal(RegionStore.open(store.path).read(IDS), make_rows(IDS))


@pytest.mark.parametrize("ids", [[5], [2**40, 40, 3], [41, 3, 41, 41], []])
def test_reading_follows_the_order_of_the_ids(store: RegionStore, ids: list[int]) -> None:
    assert_rows_equal(store.read(ids), make_rows(ids))
    tokens = store.read_vectors(np.array(ids, np.int64), "token")
    assert store.read_vectors(ids, "embedding").shape == (len(ids), DIM)
    expected = make_rows(ids).vectors["token"].astype(np.float32)
    np.testing.assert_array_equal(tokens, expected.reshape(-1, TOKEN_DIM))


@pytest.mark.parametrize("batch_size", [1, 3, 4096])
def test_iteration_keeps_the_order_of_appending(store: RegionStore, batch_size: int) -> None:
    parts = list(store.iterate(batch_size))
    assert max(len(part) for part in parts) <= batch_size
    assert [i for part in parts for i in part.region_ids.tolist()] == IDS
    start = 0
    for part in parts:
        assert_rows_equal(part, make_rows(IDS[start : start + len(part)]))
        start += len(part)


def test_finishing_changes_no_row_and_leaves_one_fragment(store: RegionStore) -> None:
    assert len(store.dataset.get_fragments()) == 2
    store.finish()
    assert len(store.dataset.get_fragments()) == 1
    assert [i for part in store.iterate() for i in part.region_ids.tolist()] == IDS
    store.append(make_rows([99]))  # found without being in the index
    again = RegionStore.open(store.path)
    assert_rows_equal(again.read([99, *IDS]), make_rows([99, *IDS]))
    assert verify_store(store.path).problems == ()


def test_a_long_build_tidies_up_as_it_goes(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_MANY_FRAGMENTS": 4, "_MIN_UNINDEXED": 5, "_FEW_ROWS": 9}.items():
        monkeypatch.setattr(f"tokenize_anything.data.region_store.{name}", value)
    added = list(range(900, 922))
    for region_id in added:
        store.append(make_rows([region_id]))
        assert len(store.dataset.get_fragments()) <= 2 + 4
    store.finish()
    assert len(store.dataset.get_fragments()) == 1
    assert [i for part in store.iterate() for i in part.region_ids.tolist()] == [*IDS, *added]
    assert [index.name for index in store.dataset.describe_indices()] == ["region_id_btree"]
    assert_rows_equal(store.read([*added, *IDS]), make_rows([*added, *IDS]))
    assert verify_store(store.path).problems == ()


def test_a_batch_must_leave_room_to_merge(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenize_anything.data.region_store._FULL_FRAGMENT", 2)
    with pytest.raises(
        ValueError, match="rows: expected fewer than 2 at once, got 2; append parts"
    ):
        store.append(make_rows([8, 9]))


def test_readers_go_on_after_files_were_merged(store: RegionStore) -> None:
    reader = RegionStore.open(store.path)
    store.finish()
    assert_rows_equal(reader.read(IDS), make_rows(IDS))


def test_many_ids_are_looked_up_in_parts(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenize_anything.data.region_store.IDS_PER_QUERY", 2)
    assert_rows_equal(store.read(IDS[::-1]), make_rows(IDS[::-1]))
    np.testing.assert_array_equal(
        store.contains([3, 4, 5, 6, 700]), [True, False, True, False, True]
    )


def test_other_tools_read_the_store(store: RegionStore) -> None:
    table = lance.dataset(store.path).to_table(columns=["embedding"])
    expected = make_rows(IDS).vectors["embedding"].astype(np.float16)
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), expected)


def test_a_store_knows_its_columns_and_images(store: RegionStore) -> None:
    again = RegionStore.open(store.path, expected=COLUMNS)
    assert (again.columns, len(again)) == (COLUMNS, len(IDS))
    assert again.images() == set(make_rows(IDS).images)


def test_a_pickled_store_opens_the_same_place(store: RegionStore) -> None:
    assert_rows_equal(pickle.loads(pickle.dumps(store)).read(IDS[:2]), make_rows(IDS[:2]))


def test_training_finds_vectors_and_what_has_none(store: RegionStore) -> None:
    present, missing = read_present(StoredVectors(store, "embedding"), [41, 6, 3])
    assert (sorted(present), missing) == ([3, 41], [6])
    expected = make_rows([3]).vectors["embedding"][0].astype(np.float16)
    np.testing.assert_array_equal(present[3], expected)


# --- bad rows -----------------------------------------------------------------------------------

GOOD = make_rows([1, 2])
NAN = np.full((2, TOKEN_DIM), np.nan)
UNIT = GOOD.vectors["embedding"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"region_ids": np.array([1, 1])}, r"region_id: \[1\] more than once"),
        ({"region_ids": np.array([1, 700])}, r"region_id: \[700\] in .*regions.lance already"),
        ({"images": ["a.jpg", ""]}, "image: expected a name for every region"),
        ({"images": ["a.jpg"]}, "image: expected 2 texts, got 1"),
        ({"boxes_xyxy": np.zeros((2, 3))}, r"box_xyxy: expected shape \(2, 4\), got \(2, 3\)"),
        ({"rles": GOOD.rles[:1]}, r"mask_size_hw: expected shape \(2, 2\), got \(1, 2\)"),
        ({"vectors": {"embedding": UNIT}}, "token: expected this column in the rows, got only"),
        ({"vectors": {"embedding": UNIT, "token": NAN}}, "token: expected finite numbers within"),
        ({"vectors": {"embedding": 2 * UNIT, "token": 0 * NAN}}, "embedding: expected vectors of "),
        (
            {"vectors": {"embedding": UNIT * 1e6, "token": NAN}},
            "embedding: expected finite .* float16",
        ),
        (
            {"vectors": {"embedding": UNIT[:, 1:], "token": NAN}},
            r"embedding: expected shape \(2, 37",
        ),
        ({"numbers": {"iou": np.zeros(3)}}, r"iou: expected shape \(2,\), got \(3,\)"),
        ({"numbers": {}}, "iou: expected this column"),
        ({"texts": {"caption": ["one"]}}, "caption: expected 2 texts, got 1"),
    ],
)
def test_bad_rows_are_refused(store: RegionStore, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.append(replace(GOOD, **changes))
    assert len(RegionStore.open(store.path)) == len(IDS)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VectorColumn("v", 0), "v: expected dim of at least 1, got 0"),
        (lambda: VectorColumn("v", 3, "int8"), "v: expected dtype in .*, got 'int8'"),
        (lambda: RegionColumns(" ", ()), "identity: expected text"),
        (
            lambda: RegionColumns("a", (VectorColumn("image", 3),)),
            r"got \['image'\] more than once",
        ),
        (lambda: RegionColumns("a", (), ("x",), ("x",)), r"got \['x'\] more than once"),
        (lambda: COLUMNS.vector("iou"), r"expected one of \['embedding', 'token'\], got 'iou'"),
    ],
)
def test_bad_columns_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- bad places ---------------------------------------------------------------------------------


def test_another_identity_is_refused(store: RegionStore) -> None:
    other = RegionColumns("tower@2", COLUMNS.vectors, COLUMNS.numbers, COLUMNS.texts)
    with pytest.raises(ValueError, match="vectors of 'tower@1', expected 'tower@2', which are not"):
        RegionStore.open_or_create(store.path, other)
    with pytest.raises(ValueError, match=r"holds other columns: expected .*got "):
        RegionStore.open(store.path, expected=RegionColumns("tower@1", COLUMNS.vectors))


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nothing; `tap semantic build`"):
        RegionStore.open(tmp_path / "nothing")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ValueError, match="photos is not one, or its list of files is damaged"):
        RegionStore.open(tmp_path / "photos")
    for make in (RegionStore.create, RegionStore.open_or_create):
        with pytest.raises(
            (FileExistsError, ValueError), match=r"photos (exists already|is not one)"
        ):
            make(tmp_path / "photos", COLUMNS)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    import pyarrow as pa

    lance.write_dataset(pa.table({"a": [1]}), tmp_path / "plain")
    with pytest.raises(ValueError, match="plain is a Lance data set, but no region store"):
        RegionStore.open(tmp_path / "plain")


def test_a_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    schema = COLUMNS.to_schema()
    ((key, content),) = schema.metadata.items()
    later = schema.with_metadata({key: content.replace(b'"version": 1', b'"version": 2')})
    lance.write_dataset(later.empty_table(), tmp_path / "later")
    with pytest.raises(ValueError, match="expected region store version 1, got 2; update"):
        RegionStore.open(tmp_path / "later")
    lance.write_dataset(later.empty_table().select(["image"]), tmp_path / "less")
    lance.write_dataset(
        schema.empty_table().select(["image"]).replace_schema_metadata(schema.metadata),
        tmp_path / "less", mode="overwrite",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"its metadata lists, got \['image'\]; it is damaged"):
        RegionStore.open(tmp_path / "less")


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    empty = RegionStore.create(tmp_path / "empty", COLUMNS)
    with pytest.raises(ValueError, match="empty is empty; no build has added a region"):
        empty.read([1])
    assert (len(empty), list(empty.iterate()), empty.images()) == (0, [], set())
    empty.finish()
    assert len(RegionStore.open_or_create(tmp_path / "empty", COLUMNS)) == 0


def test_missing_ids_and_columns_are_named(store: RegionStore) -> None:
    with pytest.raises(KeyError, match=r"region_ids: \[1, 2, 6\] and 1 more not in"):
        store.read([7, 3, 1, 6, 2])
    with pytest.raises(ValueError, match="got 'tokens'"):
        store.read_vectors([3], "tokens")
    with pytest.raises(ValueError, match="region_ids: expected a list of ids"):
        store.read(np.zeros((2, 2), int))


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_files_are_named(store: RegionStore, damage: str) -> None:
    file = data_files(store)[1]
    content = file.read_bytes()
    file.unlink()
    if damage == "short":
        file.write_bytes(content[: len(content) // 2])
    again = RegionStore.open(store.path)
    with pytest.raises(OSError, match=r"a file of .*regions.lance is damaged or missing"):
        again.read(IDS)
    with pytest.raises(OSError, match=r"a file of .*regions.lance is damaged or missing"):
        list(again.iterate())


# --- kills, full disks, two writers -------------------------------------------------------------


def test_a_killed_writer_leaves_whole_batches(tmp_path: Path) -> None:
    place = tmp_path / "regions.lance"
    command = [sys.executable, "-m", "tests.data.tiny_store", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None
        committed = [writer.stdout.readline() for _ in range(4)]
        writer.kill()
        committed += list(writer.stdout)
    store = RegionStore.open_or_create(place, COLUMNS)
    batches, rest = divmod(len(store), BATCH)
    assert rest == 0
    assert len(committed) <= batches <= len(committed) + 1
    ids = [i for number in range(batches) for i in batch_ids(number)]
    assert [i for part in store.iterate() for i in part.region_ids.tolist()] == ids
    assert_rows_equal(store.read(ids), make_rows(ids))
    store.append(make_rows([5000]))
    store.finish()
    assert verify_store(place).problems == ()


def test_a_store_can_be_made_where_a_writer_was_killed_at_once(tmp_path: Path) -> None:
    place = tmp_path / "regions.lance"
    (place / "data").mkdir(parents=True)
    (place / "data" / "begun.lance").write_bytes(b"half")
    assert len(RegionStore.open_or_create(place, COLUMNS)) == 0


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Any longer file fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_changes_nothing(store: RegionStore) -> None:
    message = r"could not append 2 regions at .* before is unchanged; free space on the disk"
    with pytest.raises(OSError, match=message), files_limited_to(700):
        store.append(make_rows([8, 9]))
    for after in (store, RegionStore.open(store.path)):
        assert len(after) == len(IDS)
        assert_rows_equal(after.read(IDS), make_rows(IDS))
    store.append(make_rows([8, 9]))
    store.finish()
    assert_rows_equal(store.read([9, 40]), make_rows([9, 40]))
    assert verify_store(store.path).problems == ()


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "regions.lance"
    with exclusive_writer(place):
        with pytest.raises(BlockingIOError, match=r"another process is writing to .*; wait until"):
            with exclusive_writer(place):
                pass
    with exclusive_writer(place):
        pass


def read_in_child(store: RegionStore, results: Any) -> None:
    try:
        results.put(str(store.read([3]).region_ids))
    except RuntimeError as error:
        results.put(str(error))


@pytest.mark.filterwarnings("ignore:lance is not fork-safe", "ignore:.*multi-threaded.*fork")
def test_a_forked_reader_is_told_and_does_not_hang(store: RegionStore) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=read_in_child, args=(store, results))
    child.start()
    try:
        assert "forked from one that has used a store, which Lance" in results.get(timeout=100)
    finally:
        child.kill()
        child.join()
