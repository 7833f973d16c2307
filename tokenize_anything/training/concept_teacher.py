"""Teacher distributions of the concept loss: what each text of the data says about each concept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.semantic_sa1b.text_space import (
    SOURCE_TEMPLATE,
    TARGET_TEMPLATE,
    embed_texts_cached,
)


class ConceptTeacher:
    """Source weights for the model, target distributions for its loss (paper algorithm 1).

    A name is embedded with the target template, a caption as it stands. The target distribution
    of a text is the softmax of its similarity to all target columns.

    Args:
        texts: the text table of the data; rows are what `text_index` refers to.
        names: concept names, the classes of the vocabulary.
        cache_path: file that keeps the embeddings between runs.
    """

    def __init__(
        self,
        texts: Sequence[str],
        names: Sequence[str],
        cache_path: str | Path,
        *,
        teacher_scale: float,
        student_scale: float,
    ) -> None:
        known = set(names)
        prompts = [TARGET_TEMPLATE.format(text) if text in known else text for text in texts]
        targets = [TARGET_TEMPLATE.format(name) for name in names]
        sources = [SOURCE_TEMPLATE.format(name) for name in names]
        embeddings = embed_texts_cached([*prompts, *targets, *sources], cache_path)
        text_rows, target_rows, source_rows = embeddings.split(
            [len(prompts), len(targets), len(sources)]
        )
        self.vocabulary = ConceptVocabulary.from_text_embeddings(
            names, source_rows, logit_scale=student_scale
        )
        target = ConceptVocabulary.from_text_embeddings(
            names, target_rows, logit_scale=teacher_scale
        )
        self.text_log_probs = target.log_probs(text_rows)  # (texts, K)

    def log_probs(self, text_index: Tensor) -> Tensor:
        """Teacher log-probabilities (R,K) of the texts at rows (R,)."""
        return self.text_log_probs[text_index.clamp(min=0).cpu()].to(text_index.device)


def concept_names(annotation_files: Sequence[str | Path], texts: Sequence[str]) -> list[str]:
    """Category names that occur in the data, sorted."""
    from tokenize_anything.data.coco_lvis import read_coco_json

    categories = {
        category["name"]
        for file in annotation_files
        for category in read_coco_json(file).get("categories", [])
    }
    return sorted(categories & set(texts))


def has_text(text_index: Tensor) -> Tensor:
    """Which regions have a text, bool of the same shape."""
    return torch.ge(text_index, 0)
