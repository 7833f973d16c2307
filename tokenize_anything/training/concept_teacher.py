"""Teacher distributions of the concept loss: what each text of the data says about each concept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.concepts import SOURCE_TEMPLATE, TARGET_TEMPLATE, ConceptVocabulary
from tokenize_anything.data.coco_lvis import category_names, read_coco_json

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

    Raises:
        ValueError: a text without a usable embedding; the message names it.
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
        inputs = [*prompts, *targets, *sources]
        embeddings = _checked_embeddings(embed(inputs), inputs)
        text_rows, target_rows, source_rows = embeddings.split(
            [len(prompts), len(targets), len(sources)]
        )
        self.vocabulary = ConceptVocabulary.from_text_embeddings(
            names, source_rows, logit_scale=student_scale
        )
        self.target = ConceptVocabulary.from_text_embeddings(
            names, target_rows, logit_scale=teacher_scale
        )  # what stored image embeddings are compared with, too
        self.text_embeddings = F.normalize(text_rows, dim=-1)  # (texts,D)
        self.text_log_probs = self.target.log_probs(text_rows)  # (texts,K)

    def log_probs(self, text_index: Tensor) -> Tensor:
        """Teacher log-probabilities (R,K) of the texts at rows (R,); those of -1 mean nothing."""
        return self.text_log_probs[text_index.clamp(min=0).cpu()].to(text_index.device)

    def embeddings(self, text_index: Tensor) -> Tensor:
        """Unit embeddings (R,D) of the texts at rows (R,), as `log_probs`: targets of features."""
        return self.text_embeddings[text_index.clamp(min=0).cpu()].to(text_index.device)


def concept_names(annotation_files: Sequence[str | Path], texts: Sequence[str]) -> list[str]:
    """Category names that occur in the data, sorted.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not COCO-style JSON, a category without a name, or no named region.
    """
    names = present_names(annotation_files, texts)
    if not names:
        raise ValueError(
            f"annotations: expected regions with category names in "
            f"{[str(file) for file in annotation_files]}, got none; the names become the concepts"
        )
    return names


def present_names(annotation_files: Sequence[str | Path], texts: Sequence[str]) -> list[str]:
    """`concept_names`, or an empty list where no region has a category name."""
    categories = {
        name
        for file in annotation_files
        for name in category_names(read_coco_json(file), file).values()
    }
    return sorted(categories & set(texts))


def has_text(text_index: Tensor) -> Tensor:
    """Which regions have a text, bool of the same shape."""
    return torch.ge(text_index, 0)


def _checked_embeddings(embeddings: Tensor, texts: Sequence[str]) -> Tensor:
    """(n,D) float32, a row of some length for every text."""
    if embeddings.ndim != 2 or len(embeddings) != len(texts):
        raise ValueError(
            f"embed: expected ({len(texts)}, D), a row for each text, got {tuple(embeddings.shape)}"
        )
    lengths = embeddings.float().norm(dim=-1)
    is_missing = ~torch.isfinite(lengths) | (lengths == 0)
    missing = [text for text, absent in zip(texts, is_missing.tolist(), strict=True) if absent]
    if missing:
        raise ValueError(
            f"embed: {len(missing)} of {len(texts)} texts have no usable embedding (zero or not "
            f"finite), the first are {missing[:3]}; compute them again"
        )
    return embeddings.float()
