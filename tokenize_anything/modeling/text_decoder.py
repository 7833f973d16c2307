"""Causal text decoder with rotary positions, conditioned on one semantic token (paper 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling.layers import MLP

ROTARY_BASE = 10000.0


def apply_rotary(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate interleaved channel pairs (2i, 2i+1) by their position (Su et al. 2021).

    Args:
        x: (R,heads,L,head_dim) queries or keys.
        positions: (L,) integers.
    """
    half = x.shape[-1] // 2
    exponents = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angles = positions.float()[:, None] * ROTARY_BASE**-exponents
    cos, sin = angles.cos(), angles.sin()
    even, odd = x.float().unflatten(-1, (half, 2)).unbind(-1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


@dataclass
class KVCache:
    """Keys and values of the positions decoded so far; made by one generation call and owned by it.

    `keys` and `values` are (layers,R,heads,T,head_dim), pre-allocated for T positions, of which
    the first `length` are filled.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    def select(self, rows: Tensor) -> KVCache:
        """Keep or repeat rows of the batch: `rows` (R') int64 indices or (R,) bool."""
        return KVCache(self._take(self.keys, rows), self._take(self.values, rows), self.length)

    def _take(self, values: Tensor, rows: Tensor) -> Tensor:
        """Copy the filled positions only; the others are written before they are read."""
        filled = values[:, rows, :, : self.length]
        taken = values.new_empty((*filled.shape[:3], *values.shape[3:]))
        taken[:, :, :, : self.length] = filled
        return taken


class TextBlock(nn.Module):
    """Pre-norm causal block."""

    def __init__(self, config: TAPConfig, dropout: float) -> None:
        super().__init__()
        self.num_heads = config.text_heads
        self.norm1 = nn.LayerNorm(config.text_dim)
        self.qkv = nn.Linear(config.text_dim, 3 * config.text_dim)
        self.proj = nn.Linear(config.text_dim, config.text_dim)
        self.norm2 = nn.LayerNorm(config.text_dim)
        self.mlp = MLP(config.text_dim, config.text_mlp_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Transform (R,L,E): a whole sequence, or with a cache the positions after its length."""
        x = x + self.dropout(self._attend(self.norm1(x), cache, layer))
        return x + self.dropout(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        rows, length, dim = x.shape
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + length, device=x.device)
        qkv = self.qkv(x).reshape(rows, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = apply_rotary(query, positions), apply_rotary(key, positions)
        if cache is not None:
            cache.keys[layer, :, :, start : start + length] = key
            cache.values[layer, :, :, start : start + length] = value
            key = cache.keys[layer, :, :, : start + length]
            value = cache.values[layer, :, :, : start + length]
        dropout = self.dropout.p if self.training else 0.0
        if start > 0 and length > 1:
            raise ValueError(f"with a filled cache, decode one position at a time, got {length}")
        x = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=length > 1
        )
        return self.proj(x.transpose(1, 2).reshape(rows, length, dim))


class TextDecoder(nn.Module):
    """Semantic token to caption: [projected token][start][word 1]… → next-word logits."""

    def __init__(self, config: TAPConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.max_text_length = config.max_text_length
        self.num_heads = config.text_heads
        self.visual_proj = nn.Linear(config.decoder_dim, config.text_dim, bias=False)
        self.word_embedding = nn.Embedding(config.vocabulary_size, config.text_dim)
        self.blocks = nn.ModuleList(TextBlock(config, dropout) for _ in range(config.text_depth))
        self.norm = nn.LayerNorm(config.text_dim)
        self.word_proj = nn.Linear(config.text_dim, config.vocabulary_size, bias=False)

    def forward(self, semantic_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Score whole captions (teacher forcing).

        Args:
            semantic_tokens: (R,C), one per region.
            token_ids: (R,L) starting with the start token; L + 1 <= max_text_length.

        Returns:
            logits (R,L,V) float32; position i predicts token i + 1.
        """
        if token_ids.shape[1] + 1 > self.max_text_length:
            raise ValueError(
                f"token_ids: expected at most {self.max_text_length - 1} tokens, "
                f"got {token_ids.shape[1]}"
            )
        visual = self.visual_proj(semantic_tokens).unsqueeze(1)
        x = torch.cat([visual, self.word_embedding(token_ids)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.word_proj(self.norm(x[:, 1:])).float()

    def start_cache(self, semantic_tokens: Tensor) -> KVCache:
        """Allocate a cache for (R,C) semantic tokens and fill in position 0, the visual token."""
        head_dim = self.visual_proj.out_features // self.num_heads
        rows = semantic_tokens.shape[0]
        shape = (len(self.blocks), rows, self.num_heads, self.max_text_length, head_dim)
        cache = KVCache(semantic_tokens.new_zeros(shape), semantic_tokens.new_zeros(shape))
        self._advance(self.visual_proj(semantic_tokens).unsqueeze(1), cache)
        return cache

    def next_logits(self, token_ids: Tensor, cache: KVCache) -> Tensor:
        """Feed one token per row, (R,), and return the logits (R,V) float32 of the next one.

        The cache grows by one position, in place.
        """
        x = self._advance(self.word_embedding(token_ids).unsqueeze(1), cache)
        return self.word_proj(self.norm(x[:, 0])).float()

    def _advance(self, x: Tensor, cache: KVCache) -> Tensor:
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        cache.length += x.shape[1]
        return x
