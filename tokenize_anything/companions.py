"""What belongs to a model beside its weights: the concept vocabulary and the text tokenizer."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokenize_anything.checkpoints import read_extra_tensors, read_header
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.hub import PUBLISHED_CONCEPTS, PUBLISHED_WEIGHTS, download, find_text_tokenizer
from tokenize_anything.text_tokenizer import TextTokenizer

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
        FileNotFoundError: a tokenizer was named and is not there.
        ValueError: the tokenizer has another number of pieces.
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


def _inside(path: Path) -> Companions:
    header = read_header(path)
    tensors = read_extra_tensors(path)
    concepts = tokenizer = None
    if CONCEPT_WEIGHTS in tensors and CONCEPT_NAMES in header.metadata:
        names = json.loads(header.metadata[CONCEPT_NAMES])
        concepts = ConceptVocabulary(tuple(names), tensors[CONCEPT_WEIGHTS])
    if TEXT_TOKENIZER in tensors:
        tokenizer = TextTokenizer.from_bytes(tensors[TEXT_TOKENIZER].numpy().tobytes())
    return Companions(concepts, tokenizer)


def _look_up(
    named: str | os.PathLike[str] | None, vocabulary_size: int, path: Path
) -> TextTokenizer | None:
    try:
        found = find_text_tokenizer(named, vocabulary_size, beside=path)
    except FileNotFoundError:
        if named is not None:
            raise
        return None
    return TextTokenizer.from_file(found)
