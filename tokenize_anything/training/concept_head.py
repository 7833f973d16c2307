"""The head that names regions, trained once more on the tokens of a frozen model.

Masks and concepts share a model in stage 1, where a heavy concept loss slows the masks down. Their
last common point is the semantic token; what follows is a small head, which learns in a minute on
tokens that are kept on disk (see `semantic_token_cache`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.region_captions import CaptionedRegion, name_to_caption
from tokenize_anything.modeling import TAP
from tokenize_anything.training.token_heads import HeadConfig, fit_head


def name_indices(
    regions: Sequence[CaptionedRegion], vocabulary: ConceptVocabulary
) -> NDArray[np.int64]:
    """(R,) the concept each region is named by; -1 for captions and for names of no concept."""
    index = {name_to_caption(name): row for row, name in enumerate(vocabulary.names)}
    return np.array([index.get(region.texts[0], -1) for region in regions], dtype=np.int64)


def fit_concept_head(
    model: TAP,
    tokens: Tensor,
    names: NDArray[np.int64],
    vocabulary: ConceptVocabulary,
    config: HeadConfig | None = None,
) -> None:
    """Train `model.image_decoder.semantic_head` on named tokens; nothing else changes.

    The loss is the cross-entropy of the concept distribution with the name of the region.

    Args:
        model: changed in place.
        tokens: (R,C) semantic tokens of the model.
        names: (R,) rows of the vocabulary, see `name_indices`; regions of -1 are left out.
        vocabulary: in the model's concept space.
        config: how.

    Raises:
        ValueError: other shapes, or no named region.
    """
    width = model.config.decoder_dim
    if tokens.ndim != 2 or tokens.shape[1] != width or len(tokens) != len(names):
        raise ValueError(
            f"tokens: expected ({len(names)},{width}), a semantic token for each name, got "
            f"{tuple(tokens.shape)}"
        )
    known = torch.from_numpy(names >= 0)
    if not known.any():
        raise ValueError("names: expected at least one region that a concept names, got none")
    targets = torch.from_numpy(names)[known]
    fit_head(
        model.image_decoder.semantic_head,
        tokens[known],
        lambda rows, found: F.nll_loss(vocabulary.log_probs(found), targets[rows]),
        config or HeadConfig(),
    )
