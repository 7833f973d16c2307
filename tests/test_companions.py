"""Vocabulary and text tokenizer find their model: inside its file, beside it, by name or given."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import TINY_TEXTS, tiny_config, tiny_tap, tiny_tokenizer, tiny_tokenizer_model
from tokenize_anything import ConceptVocabulary, TextTokenizer
from tokenize_anything.checkpoints import read_header, save_model
from tokenize_anything.companions import (
    CONCEPT_NAMES,
    CONCEPT_WEIGHTS,
    Companions,
    check_companions,
    check_tokenizer_source,
    find_companions,
    pick_concepts,
    read_concepts,
)
from tokenize_anything.hub import TEXT_TOKENIZER_VARIABLE
from tokenize_anything.modeling import TAP
from tokenize_anything.published_format import save_published_checkpoint

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("cup", "spoon", "café au lait")
DIM = tiny_config().semantic_dim
PIECES = tiny_config().vocabulary_size


def make_vocabulary(names: tuple[str, ...] = NAMES, dim: int = DIM) -> ConceptVocabulary:
    generator = torch.Generator().manual_seed(len(names))
    return ConceptVocabulary(names, torch.randn(dim, len(names), generator=generator))


@pytest.fixture(scope="module")
def model() -> TAP:
    return tiny_tap(tiny_config(max_text_length=40))


@pytest.fixture(scope="module")
def other_tokenizer_model() -> bytes:
    return TextTokenizer.train(TINY_TEXTS, PIECES - 4)


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TEXT_TOKENIZER_VARIABLE, raising=False)


def save(model: TAP, path: Path, companions: Companions) -> Path:
    tensors, metadata = companions.pack()
    return save_model(model, path, dtype="float16", metadata=metadata, extra_tensors=tensors)


def find(path: Path, text_tokenizer: Any = None, **options: Any) -> Companions:
    return find_companions(path, path, text_tokenizer, PIECES, **options)


# --- inside and beside --------------------------------------------------------------------------


@pytest.mark.parametrize("has_concepts", [True, False])
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_a_native_file_brings_what_was_packed(
    model: TAP, tmp_path: Path, has_concepts: bool, has_tokenizer: bool
) -> None:
    vocabulary = make_vocabulary()
    packed = Companions(
        vocabulary if has_concepts else None, tiny_tokenizer() if has_tokenizer else None
    )
    found = find(save(model, tmp_path / "a.safetensors", packed))
    assert found.text_tokenizer == packed.text_tokenizer
    if not has_concepts:
        assert found.concepts is None
        return
    assert found.concepts is not None
    assert found.concepts.names == NAMES
    # float32 in a file of float16 weights
    np.testing.assert_array_equal(found.concepts.weights, vocabulary.weights)


def test_concepts_can_be_left_out(model: TAP, tmp_path: Path) -> None:
    path = save(model, tmp_path / "a.safetensors", Companions(make_vocabulary(), tiny_tokenizer()))
    found = find(path, with_concepts=False)
    assert (found.concepts, found.text_tokenizer) == (None, tiny_tokenizer())


def test_a_tokenizer_beside_a_published_file(model: TAP, tmp_path: Path) -> None:
    path = save_published_checkpoint(model, tmp_path / "a.pkl")
    assert find(path) == Companions(None, None)
    (tmp_path / "tokenizer.model").write_bytes(tiny_tokenizer_model())
    assert find(path) == Companions(None, tiny_tokenizer())


def test_a_named_tokenizer_goes_before_the_files_own(model: TAP, tmp_path: Path) -> None:
    texts = [text[::-1] for text in TINY_TEXTS]
    other = TextTokenizer(TextTokenizer.train(texts, PIECES))
    assert other.vocabulary_size == PIECES
    assert other != tiny_tokenizer()
    named = tmp_path / "wörter.model"
    named.write_bytes(other.to_bytes())
    path = save(model, tmp_path / "a.safetensors", Companions(None, tiny_tokenizer()))
    assert find(path).text_tokenizer == tiny_tokenizer()
    assert find(path, named).text_tokenizer == other
    assert find(path, str(named)).text_tokenizer == other


def test_the_environment_fills_in_only_where_a_tokenizer_is_missing(
    model: TAP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_tokenizer_model: bytes
) -> None:
    bare = save(model, tmp_path / "bare.safetensors", Companions())
    full = save(model, tmp_path / "full.safetensors", Companions(None, tiny_tokenizer()))
    named = tmp_path / "named.model"
    monkeypatch.setenv(TEXT_TOKENIZER_VARIABLE, str(named))
    assert find(full).text_tokenizer == tiny_tokenizer()
    with pytest.raises(FileNotFoundError, match=rf"{TEXT_TOKENIZER_VARIABLE}: .* is no file"):
        find(bare)
    named.write_bytes(tiny_tokenizer_model())
    assert find(bare).text_tokenizer == tiny_tokenizer()
    named.write_bytes(other_tokenizer_model)
    with pytest.raises(ValueError, match=rf"expected the {PIECES} pieces .* got {PIECES - 4}"):
        find(bare)


def test_named_tokenizers_that_cannot_be(
    model: TAP, tmp_path: Path, other_tokenizer_model: bytes
) -> None:
    path = save(model, tmp_path / "a.safetensors", Companions(None, tiny_tokenizer()))
    with pytest.raises(FileNotFoundError, match=r"text_tokenizer: .*absent.model is no file"):
        find(path, tmp_path / "absent.model")
    (tmp_path / "other.model").write_bytes(other_tokenizer_model)
    with pytest.raises(ValueError, match=rf"other.model: expected the {PIECES} pieces of the mod"):
        find(path, tmp_path / "other.model")
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(ValueError, match=r"text.model: expected a SentencePiece model, got 8 byt"):
        find(path, tmp_path / "text.model")


@pytest.mark.parametrize(
    ("names", "weights", "words"),
    [
        ("cup, spoon", torch.zeros(DIM, 2), r"a.safetensors: damaged concept vocabulary .*Expect"),
        ('["a", "b", "c"]', torch.zeros(DIM, 2), r"a.safetensors: damaged concept vocabulary .*K"),
        ('["a", 3]', torch.zeros(DIM, 2), r"a.safetensors: damaged concept vocabulary .*strings"),
    ],
)
def test_a_damaged_vocabulary_in_the_file(
    model: TAP, tmp_path: Path, names: str, weights: torch.Tensor, words: str
) -> None:
    path = save_model(
        model,
        tmp_path / "a.safetensors",
        metadata={CONCEPT_NAMES: names},
        extra_tensors={CONCEPT_WEIGHTS: weights},
    )
    with pytest.raises(ValueError, match=words):
        find(path)


def test_a_damaged_tokenizer_in_the_file(model: TAP, tmp_path: Path) -> None:
    tensors = {"text_tokenizer": torch.arange(9, dtype=torch.uint8)}
    path = save_model(model, tmp_path / "a.safetensors", extra_tensors=tensors)
    with pytest.raises(
        ValueError, match=r"a.safetensors: text tokenizer in the file: expected a S"
    ):
        find(path)
    assert read_header(path).config == model.config  # the weights themselves are fine


# --- what a caller asks for ---------------------------------------------------------------------


def test_concepts_as_vocabulary_file_or_names(tmp_path: Path) -> None:
    vocabulary = make_vocabulary()
    path = tmp_path / "concepts.safetensors"
    vocabulary.save(path)
    assert read_concepts(vocabulary) is vocabulary
    for kind in (str, Path):
        loaded = read_concepts(kind(path))
        assert loaded is not None
        assert loaded.names == NAMES
    for own in (None, ["cup"], ("spoon", "cup"), []):
        assert read_concepts(own) is None


def test_names_are_picked_from_the_models_own() -> None:
    own = make_vocabulary()
    assert pick_concepts(None, own) is own
    assert pick_concepts(None, None) is None
    picked = pick_concepts(("café au lait", "cup"), own)
    assert picked is not None
    assert picked.names == ("café au lait", "cup")
    np.testing.assert_array_equal(picked.weights, own.weights[:, [2, 0]])


@pytest.mark.parametrize(
    ("names", "own", "words"),
    [
        (["cup"], None, r"no vocabulary to pick names from, .*; pass a concept file made with"),
        (["cup", "fork"], make_vocabulary(), r"\['fork'\] not among the 3 names"),
        ([], make_vocabulary(), r"names: expected at least one concept, got none"),
        (["cup", "cup"], make_vocabulary(), r"different names, got \['cup'\] more than once"),
    ],
)
def test_names_that_cannot_be_picked(names: list[Any], own: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pick_concepts(names, own)


def test_names_are_texts() -> None:
    with pytest.raises(TypeError, match=r"names: expected a sequence of strings, got \[5\]"):
        pick_concepts([5], make_vocabulary())  # type: ignore[list-item]


@pytest.mark.parametrize("concepts", [5, {"cup"}, b"cup", torch.zeros(2)])
def test_concepts_of_another_kind(concepts: Any) -> None:
    with pytest.raises(TypeError, match=r"concepts: expected a file, a ConceptVocabulary or a lis"):
        read_concepts(concepts)


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        (None, nullcontext()),
        ("a.model", nullcontext()),
        (Path("a.model"), nullcontext()),
        (b"a.model", pytest.raises(TypeError, match=r"text_tokenizer: expected the path .* bytes")),
        (tiny_tokenizer(), pytest.raises(TypeError, match=r"got TextTokenizer; TAPPredictor\(mod")),
    ],
)
def test_a_tokenizer_is_named_by_its_path(source: Any, outcome: Any) -> None:
    with outcome:
        check_tokenizer_source(source)


def test_parts_may_be_left_out() -> None:
    check_companions(tiny_config(), None, None)
    check_companions(tiny_config(), make_vocabulary(), tiny_tokenizer())


@pytest.mark.parametrize(
    ("concepts", "tokenizer", "kind", "words"),
    [
        (make_vocabulary(dim=31), None, ValueError, rf"concepts: expected weights of {DIM} rows"),
        (make_vocabulary(dim=31), None, ValueError, r"got 31; use the vocabulary made for it"),
        ("a.pkl", None, TypeError, r"concepts: expected a ConceptVocabulary, got str; Concept"),
        (None, "a.model", TypeError, r"text_tokenizer: expected a TextTokenizer, got str; TextTok"),
    ],
)
def test_parts_must_fit_the_model(concepts: Any, tokenizer: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        check_companions(tiny_config(), concepts, tokenizer)


def test_a_tokenizer_of_another_size(other_tokenizer_model: bytes) -> None:
    other = TextTokenizer(other_tokenizer_model)
    with pytest.raises(
        ValueError, match=rf"text_tokenizer: expected {PIECES} pieces.* {PIECES - 4}"
    ):
        check_companions(tiny_config(), None, other)


# --- published names, from the cache of the hub -------------------------------------------------

BY_NAME = """
import json, warnings
import numpy as np
from tokenize_anything import TAPPredictor
warnings.simplefilter("ignore")
photo = np.full((19, 31, 3), 99, np.uint8)
found = {}
for concepts in (None, "coco_80", "lvis_1203", ["table"]):
    try:
        predictor = TAPPredictor.from_pretrained("tap_vit_b", concepts=concepts, device="cpu")
        regions = predictor.predict_mask_concept_caption(photo, points=[[7, 5]], top_k=9)
        found[str(concepts)] = [sorted(regions.concepts[0]), regions.captions]
    except FileNotFoundError as error:
        found[str(concepts)] = str(error)
