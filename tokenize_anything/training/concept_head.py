"""The head that names regions, trained once more on the tokens of a frozen model.

Masks and concepts share a model in stage 1, where a heavy concept loss slows the masks down. Their
last common point is the semantic token; what follows is a small head, which learns in a minute on
tokens that are kept on disk (see `semantic_token_cache`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.region_captions import CaptionedRegion, name_to_caption
from tokenize_anything.modeling import TAP
from tokenize_anything.training.config import require_counts, require_fractions


@dataclass(frozen=True, kw_only=True)
class ConceptHeadConfig:
    """How the head is trained.

    peak_lr: learning rate of AdamW, falling to 0 along a cosine.
    token_dropout: share of a token's channels set to zero.
    token_noise: Gaussian noise on tokens, in standard deviations of each channel.
    num_epochs: how often each region is drawn, on average.
    """

    peak_lr: float = 1e-3
    weight_decay: float = 0.05
    token_dropout: float = 0.3
    token_noise: float = 0.15
    batch_size: int = 256
    num_epochs: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        require_counts(self, ("batch_size", "num_epochs"))
        require_fractions(self, ("token_dropout",))


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
    config: ConceptHeadConfig | None = None,
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
    config = config or ConceptHeadConfig()
    width = model.config.decoder_dim
    if tokens.ndim != 2 or tokens.shape[1] != width or len(tokens) != len(names):
        raise ValueError(
            f"tokens: expected ({len(names)},{width}), a semantic token for each name, got "
            f"{tuple(tokens.shape)}"
        )
    known = torch.from_numpy(names >= 0)
    if not known.any():
        raise ValueError("names: expected at least one region that a concept names, got none")
    tokens, targets = tokens[known].float(), torch.from_numpy(names)[known]
    deviation = tokens.std(dim=0, unbiased=False)
    head = model.image_decoder.semantic_head.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.peak_lr, weight_decay=config.weight_decay
    )
    generator = torch.Generator().manual_seed(config.seed)
    num_steps = math.ceil(config.num_epochs * len(tokens) / config.batch_size)
    for step in range(num_steps):
        lr = config.peak_lr * (1 + math.cos(math.pi * step / num_steps)) / 2
        optimizer.param_groups[0]["lr"] = lr
        rows = torch.randint(len(tokens), (config.batch_size,), generator=generator)
        noise = torch.randn(len(rows), width, generator=generator) * config.token_noise
        kept = torch.rand(len(rows), width, generator=generator) >= config.token_dropout
        scale = 1 / (1 - config.token_dropout) if config.token_dropout < 1 else 0.0
        seen = (tokens[rows] + noise * deviation) * kept * scale
        loss = F.nll_loss(vocabulary.log_probs(head(seen)), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.requires_grad_(False)
