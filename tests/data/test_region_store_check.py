"""verify_store: every kind of damage is found and named; a sound store passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.tiny_store import COLUMNS, make_rows
from tokenize_anything.data.region_rows import rows_to_table
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.data.region_store_check import verify_store

lance = pytest.importorskip("lance", reason="needs tokenize-anything[search]")
IDS = [40, 3, 700, 41, 5]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    store = RegionStore.create(tmp_path / "regions.lance", COLUMNS)
    store.append(make_rows(IDS[:3]))
    store.append(make_rows(IDS[3:]))
    return tmp_path / "regions.lance"


def fragment_files(place: Path) -> list[Path]:
    fragments = lance.dataset(place).get_fragments()
    return [place / "data" / file.path for f in fragments for file in f.metadata.files]


def test_a_sound_store_has_no_problems(place: Path) -> None:
    report = verify_store(place)
    assert (report.problems, report.columns) == ((), COLUMNS)
    assert (report.num_regions, report.num_images) == (5, 3)


@pytest.mark.parametrize("name", ["embedding", "token", "box_xyxy"])
@pytest.mark.parametrize("bit", [0, 6])
def test_one_flipped_bit_is_found(place: Path, name: str, bit: int) -> None:
    rows = make_rows(IDS)
    values = {"embedding": rows.vectors["embedding"].astype(np.float16),
              "token": rows.vectors["token"].astype(np.float32),
              "box_xyxy": rows.boxes_xyxy}[name]  # fmt: skip
    stored = values[1].tobytes()
    file = fragment_files(place)[0]
    content = bytearray(file.read_bytes())
    assert content.count(stored) == 1
    content[content.find(stored) + 2] ^= 1 << bit
    file.write_bytes(content)
    problems = verify_store(place).problems
    assert "region [3]: wrong check sum" in problems
    assert all(problem.startswith("region [3]") for problem in problems)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"image": "'other.jpg'"}, "region [41]: wrong check sum"),
        ({"mask_counts": "'0'"}, "region [41]: wrong check sum"),
        ({"caption": "'another'"}, "region [41]: wrong check sum"),
        ({"iou": "CAST(0.5 AS FLOAT)"}, "region [41]: wrong check sum"),
        ({"region_id": "42"}, "region [42]: wrong check sum"),
        ({"region_id": "700"}, "region [700]: id more than once"),
    ],
)
def test_changed_values_are_found(place: Path, change: dict[str, str], problem: str) -> None:
    lance.dataset(place).update(change, where="region_id = 41")
    assert problem in verify_store(place).problems


def test_an_id_twice_is_found(place: Path) -> None:
    lance.write_dataset(rows_to_table(make_rows([700, 3]), COLUMNS), place, mode="append")
    assert verify_store(place).problems == ("region [3, 700]: id more than once",)


def test_bad_vectors_and_boxes_are_found_under_a_right_check_sum(place: Path) -> None:
    rows = make_rows([7])
    rows.boxes_xyxy[0, 2] = 24  # the image is 23 wide
    lance.write_dataset(rows_to_table(rows, COLUMNS), place, mode="append")
    assert verify_store(place).problems == ("region [7]: box outside its image",)


@pytest.mark.parametrize("damage", ["missing", "short", "noise"])
def test_a_damaged_fragment_is_named_and_the_others_are_read(place: Path, damage: str) -> None:
    file = fragment_files(place)[0]
    content = file.read_bytes()
    file.unlink()
    if damage == "short":
        file.write_bytes(content[:-100])
    elif damage == "noise":
        file.write_bytes(np.random.default_rng(0).bytes(len(content)))
    report = verify_store(place)
    (problem,) = report.problems
    assert problem.startswith(f"fragment 0 ({file.name}): 3 of 3 regions cannot be read (")
    assert report.num_regions == 2


def test_no_flipped_bit_raises_or_hides(place: Path) -> None:
    """Damage anywhere in a file is a problem or changes nothing that is read."""
    file = fragment_files(place)[0]
    content = file.read_bytes()
    rng = np.random.default_rng(1)
    num_found = 0
    for position in rng.integers(0, len(content), 40).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        if not verify_store(place).problems:
            rows = RegionStore.open(place).read(IDS)
            expected = make_rows(IDS).vectors["embedding"].astype(np.float16)
            np.testing.assert_array_equal(rows.vectors["embedding"], expected)
        else:
            num_found += 1
    assert num_found >= 3


def test_an_empty_store_is_a_problem(tmp_path: Path) -> None:
    RegionStore.create(tmp_path / "empty", COLUMNS)
    report = verify_store(tmp_path / "empty")
    assert report.problems == ("the store is empty: no build has added a region",)


def test_many_problems_are_cut_short(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenize_anything.data.region_store_check._ROWS_AT_ONCE", 1)
    lance.dataset(place).update({"image": "'x'"}, where="true")
    monkeypatch.setattr("tokenize_anything.data.region_store_check.MAX_PROBLEMS", 3)
    problems = verify_store(place).problems
    assert len(problems) == 3
    assert problems[-1] == "and 3 more"
