"""What a batch's semantic embeddings are to become: from texts, or from stored CLIP embeddings."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.samples import RegionBatch
from tokenize_anything.training.concept_teacher import (
    ConceptTeacher,
    EmbedTexts,
    concept_names,
    has_text,
)
from tokenize_anything.training.config import PretrainConfig
from tokenize_anything.training.region_losses import ConceptLoss
from tokenize_anything.training.training_data import TrainingData


class RegionTeacher(Protocol):
    """Says for each region what its semantic embedding should mean.

    vocabulary: the student's classifier; None where nothing is taught.
    """

    vocabulary: ConceptVocabulary | None

    def targets(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """Of R regions, image-major: `RegionTargets.teacher`, and (R,) bool which have one."""
        ...


class TextTeacher:
    """Teaches what the texts of the regions mean (see `ConceptTeacher`)."""

    vocabulary: ConceptVocabulary | None

    def __init__(self, teacher: ConceptTeacher, kind: ConceptLoss) -> None:
        self.teacher, self.kind, self.vocabulary = teacher, kind, teacher.vocabulary

    def targets(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """See `RegionTeacher`."""
        text_index = batch.text_index.flatten()
        is_feature = self.kind == "feature"
        look_up = self.teacher.embeddings if is_feature else self.teacher.log_probs
        return look_up(text_index), has_text(text_index)


class EmbeddingTeacher:
    """Teaches what stored CLIP image embeddings of the regions mean (paper algorithm 1).

    Args:
        vocabulary: the student's, from the source template.
        target: the teacher's, from the target template; the same names in the same order.
        kind: of the concept loss.

    Raises:
        ValueError: other names, or another space.
    """

    vocabulary: ConceptVocabulary | None

    def __init__(
        self, vocabulary: ConceptVocabulary, target: ConceptVocabulary, kind: ConceptLoss
    ) -> None:
        if vocabulary.names != target.names or vocabulary.weights.shape != target.weights.shape:
            raise ValueError(
                f"target_concepts: expected the {len(vocabulary)} names of concepts in their order "
                f"and weights {tuple(vocabulary.weights.shape)}, got {len(target)} names and "
                f"{tuple(target.weights.shape)}; write both files from one list of names"
            )
        self.vocabulary, self.target, self.kind = vocabulary, target, kind

    def targets(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """See `RegionTeacher`."""
        assert batch.embeddings is not None
        embeddings = batch.embeddings.flatten(0, 1)
        known = batch.has_embedding.flatten()
        if self.kind == "feature":
            return F.normalize(embeddings, dim=-1), known
        return self.target.log_probs(embeddings), known


class NoTeacher:
    """Teaches nothing: masks and IoU alone."""

    vocabulary: ConceptVocabulary | None = None

    def targets(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """See `RegionTeacher`."""
        nothing = torch.zeros_like(batch.has_mask).flatten()
        return batch.boxes_xyxy.new_zeros(len(nothing), 0), nothing


def make_teacher(
    config: PretrainConfig, data: TrainingData, embed: EmbedTexts | None
) -> RegionTeacher:
    """The teacher that a configuration asks for.

    Args:
        config: of the run.
        data: whose regions are taught.
        embed: text encoder that spans the concept space, for a teacher of texts.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: what is there does not fit, or the data has neither texts nor embeddings.
    """
    if config.concept_loss == "none":
        return NoTeacher()
    if config.concepts and config.target_concepts:
        source = ConceptVocabulary.load(config.concepts)
        target = ConceptVocabulary.load(config.target_concepts)
        return _checked(EmbeddingTeacher(source, target, config.concept_loss), config)
    if embed is None:
        raise ValueError("embed: expected a text encoder to teach from texts, got None")
    if not data.texts.texts:
        raise ValueError(
            "data: the regions have no texts to teach from; name a store of their embeddings "
            "(embeddings, concepts, target_concepts), or set concept_loss to none"
        )
    teacher = ConceptTeacher(
        data.texts.texts,
        data.names or concept_names(config.data.annotation_files, data.texts.texts),
        embed,
        teacher_scale=config.teacher_scale,
        student_scale=config.student_scale,
    )
    return _checked(TextTeacher(teacher, config.concept_loss), config)


def _checked(teacher: RegionTeacher, config: PretrainConfig) -> RegionTeacher:
    assert teacher.vocabulary is not None
    width = teacher.vocabulary.weights.shape[0]
    if width != config.model.semantic_dim:
        raise ValueError(
            f"model.semantic_dim: expected {width}, the width of the teacher's embeddings, got "
            f"{config.model.semantic_dim}"
        )
    return teacher
