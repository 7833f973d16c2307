"""Concept vocabularies: names with one classifier column each, in the space of the embeddings."""

from __future__ import annotations

import json
import operator
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenize_anything.checkpoints import write_safetensors
from tokenize_anything.published_format import load_published_concepts

FORMAT = "tokenize_anything.concepts"

# The paper's two sides (algorithm 1): what the model is compared with, and what its teacher is.
SOURCE_TEMPLATE = "a {}"
TARGET_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True, eq=False)
class ConceptVocabulary:
    """K names and their classifier weights (paper section 3.2).

    names: K different strings.
    weights: (D,K) float32. A column is the L2-normalised text embedding of the concept times the
        logit scale, so that softmax(normalise(embedding) @ weights) is the concept distribution.
    space: the text space the columns live in, see `is_same_space`; empty where it is not known.
    """

    names: tuple[str, ...]
    weights: Tensor
    space: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", check_names(self.names))
        if not isinstance(self.weights, Tensor):
            kind = type(self.weights).__name__
            raise TypeError(f"weights: expected a torch tensor (D,K), got {kind}")
        if self.weights.ndim != 2 or self.weights.shape[1] != len(self.names):
            raise ValueError(
                f"weights: expected (D, K) with K = {len(self.names)} names, "
                f"got {tuple(self.weights.shape)}"
            )
        if not torch.isfinite(self.weights).all():
            raise ValueError("weights: expected finite numbers, got NaN or infinity")
        if not isinstance(self.space, str):
            raise TypeError(f"space: expected text, got {type(self.space).__name__}")
        object.__setattr__(self, "weights", self.weights.detach().float())

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_text_embeddings(
        cls,
        names: Sequence[str],
        embeddings: Tensor,
        *,
        logit_scale: float = 100.0,
        space: str = "",
    ) -> ConceptVocabulary:
        """Make a vocabulary from (K,D) text embeddings of `space`, one for each name."""
        if embeddings.ndim != 2 or len(embeddings) != len(names):
            raise ValueError(
                f"embeddings: expected (K, D) with K = {len(names)} names, got "
                f"{tuple(embeddings.shape)}"
            )
        columns = F.normalize(embeddings.float(), dim=-1) * logit_scale
        return cls(tuple(names), columns.transpose(0, 1).contiguous(), space)

    def log_probs(self, semantic_embeddings: Tensor) -> Tensor:
        """Log-probabilities (…,K) float32 of semantic embeddings (…,D)."""
        if semantic_embeddings.shape[-1] != self.weights.shape[0]:
            raise ValueError(
                f"semantic_embeddings: expected last axis D = {self.weights.shape[0]}, the space "
                f"of this vocabulary, got {semantic_embeddings.shape[-1]}; use the concepts that "
                "belong to the model"
            )
        unit = F.normalize(semantic_embeddings.float(), dim=-1)
        return F.log_softmax(unit @ self.weights.to(unit.device), dim=-1)

    def top_k(self, semantic_embeddings: Tensor, k: int) -> tuple[list[list[str]], Tensor]:
        """Best k concepts of (R,D) embeddings: R lists of names, scores (R,k) in [0, 1].

        `k` larger than the vocabulary gives the whole vocabulary.

        Raises:
            TypeError: `k` is not a whole number.
            ValueError: `k` is under 1, or D is not the vocabulary's.
        """
        check_top_k(k)
        scores, indices = self.log_probs(semantic_embeddings).exp().topk(min(k, len(self)), dim=-1)
        return [[self.names[index] for index in row] for row in indices.tolist()], scores

    def subset(self, names: Sequence[str]) -> ConceptVocabulary:
        """Keep only `names`, in the order given.

        Raises:
            ValueError: a name that this vocabulary does not hold.
        """
        position = {name: index for index, name in enumerate(self.names)}
        unknown = [name for name in names if name not in position]
        if unknown:
            raise ValueError(
                f"concepts: {unknown[:5]} not among the {len(self)} names of this vocabulary; a "
                "new name needs the text encoder that made the vocabulary"
            )
        columns = self.weights[:, [position[name] for name in names]]
        return ConceptVocabulary(tuple(names), columns, self.space)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        metadata = {"format": FORMAT, "names": json.dumps(self.names), "space": self.space}
        write_safetensors(path, {"weights": self.weights.contiguous()}, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ConceptVocabulary:
        """Read what `save` wrote, or a published `.pkl` of [weights, names].

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a concept file.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"concepts: no file at {path}; expected one written by ConceptVocabulary.save, or "
                "a published .pkl"
            )
        if path.suffix == ".pkl":
            names, weights = load_published_concepts(path)
            return cls(tuple(names), torch.from_numpy(weights))
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(
                        "its header does not say that it holds concepts; expected one written by "
                        "ConceptVocabulary.save"
                    )
                weights = file.get_tensor("weights").clone()
                return cls(json.loads(metadata["names"]), weights, metadata.get("space", ""))
        except SafetensorError as error:
            raise ValueError(
                f"concepts: {path} is damaged or not safetensors ({error}); expected a file "
                "written by ConceptVocabulary.save, or a published .pkl"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"concepts: {path} is not a usable concept file: {error}") from error


def is_same_space(one: str, other: str) -> bool:
    """Whether two text spaces can be the same; what one of them does not say may be anything.

    A space is written "TOWER", "TOWER:TAG", "TOWER@DIGEST" or "TOWER:TAG@DIGEST": the encoder's
    name, which of its published weights, and a digest of the weights, which alone decides where
    both have one.
    """
    (name, _, digest), (other_name, _, other_digest) = one.partition("@"), other.partition("@")
    if digest and other_digest:
        return digest == other_digest
    (tower, _, tag), (other_tower, _, other_tag) = name.partition(":"), other_name.partition(":")
    return not (tower and other_tower) or (
        tower == other_tower and (tag == other_tag or not (tag and other_tag))
    )


def check_top_k(top_k: Any) -> None:
    """Raise TypeError or ValueError unless `top_k` is a whole number of at least 1."""
    try:
        count = operator.index(top_k)
    except TypeError as error:
        kind = type(top_k).__name__
        raise TypeError(f"top_k: expected a whole number, got {kind} {top_k!r}") from error
    if count < 1:
        raise ValueError(f"top_k: expected at least 1, got {count}")


def check_names(names: Any) -> tuple[str, ...]:
    """The names as a tuple; raise TypeError or ValueError unless they are different texts."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names: expected a sequence of strings, got {names!r:.60}")
    if not names:
        raise ValueError("names: expected at least one concept, got none")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"names: expected different names, got {twice[:5]} more than once")
    return tuple(names)
