"""Concept vocabularies: the maths against plain NumPy, the rules of names and weights, files."""

from __future__ import annotations

import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tokenize_anything import ConceptVocabulary
from tokenize_anything.concepts import check_top_k

DIM, NAMES = 7, ("cat", "dog", "traffic light", "café", "日本")
COUNT = len(NAMES)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def vocabulary() -> ConceptVocabulary:
    return ConceptVocabulary(NAMES, 3.0 * draw(DIM, COUNT))


def plain_probabilities(weights: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """softmax(embedding / |embedding| @ weights) in float64, (R,K)."""
    unit = embeddings / np.sqrt((embeddings**2).sum(axis=1, keepdims=True))
    values = np.exp(unit @ weights)
    return values / values.sum(axis=1, keepdims=True)


# --- scores -------------------------------------------------------------------------------------


def test_log_probs_are_the_softmax_of_directions(vocabulary: ConceptVocabulary) -> None:
    embeddings = draw(3, DIM, seed=1)
    wanted = plain_probabilities(vocabulary.weights.double().numpy(), embeddings.double().numpy())
    found = vocabulary.log_probs(embeddings)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, np.log(wanted), atol=1e-5)
    np.testing.assert_allclose(vocabulary.log_probs(5.5 * embeddings), found, atol=1e-5)
    stack = vocabulary.log_probs(embeddings.expand(2, 3, DIM))
    np.testing.assert_allclose(stack, found.expand(2, 3, COUNT), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_computed_in_float32(
    vocabulary: ConceptVocabulary, dtype: torch.dtype
) -> None:
    embeddings = draw(3, DIM, seed=1).to(dtype)
    found = vocabulary.log_probs(embeddings)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, vocabulary.log_probs(embeddings.float()), atol=1e-6)


@pytest.mark.parametrize(("k", "columns"), [(1, 1), (3, 3), (COUNT, COUNT), (99, COUNT)])
def test_top_k_is_sorted_and_at_most_the_vocabulary(
    vocabulary: ConceptVocabulary, k: int, columns: int
) -> None:
    embeddings = draw(4, DIM, seed=2)
    wanted = plain_probabilities(vocabulary.weights.double().numpy(), embeddings.double().numpy())
    order = np.argsort(-wanted, axis=1)[:, :columns]
    names, scores = vocabulary.top_k(embeddings, k)
    assert names == [[NAMES[column] for column in row] for row in order]
    np.testing.assert_allclose(scores, np.take_along_axis(wanted, order, axis=1), atol=1e-6)


def test_no_region(vocabulary: ConceptVocabulary) -> None:
    names, scores = vocabulary.top_k(torch.zeros(0, DIM), 2)
    assert (names, scores.shape) == ([], (0, 2))


@pytest.mark.parametrize(
    ("k", "outcome"),
    [
        (1, nullcontext()),
        (np.int64(3), nullcontext()),
        (0, pytest.raises(ValueError, match=r"top_k: expected at least 1, got 0")),
        (-2, pytest.raises(ValueError, match=r"top_k: expected at least 1, got -2")),
        (2.0, pytest.raises(TypeError, match=r"top_k: expected a whole number, got float 2.0")),
        ("5", pytest.raises(TypeError, match=r"top_k: expected a whole number, got str '5'")),
        (None, pytest.raises(TypeError, match=r"top_k: expected a whole number, got NoneType")),
    ],
)
def test_top_k_is_a_whole_number_from_one(
    vocabulary: ConceptVocabulary, k: Any, outcome: Any
) -> None:
    with outcome:
        check_top_k(k)
    with outcome:
        vocabulary.top_k(draw(1, DIM), k)


def test_embeddings_of_another_width(vocabulary: ConceptVocabulary) -> None:
    with pytest.raises(ValueError, match=r"expected last axis D = 7.*got 5; use the concepts"):
        vocabulary.log_probs(draw(2, COUNT))


# --- making and picking -------------------------------------------------------------------------


def test_text_embeddings_become_scaled_directions() -> None:
    embeddings = draw(COUNT, DIM, seed=3)
    vocabulary = ConceptVocabulary.from_text_embeddings(NAMES, embeddings, logit_scale=11.0)
    wanted = 11.0 * embeddings.numpy() / np.linalg.norm(embeddings.numpy(), axis=1)[:, None]
    assert vocabulary.weights.is_contiguous()
    np.testing.assert_allclose(vocabulary.weights, wanted.T, atol=1e-5)
    usual = ConceptVocabulary.from_text_embeddings(list(NAMES), embeddings)
    assert usual.names == NAMES
    np.testing.assert_allclose(np.linalg.norm(usual.weights, axis=0), 100.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(COUNT,), (COUNT - 1, DIM), (COUNT, DIM, 1)])
