"""RegionSearch: every kind of query against a plain search, exact and by the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.downstream.search_stores import (
    DIM,
    HEIGHT,
    SPACE,
    WIDTH,
    make_store,
    search_plainly,
    take,
    token_rows,
)
from tests.test_text_towers import HashTower
from tests.tiny_predictor import make_photo, tiny_predictor
from tests.training.tiny_runs import embed_by_hash
from tokenize_anything import PointPrompts
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.region_filters import RegionFilter
from tokenize_anything.downstream.region_search import RegionHits, RegionSearch
from tokenize_anything.downstream.search_index import build_index, has_index
from tokenize_anything.downstream.text_queries import NEUTRAL_TEXTS, embed_phrase, phrase_query
from tokenize_anything.downstream.token_rows import model_identity

lance = pytest.importorskip("lance", reason="needs tokenize-anything[search]")
COUNT, K = 61, 7
ROWS = token_rows(COUNT)


class Tower(HashTower):
    """Of the width of these stores."""

    identity = SPACE

    def embed_texts(self, texts: Any) -> Any:
        return embed_by_hash(texts, DIM)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    return make_store(tmp_path_factory.mktemp("search") / "tokens.lance", ROWS)


def random_vector(seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=DIM).astype(np.float32)


def assert_hits(hits: RegionHits, wanted: tuple[Any, Any]) -> None:
    assert hits.rows.region_ids.tolist() == wanted[0]
    np.testing.assert_allclose(hits.similarities, wanted[1], atol=2e-6)


# --- what is found ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, K, COUNT, COUNT + 30])
def test_a_vector_finds_the_largest_cosines_first(store: RegionStore, k: int) -> None:
    query = random_vector()
    hits = RegionSearch(store).by_vector(query, k)
    assert_hits(hits, search_plainly(ROWS, query, k))
    assert len(hits) == min(k, COUNT)
    again = RegionSearch(store).by_vector(1000 * query, k)
    assert_hits(again, search_plainly(ROWS, query, k))


def test_hits_are_the_rows_of_the_store(store: RegionStore) -> None:
    hits = RegionSearch(store).by_vector(random_vector(), K)
    for row, region_id in enumerate(hits.rows.region_ids.tolist()):
        place = ROWS.region_ids.tolist().index(region_id)
        assert hits.rows.images[row] == ROWS.images[place]
        assert hits.rows.rles[row] == ROWS.rles[place]
        np.testing.assert_array_equal(hits.rows.boxes_xyxy[row], ROWS.boxes_xyxy[place])
        for name, texts in ROWS.texts.items():
            assert hits.rows.texts[name][row] == texts[place]
        for name, vectors in ROWS.vectors.items():
            np.testing.assert_allclose(hits.rows.vectors[name][row], vectors[place], rtol=1e-6)


def test_json_of_hits_has_everything_but_vectors(store: RegionStore) -> None:
    hits = RegionSearch(store).by_vector(random_vector(), 3)
    written = json.loads(hits.to_json())
    assert [hit["region_id"] for hit in written] == hits.rows.region_ids.tolist()
    assert written[1]["box_xyxy"] == hits.rows.boxes_xyxy[1].tolist()
    assert written[1]["segmentation"] == hits.rows.rles[1]
    assert written[2]["similarity"] == pytest.approx(float(hits.similarities[2]), abs=1e-6)
    assert set(written[0]) == {
        "region_id", "similarity", "image", "box_xyxy", "segmentation", "iou_score",
        "concept_score", "caption_score", "concept", "caption", "source", "source_hash",
    }  # fmt: skip


def test_like_finds_what_is_like_a_region_but_not_itself(store: RegionStore) -> None:
    place = 17
    query = ROWS.vectors["semantic_embedding"][place].astype(np.float32)
    wanted = search_plainly(ROWS, query, K, keep=np.arange(COUNT) != place)
    assert_hits(RegionSearch(store).like(int(ROWS.region_ids[place]), K), wanted)
    where = RegionFilter(concept="spoon")
    keep = [name == "Spoon" and row != place for row, name in enumerate(ROWS.texts["concept"])]
    assert_hits(
        RegionSearch(store).like(int(ROWS.region_ids[place]), K, where=where),
        search_plainly(ROWS, query, K, keep),
    )


@pytest.mark.parametrize(
    "text, phrase",
    [
        ("mug", "a mug"),
        ("red  mug\n", "a red mug"),
        ("a red mug", "a red mug"),
        ("An apple", "An apple"),
        ("the sea", "the sea"),
        ("antenna", "a antenna"),  # the template of the vocabularies knows no "an"
        ("anchor chain", "a anchor chain"),
    ],
)
def test_texts_are_put_as_the_model_learnt_them(text: str, phrase: str) -> None:
    assert phrase_query(text) == phrase


def test_a_text_is_compared_less_what_all_texts_share(store: RegionStore) -> None:
    texts = embed_by_hash(["a red mug", *NEUTRAL_TEXTS], DIM).numpy()
    query = texts[0] - (texts[1] + texts[2] + texts[3] + texts[4]) / 4
    np.testing.assert_allclose(embed_phrase("a red mug", Tower()), query, atol=1e-6)
    hits = RegionSearch(store, text_tower=Tower()).by_text(" red mug ", K)
    assert_hits(hits, search_plainly(ROWS, query, K))


def test_a_region_of_a_photo_is_embedded_by_the_stores_model(tmp_path: Path) -> None:
    predictor = tiny_predictor(semantic_dim=DIM)
    store = make_store(tmp_path / "s.lance", ROWS, identity=model_identity(predictor))
    photo, prompts = make_photo(HEIGHT, WIDTH), PointPrompts.from_boxes([[5, 3, 40, 30]])
    query = predictor.predict_mask_concept_caption(photo, prompts=prompts).semantic_embeddings[0]
    search = RegionSearch(store, predictor=predictor)
    assert_hits(search.by_region(photo, prompts, K), search_plainly(ROWS, query, K))


# --- filters ------------------------------------------------------------------------------------

AREAS = np.prod(ROWS.boxes_xyxy[:, 2:] - ROWS.boxes_xyxy[:, :2], axis=1) / (HEIGHT * WIDTH)
SOURCES, NAMES = np.array(ROWS.texts["source"]), np.array(ROWS.texts["concept"])


@pytest.mark.parametrize(
    "texts, keep",
    [
        (["area=0.1.."], AREAS >= 0.1),
        (["area=..0.25"], AREAS <= 0.25),
        (["area= 0.05 .. 0.2 "], (AREAS >= 0.05) & (AREAS <= 0.2)),
        (["concept=CUP"], NAMES == "cup"),
        (["concept=it's"], NAMES == "it's"),
        (["source=cats/*"], [s.startswith("cats/") for s in SOURCES]),
        (["source=*photo_?.png"], [True] * COUNT),
        (["source=photo_1.png"], [False] * COUNT),
        (["source=a+b/photo_0.png"], SOURCES == "a+b/photo_0.png"),
        (["source=*_[12].png"], [False] * COUNT),  # brackets mean themselves
        (["concept=spoon", "area=0.1..", "source=a*"],
         (NAMES == "Spoon") & (AREAS >= 0.1) & (SOURCES.astype("U1") == "a")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["exact", "approximate"])
def test_filters_leave_what_they_say(
    indexed: RegionStore, texts: Any, keep: Any, mode: Any
) -> None:
    query = random_vector(11)
    where = RegionFilter.parse(texts)
    hits = RegionSearch(indexed, mode=mode).by_vector(query, COUNT, where=where)
    assert_hits(hits, search_plainly(ROWS, query, COUNT, keep))


# --- the index ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    return build_index(make_store(tmp_path_factory.mktemp("indexed") / "tokens.lance", ROWS))


def test_an_index_changes_how_but_not_what_is_found(indexed: RegionStore) -> None:
    assert has_index(indexed)
    query = random_vector(5)
    for mode in ("auto", "approximate", "exact"):
        hits = RegionSearch(indexed, mode=mode).by_vector(query, K)
        assert_hits(hits, search_plainly(ROWS, query, K))
    plan = indexed.dataset.scanner(nearest=_nearest(query)).explain_plan()
    assert "ANN" in plan  # and so it is the index that answers


def _nearest(query: np.ndarray) -> dict[str, Any]:
    return {"column": "semantic_embedding", "q": query, "k": K, "metric": "cosine"}


def test_codes_in_the_place_of_vectors_lose_nearly_nothing(tmp_path: Path) -> None:
    rows = token_rows(5003)
    store = build_index(make_store(tmp_path / "s.lance", rows))
    recalls = []
    for seed in range(8):
        wanted, _ = search_plainly(rows, random_vector(seed), K)
        found = RegionSearch(store).by_vector(random_vector(seed), K)
        recalls.append(np.isin(wanted, found.rows.region_ids).mean())
    assert np.mean(recalls) > 0.95


@pytest.mark.parametrize("dim", [29, 40])
def test_any_width_can_be_indexed(tmp_path: Path, dim: int) -> None:
    rows = token_rows(COUNT, dim)
    store = build_index(make_store(tmp_path / "s.lance", rows, dim=dim))
    query = np.random.default_rng(1).normal(size=dim).astype(np.float32)
    search = RegionSearch(store, mode="approximate")
    assert_hits(search.by_vector(query, K), search_plainly(rows, query, K))


def test_what_is_added_after_the_index_is_found(tmp_path: Path) -> None:
    rows = token_rows(COUNT)
    store = build_index(make_store(tmp_path / "s.lance", take(rows, slice(0, 40))))
    store.append(take(rows, slice(40, None)))
    query = random_vector(2)
    wanted = search_plainly(rows, query, K)
    assert_hits(RegionSearch(store, mode="approximate").by_vector(query, K), wanted)
    store.finish()
    assert has_index(store)
    assert_hits(RegionSearch(store, mode="approximate").by_vector(query, K), wanted)


def test_a_store_that_changes_meanwhile_is_still_searched(tmp_path: Path) -> None:
    rows = token_rows(COUNT)
    search = RegionSearch(make_store(tmp_path / "s.lance", rows))
    RegionStore.open(tmp_path / "s.lance").finish()  # merges files and removes the old ones
    query = random_vector(4)
    assert_hits(search.by_vector(query, K), search_plainly(rows, query, K))
