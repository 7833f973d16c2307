"""Where the targets of the semantic embeddings come from, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.photos import SHAPES, write_photos
from tests.training.tiny_runs import MODEL, embed_by_hash, pretrain_config
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.samples import RegionBatch, TextTable
from tokenize_anything.training.concept_teacher import TARGET_TEMPLATE
from tokenize_anything.training.region_teacher import (
    EmbeddingTeacher,
    NoTeacher,
    TextTeacher,
    make_teacher,
)
from tokenize_anything.training.training_data import TrainingData, open_data

D = MODEL.semantic_dim


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("teacher") / "set"
    write_photos(root)
    return root


def vocabulary(seed: int = 0, names: tuple[str, ...] = ("a", "b", "c"), dim: int = D) -> Any:
    rows = torch.randn(len(names), dim, generator=torch.Generator().manual_seed(seed))
    return ConceptVocabulary.from_text_embeddings(names, rows, logit_scale=7.0)


def batch(text_index: list[list[int]], embeddings: Tensor | None = None) -> RegionBatch:
    shape = (len(text_index), len(text_index[0]))
    has_embedding = torch.zeros(shape, dtype=torch.bool)
    if embeddings is not None:
        has_embedding[:, 0] = True
    return RegionBatch(
        images=torch.zeros(shape[0], 4, 4, 3, dtype=torch.uint8),
        boxes_xyxy=torch.zeros(*shape, 4),
        masks=torch.zeros(*shape, 2, 2, dtype=torch.bool),
        has_mask=torch.ones(shape, dtype=torch.bool),
        text_index=torch.tensor(text_index),
        indices=torch.arange(shape[0]),
        has_embedding=has_embedding,
        embeddings=embeddings,
    )


def softmax_of(embedding: Tensor, weights: Tensor) -> Tensor:
    scores = (embedding / embedding.norm()).double() @ weights.double()
    return scores - torch.log(torch.exp(scores).sum())


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["concept", "feature"])
def test_texts_teach_their_concepts_or_their_embedding(
    folder: Path, tmp_path: Path, kind: Any
) -> None:
    config = pretrain_config(folder, tmp_path, concept_loss=kind, teacher_scale=3.0)
    data = open_data(config.data, tmp_path)
    teacher = make_teacher(config, data, embed_by_hash)
    assert isinstance(teacher, TextTeacher)
    assert teacher.vocabulary is not None and teacher.vocabulary.names == tuple(sorted(SHAPES))
    rows, has_text = teacher.targets(batch([[1, -1], [0, 2]]))
    assert has_text.tolist() == [True, False, True, True]
    names = sorted(SHAPES)
    target = 3 * embed_by_hash([TARGET_TEMPLATE.format(name) for name in names]).T
    for row, index in ((0, 1), (2, 0), (3, 2)):
        text = data.texts.texts[index]
        prompt = TARGET_TEMPLATE.format(text) if text in names else text
        (embedding,) = embed_by_hash([prompt])
        expected = embedding if kind == "feature" else softmax_of(embedding, target).float()
        torch.testing.assert_close(rows[row], expected, atol=1e-5, rtol=1e-5)


def test_names_may_come_with_the_data(folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(folder, tmp_path)
    data = TrainingData([], TextTable(("mug", "a red mug"), np.array([3, 1])), names=("mug",))
    teacher = make_teacher(config, data, embed_by_hash)
    assert teacher.vocabulary is not None and teacher.vocabulary.names == ("mug",)


# --- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["concept", "feature"])
def test_stored_embeddings_teach_by_the_target_weights(kind: Any) -> None:
    source, target = vocabulary(0), vocabulary(1)
    teacher = EmbeddingTeacher(source, target, kind)
    assert teacher.vocabulary is source
    stored = torch.randn(2, 3, D) * 5
    rows, known = teacher.targets(batch([[0, 1, 2], [0, -1, 2]], stored))
    assert known.tolist() == [True, False, False] * 2
    for row, embedding in enumerate(stored.flatten(0, 1)):
        unit = embedding / embedding.norm()
        expected = unit if kind == "feature" else softmax_of(embedding, target.weights).float()
        torch.testing.assert_close(rows[row], expected, atol=1e-5, rtol=1e-5)


def test_vocabularies_are_read_from_their_files(folder: Path, tmp_path: Path) -> None:
    files = {}
    for seed, name in enumerate(("concepts", "target_concepts")):
        files[name] = str(tmp_path / f"{name}.safetensors")
        vocabulary(seed).save(files[name])
    config = pretrain_config(folder, tmp_path, embeddings="store", **files)
    teacher = make_teacher(config, open_data(config.data, tmp_path), None)
    assert isinstance(teacher, EmbeddingTeacher) and teacher.vocabulary is not None
    assert torch.equal(teacher.vocabulary.weights, vocabulary(0).weights)
    assert torch.equal(teacher.target.weights, vocabulary(1).weights)


@pytest.mark.parametrize(
    "target, message",
    [
        (vocabulary(names=("a", "c", "b")), "expected the 3 names of concepts in their order"),
        (vocabulary(names=("a", "b")), r"got 2 names and \(29, 2\)"),
        (vocabulary(dim=31), r"weights \(29, 3\), got 3 names and \(31, 3\)"),
    ],
)
def test_vocabularies_that_do_not_belong_together_are_refused(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingTeacher(vocabulary(), target, "concept")


# --- nothing -------------------------------------------------------------------------------------


def test_masks_alone_need_no_teacher(folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(folder, tmp_path, concept_loss="none")
    teacher = make_teacher(config, open_data(config.data, tmp_path), None)
    assert isinstance(teacher, NoTeacher) and teacher.vocabulary is None
    rows, has_text = teacher.targets(batch([[1, -1], [0, 2]]))
    assert rows.shape == (4, 0) and has_text.tolist() == [False] * 4


def test_a_teacher_of_texts_needs_texts_and_an_encoder(folder: Path, tmp_path: Path) -> None:
    config = pretrain_config(folder, tmp_path)
    data = open_data(config.data, tmp_path)
    with pytest.raises(ValueError, match="embed: expected a text encoder to teach from texts"):
        make_teacher(config, data, None)
    nameless = TrainingData(data.records, TextTable((), np.zeros(0, dtype=np.int64)))
    with pytest.raises(ValueError, match=r"data: the regions have no texts .*concept_loss to none"):
        make_teacher(config, nameless, embed_by_hash)
