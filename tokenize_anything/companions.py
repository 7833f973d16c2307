"""What belongs to a model beside its weights: the concept vocabulary and the text tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tokenize_anything.checkpoints import read_extra_tensors, read_header
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.config import TAPConfig
from tokenize_anything.hub import (
    PUBLISHED_CONCEPTS,
    PUBLISHED_WEIGHTS,
    TEXT_TOKENIZER_VARIABLE,
    download,
    find_text_tokenizer,
)
from tokenize_anything.text_tokenizer import TextTokenizer

ConceptSource: TypeAlias = str | os.PathLike[str] | ConceptVocabulary | Sequence[str] | None

CONCEPT_WEIGHTS = "concept_weights"
CONCEPT_NAMES = "concept_names"
TEXT_TOKENIZER = "text_tokenizer"
DEFAULT_PUBLISHED_CONCEPTS = "merged_2560"


@dataclass(frozen=True)
class Companions:
    """A model's own vocabulary and tokenizer; None where it brings none."""

    concepts: ConceptVocabulary | None = None
    text_tokenizer: TextTokenizer | None = None

    def pack(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata that keep them inside a native model file (see `save_model`)."""
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] = {}
        if self.concepts is not None:
            tensors[CONCEPT_WEIGHTS] = self.concepts.weights
            metadata[CONCEPT_NAMES] = json.dumps(self.concepts.names)
        if self.text_tokenizer is not None:
            data = bytearray(self.text_tokenizer.to_bytes())
            tensors[TEXT_TOKENIZER] = torch.frombuffer(data, dtype=torch.uint8)
        return tensors, metadata


def find_companions(
    name_or_path: str | os.PathLike[str],
    path: Path,
    text_tokenizer: str | os.PathLike[str] | None,
    vocabulary_size: int,
    *,
    with_concepts: bool = True,
) -> Companions:
    """Collect what belongs to the model at `path`.

    A native file carries both inside. Published weights by name take their vocabulary from the
    hub. The tokenizer is looked up by `hub.find_text_tokenizer` when the file carries none.

    Args:
        name_or_path: what the user asked for.
        path: the file it was found at.
        text_tokenizer: a tokenizer file that goes before the model's own.
        vocabulary_size: pieces the text decoder expects.
        with_concepts: False leaves the vocabulary out, and downloads none.

    Raises:
        FileNotFoundError: a tokenizer was named, here or in the environment, and is not there.
        ValueError: the tokenizer has another number of pieces, or the file holds damaged parts.
        ConnectionError, PermissionError: see `hub.download`.
    """
    own = _inside(path) if path.suffix == ".safetensors" else Companions()
    concepts = own.concepts if with_concepts else None
    if concepts is None and with_concepts and str(name_or_path) in PUBLISHED_WEIGHTS:
        file = PUBLISHED_CONCEPTS[DEFAULT_PUBLISHED_CONCEPTS]
        concepts = ConceptVocabulary.load(download(file))
    tokenizer = own.text_tokenizer
    if tokenizer is None or text_tokenizer is not None:
        tokenizer = _look_up(text_tokenizer, vocabulary_size, path)
    return Companions(concepts, tokenizer)


def read_concepts(concepts: ConceptSource) -> ConceptVocabulary | None:
    """The vocabulary a caller named; None where the model's own is wanted, or names picked from it.

    Args:
        concepts: a concept file; a name of `hub.PUBLISHED_CONCEPTS`, which is downloaded; a
            vocabulary; a list of names; or None.

    Raises:
        FileNotFoundError: no such file.
        TypeError: none of these.
        ValueError: not a concept file.
        ConnectionError, PermissionError: see `hub.download`.
    """
    if concepts is None or isinstance(concepts, ConceptVocabulary):
        return concepts
    if isinstance(concepts, str) and concepts in PUBLISHED_CONCEPTS:
        return ConceptVocabulary.load(download(PUBLISHED_CONCEPTS[concepts]))
    if isinstance(concepts, str | os.PathLike):
        return ConceptVocabulary.load(concepts)
    if isinstance(concepts, Sequence) and not isinstance(concepts, bytes):
        return None
    raise TypeError(
        "concepts: expected a file, a ConceptVocabulary or a list of names, got "
        f"{type(concepts).__name__}"
    )


def pick_concepts(
    concepts: ConceptSource, own: ConceptVocabulary | None
) -> ConceptVocabulary | None:
    """The model's own vocabulary, or the names picked from it where `concepts` is a list of names.

    Raises:
        ValueError: names, but no vocabulary to pick them from, or not in it.
    """
    if concepts is None:
        return own
    if own is None:
        raise ValueError(
            "concepts: names are picked from the model's own vocabulary, and this model has none; "
            "pass a concept file instead"
        )
    return own.subset([str(name) for name in concepts])  # type: ignore[union-attr]


def check_tokenizer_source(text_tokenizer: Any) -> None:
    """Raise TypeError unless a text tokenizer is named by path, or not at all."""
    if text_tokenizer is not None and not isinstance(text_tokenizer, str | os.PathLike):
        raise TypeError(
            "text_tokenizer: expected the path of a SentencePiece model, got "
            f"{type(text_tokenizer).__name__}; TAPPredictor(model, text_tokenizer=...) takes a "
            "TextTokenizer"
        )


def check_companions(
    config: TAPConfig, concepts: ConceptVocabulary | None, text_tokenizer: TextTokenizer | None
) -> None:
    """Check that a vocabulary and a text tokenizer, where given, fit a model of this size.

    Raises:
        TypeError: parts of another kind, such as paths.
        ValueError: another width, or another number of pieces.
    """
    for name, part, kind, cure in (
        ("concepts", concepts, ConceptVocabulary, "ConceptVocabulary.load reads a file"),
        ("text_tokenizer", text_tokenizer, TextTokenizer, "TextTokenizer.from_file reads a file"),
    ):
        if part is not None and not isinstance(part, kind):
            raise TypeError(
                f"{name}: expected a {kind.__name__}, got {type(part).__name__}; {cure}"
            )
    if concepts is not None and concepts.weights.shape[0] != config.semantic_dim:
        raise ValueError(
            f"concepts: expected weights of {config.semantic_dim} rows, the model's semantic "
            f"width, got {concepts.weights.shape[0]}; use the vocabulary made for it"
        )
    if text_tokenizer is not None and text_tokenizer.vocabulary_size != config.vocabulary_size:
        raise ValueError(
            f"text_tokenizer: expected {config.vocabulary_size} pieces, as the model's text "
            f"decoder, got {text_tokenizer.vocabulary_size}; use the one it was trained with"
        )


def _inside(path: Path) -> Companions:
    header = read_header(path)
    tensors = read_extra_tensors(path)
    concepts = tokenizer = None
    if CONCEPT_WEIGHTS in tensors and CONCEPT_NAMES in header.metadata:
        try:
            names = json.loads(header.metadata[CONCEPT_NAMES])
            concepts = ConceptVocabulary(names, tensors[CONCEPT_WEIGHTS])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: damaged concept vocabulary in the file ({error})") from error
    if TEXT_TOKENIZER in tensors:
        data = tensors[TEXT_TOKENIZER].numpy().tobytes()
        tokenizer = TextTokenizer(data, source=f"{path}: text tokenizer in the file")
    return Companions(concepts, tokenizer)


def _look_up(
    named: str | os.PathLike[str] | None, vocabulary_size: int, path: Path
) -> TextTokenizer | None:
    try:
        found = find_text_tokenizer(named, vocabulary_size, beside=path)
    except FileNotFoundError:
        if named is not None or os.environ.get(TEXT_TOKENIZER_VARIABLE):
            raise
        return None
    return TextTokenizer.from_file(found)
