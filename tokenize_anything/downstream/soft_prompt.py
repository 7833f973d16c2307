"""Region tokens as soft prompts of a causal language model: vectors in place of words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

IGNORED_LABEL = -100  # what the losses of transformers and PyTorch leave out


@dataclass(frozen=True, eq=False)
class PromptedText:
    """Inputs of a causal language model: P prompt vectors, then L words.

    inputs_embeds: (R,P+L,E).
    attention_mask: (R,P+L) int64, 0 for padding.
    labels: (R,P+L) int64, the words; IGNORED_LABEL on prompt and padding.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    labels: Tensor


class SoftPrompt(nn.Module):
    """Projects a region token to P vectors among the word embeddings of a language model.

    Two linear layers with GELU between them, as LLaVA-1.5 projects its image features, and a norm
    before them, since tokens come at any length.

    Args:
        token_dim: C, of the region tokens.
        embedding_dim: E, of the language model's word embeddings.
        num_vectors: P for each region.

    Raises:
        ValueError: a size under 1.

    Example:
        >>> prompt = SoftPrompt(128, model.config.hidden_size)
        >>> text = prompt.build_inputs(tokens, model.get_input_embeddings(), token_ids)
        >>> model(inputs_embeds=text.inputs_embeds, labels=text.labels).loss.backward()
    """

    def __init__(self, token_dim: int, embedding_dim: int, num_vectors: int = 1) -> None:
        super().__init__()
        sizes = {"token_dim": token_dim, "embedding_dim": embedding_dim, "num_vectors": num_vectors}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        self.token_dim, self.embedding_dim, self.num_vectors = sizes.values()
        self.norm = nn.LayerNorm(token_dim)
        self.hidden = nn.Linear(token_dim, embedding_dim)
        self.output = nn.Linear(embedding_dim, num_vectors * embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(R,C) tokens to (R,P,E) vectors.

        Raises:
            ValueError: another shape.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.token_dim:
            raise ValueError(f"tokens: expected (R,{self.token_dim}), got {tuple(tokens.shape)}")
        vectors: Tensor = self.output(nn.functional.gelu(self.hidden(self.norm(tokens))))
        return vectors.unflatten(1, (self.num_vectors, self.embedding_dim))

    def build_inputs(
        self,
        tokens: Tensor,
        word_embeddings: nn.Module,
        token_ids: Tensor,
        attention_mask: Tensor | None = None,
    ) -> PromptedText:
        """Put the vectors of each region before its text.

        Args:
            tokens: (R,C).
            word_embeddings: (R,L) ids to (R,L,E), `model.get_input_embeddings()` of transformers.
            token_ids: (R,L) int64, padded on the right.
            attention_mask: (R,L), 0 for padding; None where nothing is padded.

        Raises:
            ValueError: shapes that do not fit.
        """
        if token_ids.ndim != 2 or len(token_ids) != len(tokens):
            raise ValueError(
                f"token_ids: expected ({len(tokens)},L), a text for each token, got "
                f"{tuple(token_ids.shape)}"
            )
        is_word = torch.ones_like(token_ids) if attention_mask is None else attention_mask.long()
        if is_word.shape != token_ids.shape:
            raise ValueError(
                f"attention_mask: expected {tuple(token_ids.shape)}, as token_ids, got "
                f"{tuple(is_word.shape)}"
            )
        words: Tensor = word_embeddings(token_ids)
        if words.shape[-1] != self.embedding_dim:
            raise ValueError(
                f"word_embeddings: expected width {self.embedding_dim}, got {words.shape[-1]}"
            )
        vectors = self(tokens).to(words.dtype)
        before = is_word.new_ones(vectors.shape[:2])
        labels = token_ids.masked_fill(is_word == 0, IGNORED_LABEL)
        return PromptedText(
            torch.cat([vectors, words], dim=1),
            torch.cat([before, is_word], dim=1),
            torch.cat([before * IGNORED_LABEL, labels], dim=1),
        )
