"""Search texts as vectors of the concept space."""

from __future__ import annotations

import re

import numpy as np

from tokenize_anything.concepts import SOURCE_TEMPLATE, is_same_space
from tokenize_anything.downstream.token_rows import space_of_identity
from tokenize_anything.text_towers import TextTower, open_text_tower

# Texts that fit every region: the canonical phrases of LERF (Kerr et al., ICCV 2023).
NEUTRAL_TEXTS = ("object", "things", "stuff", "texture")
_BEGINS_WITH_ARTICLE = re.compile(r"(an?|the)\s", re.IGNORECASE)


def phrase_query(text: str, template: str = SOURCE_TEMPLATE) -> str:
    """What the text encoder reads: a name inside the template, a phrase with its article as it is.

    The template is the model's own side of the paper's two (`concepts.SOURCE_TEMPLATE`), as region
    embeddings were taught to meet texts in it.

    Raises:
        ValueError: no text.
    """
    words = " ".join(text.split())
    if not words:
        raise ValueError('query: expected words, such as "a red mug", got none')
    return words if _BEGINS_WITH_ARTICLE.match(words) else template.format(words)


def open_store_tower(identity: str, *, device: str = "auto") -> TextTower:
    """Load the text encoder that a token store's model belongs to.

    Args:
        identity: of the store, see `token_rows.model_identity`.
        device: of CLIP towers.

    Raises:
        ImportError: a package is missing; the message names the extra.
        ValueError: the model's text space is not known, or no encoder of that name.
        FileNotFoundError, ConnectionError, PermissionError: see `hub.download`.
    """
    space = space_of_identity(identity)
    if not space:
        raise ValueError(
            f"query: the text space of this store's model ({identity}) is not known, so no text "
            "can be compared with it; search by region, or build the store with a model that "
            "names its concept space"
        )
    return open_text_tower(space, device=device)


def check_tower(tower: TextTower, identity: str) -> None:
    """Raise ValueError where a text encoder is known to be of another space than a store."""
    space = space_of_identity(identity)
    if not is_same_space(space, tower.identity):
        raise ValueError(
            f"text_tower: expected one of the store's space {space}, got {tower.identity}; leave "
            "it out, and the right one is loaded"
        )


def embed_phrase(phrase: str, tower: TextTower) -> np.ndarray:
    """What sets a phrase apart: its embedding less the mean of those of NEUTRAL_TEXTS.

    Some regions are a little like any text, and would come first for every query; what all texts
    share says nothing. `tools/eval_search.py` measures the difference.

    Args:
        phrase: from `phrase_query`.
        tower: of the store's text space.

    Returns:
        (D,) float32.
    """
    embeddings = tower.embed_texts([phrase, *NEUTRAL_TEXTS]).float()
    return (embeddings[0] - embeddings[1:].mean(dim=0)).numpy()
