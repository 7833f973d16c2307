"""Teacher distributions of the concept loss: what each text of the data says about each concept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.coco_lvis import category_names, read_coco_json

SOURCE_TEMPLATE = "a {}"
TARGET_TEMPLATE = "a photo of a {}."

# n texts to (n,D) embeddings in the space the concepts live in
EmbedTexts = Callable[[Sequence[str]], Tensor]


class ConceptTeacher:
    """Source weights for the model, target distributions for its loss (paper algorithm 1).

    A name is embedded with the target template, a caption as it stands. The target distribution
    of a text is the softmax of its similarity to all target columns.

    Args:
        texts: the text table of the data; rows are what `text_index` refers to.
        names: concept names, the classes of the vocabulary.
        embed: the text encoder; called once, with all texts.
        teacher_scale: logit scale of the target distributions.
        student_scale: logit scale of the vocabulary.
    """

    def __init__(
        self,
        texts: Sequence[str],
        names: Sequence[str],
        embed: EmbedTexts,
        *,
        teacher_scale: float,
        student_scale: float,
    ) -> None:
        known = set(names)
        prompts = [TARGET_TEMPLATE.format(text) if text in known else text for text in texts]
        targets = [TARGET_TEMPLATE.format(name) for name in names]
        sources = [SOURCE_TEMPLATE.format(name) for name in names]
        embeddings = embed([*prompts, *targets, *sources])
        text_rows, target_rows, source_rows = embeddings.split(
            [len(prompts), len(targets), len(sources)]
        )
        self.vocabulary = ConceptVocabulary.from_text_embeddings(
            names, source_rows, logit_scale=student_scale
        )
        target = ConceptVocabulary.from_text_embeddings(
            names, target_rows, logit_scale=teacher_scale
        )
        self.text_log_probs = target.log_probs(text_rows)  # (texts,K)

    def log_probs(self, text_index: Tensor) -> Tensor:
        """Teacher log-probabilities (R,K) of the texts at rows (R,); those of -1 mean nothing."""
        return self.text_log_probs[text_index.clamp(min=0).cpu()].to(text_index.device)


def concept_names(annotation_files: Sequence[str | Path], texts: Sequence[str]) -> list[str]:
    """Category names that occur in the data, sorted.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not COCO-style JSON, a category without a name, or no named region.
    """
    categories = {
        name
        for file in annotation_files
        for name in category_names(read_coco_json(file), file).values()
    }
    names = sorted(categories & set(texts))
    if not names:
        raise ValueError(
            f"annotations: expected regions with category names in "
            f"{[str(file) for file in annotation_files]}, got none; the names become the concepts"
        )
    return names


def has_text(text_index: Tensor) -> Tensor:
    """Which regions have a text, bool of the same shape."""
    return torch.ge(text_index, 0)