print(json.dumps(found))
"""


def fill_hub_cache(home: Path, model: TAP) -> None:
    """Lay out the folders of huggingface_hub as after a download of some files."""
    repository = home / "hub" / "models--BAAI--tokenize-anything"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "refs", snapshot / "models", snapshot / "concepts"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    save_published_checkpoint(model, snapshot / "models" / "tap_vit_b_v1_1.pkl")
    for name, names in (("merged_2560", ("chair", "table")), ("coco_80", NAMES)):
        content = [make_vocabulary(names).weights.numpy(), list(names)]
        (snapshot / "concepts" / f"{name}.pkl").write_bytes(pickle.dumps(content))


def test_published_names_offline(model: TAP, tmp_path: Path) -> None:
    fill_hub_cache(tmp_path, model)
    (tmp_path / "llama.model").write_bytes(tiny_tokenizer_model())
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        TEXT_TOKENIZER_VARIABLE: str(tmp_path / "llama.model"),
    }
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", BY_NAME],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["None"][0] == ["chair", "table"]
    assert found["coco_80"][0] == sorted(NAMES)
    assert found["['table']"][0] == ["table"]
    assert isinstance(found["None"][1][0], str)
    assert found["None"][1] == found["coco_80"][1] == found["['table']"][1]
    assert "concepts/lvis_1203.pkl" in found["lvis_1203"]
    assert "Unset HF_HUB_OFFLINE" in found["lvis_1203"]
