"""What belongs to a model beside its weights: the concept vocabulary and the text tokenizer."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tokenize_anything.build import BUILT_IN_WEIGHTS
from tokenize_anything.checkpoints import read_extra_tensors, read_header
from tokenize_anything.concepts import ConceptVocabulary, check_names, is_same_space
from tokenize_anything.config import TAPConfig
from tokenize_anything.hub import (
    PUBLISHED_CONCEPTS,
    PUBLISHED_WEIGHTS,
    TEXT_TOKENIZER_VARIABLE,
    download,
    find_text_tokenizer,
)
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.text_towers import (
    MINILM,
    PUBLISHED_SPACE,
    add_concepts,
    embed_concepts,
    open_text_tower,
)

ConceptSource: TypeAlias = str | os.PathLike[str] | ConceptVocabulary | Sequence[str] | None

CONCEPT_WEIGHTS = "concept_weights"
CONCEPT_NAMES = "concept_names"
CONCEPT_SPACE = "concept_space"
TEXT_TOKENIZER = "text_tokenizer"
DEFAULT_PUBLISHED_CONCEPTS = "merged_2560"


@dataclass(frozen=True)
class Companions:
    """A model's own vocabulary and tokenizer; None where it brings none.

    concept_space: the text space of its semantic embeddings (see `concepts.is_same_space`); empty
        where it is not known.
    """

    concepts: ConceptVocabulary | None = None
    text_tokenizer: TextTokenizer | None = None
    concept_space: str = ""

    def pack(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata that keep them inside a native model file (see `save_model`)."""
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] = {}
        if self.concepts is not None:
            tensors[CONCEPT_WEIGHTS] = self.concepts.weights
            metadata[CONCEPT_NAMES] = json.dumps(self.concepts.names)
        if self.concept_space:
            metadata[CONCEPT_SPACE] = self.concept_space
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

    A native file carries both inside, and names its concept space. Published weights by name take
    their vocabulary from the hub. The tokenizer is looked up by `hub.find_text_tokenizer` when the
    file carries none.

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
    space = own.concept_space or _usual_space(name_or_path, path)
    concepts = own.concepts if with_concepts else None
    if concepts is None and with_concepts and str(name_or_path) in PUBLISHED_WEIGHTS:
        file = PUBLISHED_CONCEPTS[DEFAULT_PUBLISHED_CONCEPTS]
        concepts = ConceptVocabulary.load(download(file))
    if concepts is not None:
        concepts = dataclasses.replace(concepts, space=space)
    tokenizer = own.text_tokenizer
    if tokenizer is None or text_tokenizer is not None:
        tokenizer = _look_up(text_tokenizer, vocabulary_size, path)
    return Companions(concepts, tokenizer, space)


def read_concepts(concepts: ConceptSource) -> ConceptVocabulary | None:
    """The vocabulary a caller named; None where the model's own is wanted, or a list of names is.

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
        published = ConceptVocabulary.load(download(PUBLISHED_CONCEPTS[concepts]))
        return dataclasses.replace(published, space=PUBLISHED_SPACE)
    if isinstance(concepts, str | os.PathLike):
        return ConceptVocabulary.load(concepts)
    if isinstance(concepts, Sequence) and not isinstance(concepts, bytes):
        return None
    raise TypeError(
        "concepts: expected a file, a ConceptVocabulary or a list of names, got "
        f"{type(concepts).__name__}"
    )


def pick_concepts(
    concepts: ConceptSource,
    own: ConceptVocabulary | None,
    space: str = "",
    *,
    device: torch.device | str = "auto",
) -> ConceptVocabulary | None:
    """The model's own vocabulary, or one of the names asked for.

    Names are picked from the model's own vocabulary. One that is not in it is embedded with the
    text encoder of the model's space, like the others: same template, same length.

    Args:
        concepts: names; None takes the model's own.
        own: the model's vocabulary, if it has one.
        space: the model's text space; empty where it is not known.
        device: of the text encoder.

    Raises:
        ImportError: the package of the text encoder is missing.
        TypeError: names that are not text.
        ValueError: no name, one twice, or a new name where no text encoder belongs to the model.
        FileNotFoundError, ConnectionError, PermissionError: see `hub.download`.
    """
    if concepts is None:
        return own
    names = check_names(concepts)
    unknown = [name for name in names if own is None or name not in own.names]
    if own is not None and not unknown:
        return own.subset(names)
    if not space:
        raise ValueError(_no_space_message(unknown, own))
    try:
        tower = open_text_tower(space, device=device)
    except ValueError as error:
        raise ValueError(
            f"concepts: no text encoder for the new names {unknown[:5]} of this model, whose space "
            f"is {space} ({error}); pass a concept file made with that encoder (tap semantic "
            "concepts)"
        ) from error
    return embed_concepts(names, tower) if own is None else add_concepts(own, names, tower)


def check_same_space(concepts: ConceptVocabulary | None, space: str) -> None:
    """Raise ValueError where a vocabulary is known to live in another space than the model."""
    if concepts is not None and not is_same_space(concepts.space, space):
        raise ValueError(
            f"concepts: expected a vocabulary in the model's space {space}, got one in "
            f"{concepts.space}; make one with the model's text encoder (tap semantic concepts)"
        )


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


def _usual_space(name_or_path: str | os.PathLike[str], path: Path) -> str:
    """The space of models that are known by name and say nothing of it themselves."""
    if str(name_or_path) in BUILT_IN_WEIGHTS:
        return MINILM
    published = {Path(file).name for file in PUBLISHED_WEIGHTS.values()}
    return PUBLISHED_SPACE if path.name in published else ""


def _no_space_message(unknown: Sequence[str], own: ConceptVocabulary | None) -> str:
    problem = (
        "this model has no vocabulary to pick names from"
        if own is None
        else f"{list(unknown)[:5]} not among the {len(own)} names of this model's vocabulary"
    )
    return (
        f"concepts: {problem}, and it does not say which text encoder its space belongs to; pass "
        "a concept file made with that encoder (tap semantic concepts), or convert the model with "
        "one (tap convert --concepts FILE)"
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
    return Companions(concepts, tokenizer, header.metadata.get(CONCEPT_SPACE, ""))


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
