"""`tap search` as a user types it, on real stores and photos and a tiny model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.downstream.search_stores import (
    DIM,
    HEIGHT,
    WIDTH,
    make_store,
    search_plainly,
    token_rows,
)
from tests.test_cli import error_of, make_vocabulary
from tests.test_text_towers import needs_sentence_encoder
from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer
from tests.tiny_predictor import make_photo
from tokenize_anything import TAPPredictor
from tokenize_anything.checkpoints import save_model
from tokenize_anything.cli import main
from tokenize_anything.companions import Companions
from tokenize_anything.contact_sheets import TILE_SIDE
from tokenize_anything.data.region_rows import RegionRows
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.search_index import has_index
from tokenize_anything.downstream.text_queries import embed_phrase
from tokenize_anything.downstream.token_rows import model_identity
from tokenize_anything.text_towers import SentenceTower

pytest.importorskip("lance", reason="needs tokenize-anything[search]")
COUNT = 23
OUTLINE = (255, 196, 44)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors, metadata = Companions(make_vocabulary(dim=DIM), tiny_tokenizer()).pack()
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    model = tiny_tap(tiny_config(semantic_dim=DIM))
    return save_model(model, path, metadata=metadata, extra_tensors=tensors)


@pytest.fixture(scope="module")
def identity(model_file: Path) -> str:
    return model_identity(TAPPredictor.from_pretrained(model_file, device="cpu"))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegionRows]:
    """Regions of photos in the working directory, whose bytes must not change."""
    monkeypatch.chdir(tmp_path)
    rows = token_rows(COUNT)
    hashes: dict[str, str] = {}
    for seed, source in enumerate(sorted(set(rows.images))):
        path = tmp_path / "photos" / source
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_photo(HEIGHT, WIDTH, seed)).save(path)
        hashes[source] = hashlib.sha256(path.read_bytes()).hexdigest()
    texts = {**rows.texts, "source_hash": [hashes[source] for source in rows.images]}
    yield dataclasses.replace(rows, texts=texts)
    for source, digest in hashes.items():
        assert hashlib.sha256((tmp_path / "photos" / source).read_bytes()).hexdigest() == digest


@pytest.fixture
def store(rows: RegionRows, identity: str) -> RegionStore:
    return make_store(Path("tokens.lance"), rows, identity=identity)


def query_of(rows: RegionRows, region_id: int) -> np.ndarray:
    place = rows.region_ids.tolist().index(region_id)
    return rows.vectors["semantic_embedding"][place].astype(np.float32)


def read_hits(path: str = "hits.json") -> Any:
    return json.loads(Path(path).read_text())


# --- what is found ------------------------------------------------------------------------------


def test_like_prints_a_line_for_each_hit_and_writes_json(
    store: RegionStore, rows: RegionRows, capsys: Any
) -> None:
    assert (
        main(["search", "tokens.lance", "--like", "31", "--top", "4", "--json", "hits.json"]) == 0
    )
    keep = rows.region_ids != 31
    ids, cosines = search_plainly(rows, query_of(rows, 31), 4, keep)
    hits = read_hits()
    assert [hit["region_id"] for hit in hits] == ids
    assert [hit["similarity"] for hit in hits] == pytest.approx(cosines, abs=2e-6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["#", "cosine", "region", "concept", "photo", "box", "caption"]
    assert lines[5:] == ["wrote hits.json"]
    for number, (line, hit) in enumerate(zip(lines[1:5], hits, strict=True), start=1):
        box = ",".join(f"{edge:g}" for edge in hit["box_xyxy"])
        words = [str(number), f"{hit['similarity']:.3f}", str(hit["region_id"])]
        words += [hit["concept"] or "-", hit["source"], box, *(hit["caption"] or "-").split()]
        assert line.split() == words


@pytest.mark.parametrize("prompt", [["--box", "-3,2.5,30,39"], ["--point", "30,20"]])
def test_a_region_of_a_photo(
    store: RegionStore, rows: RegionRows, model_file: Path, prompt: list[str]
) -> None:
    photo = "photos/cats/photo_1.png"
    words = ["--image", photo, *prompt, "--model", str(model_file), "--json", "hits.json"]
    assert main(["search", "tokens.lance", *words, "--filter", "area=0.05..", "--top", "5"]) == 0
    predictor = TAPPredictor.from_pretrained(model_file, device="cpu")
    numbers = [float(number) for number in prompt[1].split(",")]
    given: Any = {"boxes": [numbers]} if len(numbers) == 4 else {"points": [numbers]}
    regions = predictor.predict_mask_concept_caption(photo, **given)
    boxes = rows.boxes_xyxy
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (HEIGHT * WIDTH)
    ids, cosines = search_plainly(rows, regions.semantic_embeddings[0], 5, areas >= 0.05)
    assert [hit["region_id"] for hit in read_hits()] == ids
    assert [hit["similarity"] for hit in read_hits()] == pytest.approx(cosines, abs=1e-5)


@needs_sentence_encoder
def test_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = token_rows(9, dim=384)
    make_store(Path("s.lance"), rows, identity="tap@1 in all-MiniLM-L6-v2", dim=384)
    assert main(["search", "s.lance", "red mug", "--json", "hits.json", "--top", "4"]) == 0
    ids, cosines = search_plainly(rows, embed_phrase("a red mug", SentenceTower()), 4)
    assert [hit["region_id"] for hit in read_hits()] == ids
    assert [hit["similarity"] for hit in read_hits()] == pytest.approx(cosines, abs=2e-6)


def test_an_index_is_built_and_passed_by_when_asked(store: RegionStore, capsys: Any) -> None:
    assert main(["search", "tokens.lance", "--build-index"]) == 0
    assert capsys.readouterr().out == f"tokens.lance: indexed {COUNT} regions\n"
    assert has_index(RegionStore.open("tokens.lance"))
    assert main(["search", "tokens.lance", "--like", "10", "--json", "a.json"]) == 0
    assert main(["search", "tokens.lance", "--like", "10", "--json", "b.json", "--exact"]) == 0
    assert [h["region_id"] for h in read_hits("a.json")] == [
        h["region_id"] for h in read_hits("b.json")
    ]


def test_no_region_passes(store: RegionStore, capsys: Any) -> None:
    words = ["--like", "10", "--filter", "concept=fork", "--save", "s.png", "--json", "hits.json"]
    assert main(["search", "tokens.lance", *words]) == 0
    assert capsys.readouterr().out == "no region passes the filters\nwrote hits.json\n"
    assert read_hits() == []
    assert not Path("s.png").exists()


# --- the contact sheet --------------------------------------------------------------------------


def save_sheet(*words: str) -> np.ndarray:
    command = ["search", "tokens.lance", "--like", "10", "--top", "6", "--save", "sheet.png"]
    assert main([*command, "--json", "hits.json", *words]) == 0
    return np.asarray(Image.open("sheet.png"))


def tile_of(sheet: np.ndarray, number: int) -> np.ndarray:
    """The picture of a tile; six tiles are two rows of at most four."""
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 4
    top, left = number // 4 * height, number % 4 * width
    return sheet[top : top + TILE_SIDE, left : left + TILE_SIDE]


def count_outline(tile: np.ndarray) -> int:
    return int((tile == OUTLINE).all(axis=2).sum())


def test_the_contact_sheet_outlines_every_hit(store: RegionStore) -> None:
    sheet = save_sheet("--photos", "photos")
    assert sheet.shape[1] > 4 * TILE_SIDE and sheet.shape[0] > 2 * TILE_SIDE
    for number in range(6):
        assert count_outline(tile_of(sheet, number)) > 100
    assert (tile_of(sheet, 6) == 255).all()  # nothing there


def test_a_photo_that_is_gone_or_another_one_is_not_shown(store: RegionStore) -> None:
    save_sheet("--photos", "photos")
    sources = [hit["source"] for hit in read_hits()]
    gone, changed = dict.fromkeys(sources).keys() - {sources[0]}, sources[0]
    kept = {name: Path("photos", name).read_bytes() for name in sources}
    other = next(iter(gone))
    Path("photos", other).unlink()
    Image.fromarray(make_photo(HEIGHT, WIDTH, 99)).save(Path("photos", changed))
    sheet = save_sheet("--photos", "photos")
    for number, source in enumerate(sources):
        is_shown = count_outline(tile_of(sheet, number)) > 100
        assert is_shown is (source not in (changed, other))
        if not is_shown:
            assert len(np.unique(tile_of(sheet, number)[: TILE_SIDE // 2])) == 1
    for name, content in kept.items():
        Path("photos", name).write_bytes(content)


def test_no_photo_at_all(store: RegionStore, capsys: Any) -> None:
    assert main(["search", "tokens.lance", "--like", "10", "--save", "s.png"]) == 2
    assert "photos: none of the " in error_of(capsys)
    assert not Path("s.png").exists()


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "query: expected one of a TEXT, --image PHOTO with --box, --point or --sketch, and "),
        (["mug", "--like", "10"], "got 2 of them"),
        (["--like", "11"], "region_id: expected the id of a region of tokens.lance, got 11"),
        (["--like", "10", "--filter", "colour=red"], "NAME in area, concept, source, got 'colour="),
        (["--like", "10", "--top", "0"], "argument --top: expected a whole number from 1, got '0'"),
        (["--like", "10", "--save", "s.gif"], "--save: expected a name ending in .png, .jpg"),
        (["--like", "10", "--box", "1,2,3,4"], "--image: --box, --point and --sketch are on a ph"),
        (["--image", "photos/cats/photo_1.png"], "no prompt: say where to look with --point X,Y"),
        (["--image", "none.png", "--point", "1,1"], "--image: no file at 'none.png'"),
        ([" "], "query: expected words"),
        (["mug"], "query: the text space of this store's model (tap@"),
        (["--image", "photos/cats/photo_1.png", "--point", "9,9", "--point", "20,20"],
         "prompts: expected one region to search for, got 2"),
    ],
)  # fmt: skip
def test_errors(
    store: RegionStore, model_file: Path, capsys: Any, words: list[str], message: str
) -> None:
    assert main(["search", "tokens.lance", *words, "--model", str(model_file)]) == 2
    assert message in error_of(capsys)


def test_a_store_of_another_model(rows: RegionRows, model_file: Path, capsys: Any) -> None:
    make_store(Path("other.lance"), rows, identity="tap@0123456789abcdef")
    words = ["--image", "photos/cats/photo_1.png", "--point", "9,9", "--model", str(model_file)]
    assert main(["search", "other.lance", *words]) == 2
    message = "predictor: expected the model that made other.lance, tap@0123456789abcdef, got tap@"
    assert message in error_of(capsys)


def test_no_store(tmp_path: Path, capsys: Any) -> None:
    assert main(["search", str(tmp_path / "none.lance"), "mug"]) == 2
    assert "region store: no folder at" in error_of(capsys)