def test_text_embeddings_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"embeddings: expected \(K, D\) with K = 5 names, got"):
        ConceptVocabulary.from_text_embeddings(NAMES, draw(*shape))


def test_subset_keeps_the_order_asked_for(vocabulary: ConceptVocabulary) -> None:
    part = vocabulary.subset(["日本", "cat"])
    assert part.names == ("日本", "cat")
    np.testing.assert_array_equal(part.weights, vocabulary.weights[:, [4, 0]])
    assert len(part) == 2
    with pytest.raises(ValueError, match=r"\['bird', 'Cat'\] not among the 5 names of this voca"):
        vocabulary.subset(["cat", "bird", "Cat"])


@pytest.mark.parametrize(
    ("names", "weights", "kind", "words"),
    [
        (NAMES, draw(DIM, 4), ValueError, r"weights: expected \(D, K\) with K = 5.*\(7, 4\)"),
        (NAMES, draw(COUNT), ValueError, r"weights: expected \(D, K\).*got \(5,\)"),
        (NAMES, draw(DIM, COUNT).numpy(), TypeError, r"expected a torch tensor.*got ndarray"),
        (NAMES, draw(DIM, COUNT) / 0, ValueError, r"expected finite numbers, got NaN or inf"),
        ((), draw(DIM, 0), ValueError, r"names: expected at least one concept, got none"),
        (("a", "b", "a"), draw(DIM, 3), ValueError, r"different names, got \['a'\] more than onc"),
        ("abc", draw(DIM, 3), TypeError, r"names: expected a sequence of strings, got 'abc'"),
        (("a", 5), draw(DIM, 2), TypeError, r"names: expected a sequence of strings, got \('a', "),
    ],
)
def test_what_is_no_vocabulary(names: Any, weights: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        ConceptVocabulary(names, weights)


def test_lists_and_other_precisions_are_taken() -> None:
    weights = draw(DIM, COUNT).half().requires_grad_()
    vocabulary = ConceptVocabulary(list(NAMES), weights)  # type: ignore[arg-type]
    assert vocabulary.names == NAMES
    assert (vocabulary.weights.dtype, vocabulary.weights.requires_grad) == (torch.float32, False)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_save_and_load(vocabulary: ConceptVocabulary, tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "begriffe für später.safetensors"
    vocabulary.save(kind(path))
    vocabulary.save(kind(path))  # replaces
    loaded = ConceptVocabulary.load(kind(path))
    assert loaded.names == NAMES
    np.testing.assert_array_equal(loaded.weights, vocabulary.weights)
    assert list(tmp_path.iterdir()) == [path]


def test_a_published_file(tmp_path: Path) -> None:
    weights = draw(DIM, COUNT).numpy()
    path = tmp_path / "concepts.pkl"
    path.write_bytes(pickle.dumps([weights, list(NAMES)]))
    loaded = ConceptVocabulary.load(path)
    assert loaded.names == NAMES
    np.testing.assert_array_equal(loaded.weights, weights)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"concepts: no file at {path}; expected one"):
            ConceptVocabulary.load(path)


def write_bad_files(vocabulary: ConceptVocabulary, folder: Path) -> None:
    vocabulary.save(folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-5])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "names.txt").write_text("cat\ndog\n")
    tensors, facts = {"weights": draw(DIM, 2)}, {"format": "tokenize_anything.concepts"}
    save_file(tensors, folder / "foreign.safetensors")
    save_file(tensors, folder / "nameless.safetensors", facts)
    save_file(tensors, folder / "no_json.safetensors", facts | {"names": "cat, dog"})
    save_file(tensors, folder / "three.safetensors", facts | {"names": json.dumps(["a"] * 3)})
    save_file({"w": draw(2)}, folder / "other.safetensors", facts | {"names": '["a"]'})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut.safetensors", r"damaged or not safetensors \(.*written by ConceptVocabulary.save"),
        ("empty.safetensors", r"damaged or not safetensors"),
        ("names.txt", r"damaged or not safetensors"),
        ("foreign.safetensors", r"its header does not say that it holds concepts"),
        ("nameless.safetensors", r"not a usable concept file: 'names'"),
        ("no_json.safetensors", r"not a usable concept file: Expecting value"),
        ("three.safetensors", r"not a usable concept file: .*different names"),
        ("other.safetensors", r"damaged or not safetensors .*weights"),
    ],
)
def test_damaged_files(
    vocabulary: ConceptVocabulary, tmp_path: Path, name: str, words: str
) -> None:
    write_bad_files(vocabulary, tmp_path)
    with pytest.raises(ValueError, match=rf"concepts: .*{name} is .*{words}"):
        ConceptVocabulary.load(tmp_path / name)
