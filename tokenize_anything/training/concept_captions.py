"""Captions that say the first concept, for tokens between those of regions.

A text decoder that has only read tokens of the training data, of which the concept head is sure,
says something else than the concept head where that one is not. Mixtures of two tokens (Zhang et
al. 2018, "mixup") stand for such regions, and the concept head names them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.region_captions import name_to_caption
from tokenize_anything.modeling import TAP
from tokenize_anything.training.region_tokens import TokenSource

MIN_SHARE = 0.5  # of the first of two tokens


@dataclass(frozen=True, eq=False)
class ConceptCaptions:
    """Draws mixtures of tokens, and says what the first concept of each is.

    model: of the tokens; its concept head, or that of its view namer, is asked.
    concepts: the vocabulary.
    """

    model: TAP
    concepts: ConceptVocabulary

    def mix(
        self,
        tokens: TokenSource,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Tensor:
        """At least half of each of the tokens (n,) and the rest of another of them, (n,C)."""
        some = tokens.select(rows, views)
        shares = torch.from_numpy(rng.uniform(MIN_SHARE, 1, (len(rows), 1))).float()
        return shares * some + (1 - shares) * some[torch.from_numpy(rng.permutation(len(rows)))]

    @torch.no_grad()
    def describe(self, tokens: Tensor) -> list[str]:
        """The first concept of each token (n,C), with an article."""
        part = self.model.view_namer or self.model.image_decoder
        embeddings = part.semantic_head(tokens.to(self.model.device, self.model.dtype))
        best = self.concepts.log_probs(embeddings).argmax(dim=-1).tolist()
        return [name_to_caption(self.concepts.names[row]) for row in best]
