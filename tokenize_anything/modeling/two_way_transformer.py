"""Two-way attention between prompt tokens and image features (SAM, Kirillov et al. 2023, App. A).

A decoder call looks at P prompts on each of B images. Most of its cost lies in the n = h*w image
features that every prompt gets a copy of, so work on them is avoided in two ways.

What does not depend on the prompts is computed once per image (`prepare`): the projections of the
image features in the first block, which no prompt has changed yet, and those of the grid's
position codes in the later ones.

Features that belong to one prompt are never projected. A prompt has few tokens T, so the
projection moves to the tokens' side: a score q·(W x) equals (Wᵀ q)·x, and a weighted mean of
values W x is W times the weighted mean of x. Likewise the update that a feature receives from the
tokens is a mix of heads * T vectors, whose output projection is applied before mixing. All are
identities of linear algebra; the results differ from the plain order by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling.layers import MLP


@dataclass(frozen=True)
class BlockContext:
    """What one block needs of an image, the same for all its prompts.

    First block: `read_keys`, `read_values` and `write_queries` are projected image features,
    (B,heads,n,head_dim). Later blocks: `read_keys` and `write_queries` are projected position
    codes, (heads,head_dim,n), and there are no values.
    """

    read_keys: Tensor
    write_queries: Tensor
    read_values: Tensor | None = None


@dataclass(frozen=True)
class ImageContext:
    """An image made ready for any number of prompts.

    features: (B,1,n,C).
    blocks: one context per block.
    final_keys: (heads,head_dim,n) projected position codes of the last attention.
    """

    features: Tensor
    blocks: tuple[BlockContext, ...]
    final_keys: Tensor


class ProjectedAttention(nn.Module):
    """Multi-head attention with separate projections and an inner width of its own."""

    def __init__(self, dim: int, inner_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (inner_dim // num_heads) ** -0.5
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.proj = nn.Linear(inner_dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from `query` (Z,Lq,C) to `key` and `value` (Z,Lk,C)."""
        key, value = self.split_heads(self.k_proj(key)), self.split_heads(self.v_proj(value))
        return self.attend(query, key, value)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from `query` (Z,Lq,C) to projected keys and values (Z,heads,Lk,head_dim)."""
        x = F.scaled_dot_product_attention(self.split_heads(self.q_proj(query)), keys, values)
        return self.proj(x.transpose(-2, -3).flatten(-2))

    def attend_own(self, tokens: Tensor, features: Tensor, projected_codes: Tensor) -> Tensor:
        """Attend from tokens (B,P,T,C) to features (B,P,n,C) that belong to each prompt.

        The features' position codes come projected, (heads,head_dim,n), from `project_codes`.
        """
        query = self.split_heads(self.q_proj(tokens) * self.scale)  # (B,P,heads,T,head_dim)
        scores = self.folded_scores(query, self.k_proj.weight, features, projected_codes)
        mean = (scores.softmax(dim=-1) @ features).unflatten(2, (self.num_heads, -1))
        value = mean @ self.split_weight(self.v_proj.weight).transpose(-1, -2)
        return self.proj(value.transpose(2, 3).flatten(-2) + self.v_proj.bias)

    def mix_into(self, features: Tensor, scores: Tensor, tokens: Tensor) -> Tensor:
        """Add to features (B,P or 1,n,C) what they read from tokens (B,P,T,C).

        The scores are (B,P,heads,T,n), before the softmax over T.
        """
        batch, prompts = tokens.shape[:2]
        output = self.proj.weight.unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)
        mixed = self.split_heads(self.v_proj(tokens)) @ output  # (B,P,heads,T,C)
        mixed = mixed + self.proj.bias / self.num_heads  # the weights of each head sum to one
        weights = scores.softmax(dim=-2).flatten(2, 3).flatten(0, 1)
        update = torch.baddbmm(
            features.expand(-1, prompts, -1, -1).flatten(0, 1),
            weights.transpose(1, 2),
            mixed.flatten(2, 3).flatten(0, 1),
        )
        return update.unflatten(0, (batch, prompts))

    def folded_scores(
        self, queries: Tensor, weight: Tensor, features: Tensor, projected_codes: Tensor
    ) -> Tensor:
        """Scores of queries (B,P,heads,T,head_dim) against `weight` applied to coded features.

        The codes come from `project_codes` and carry the bias that goes with `weight`. Returns
        (B,P,heads*T,n).
        """
        batch, prompts, _, num_tokens = queries.shape[:4]
        by_head = queries.movedim(2, 0).flatten(1, 3)  # (heads,B*P*T,head_dim)
        code_scores = (by_head @ projected_codes).unflatten(1, (batch * prompts, num_tokens))
        folded = (queries @ self.split_weight(weight)).flatten(2, 3).flatten(0, 1)
        scores = torch.baddbmm(
            code_scores.transpose(0, 1).flatten(1, 2),
            folded,
            features.flatten(0, 1).transpose(1, 2),
        )
        return scores.unflatten(0, (batch, prompts))

    def project_codes(self, codes: Tensor, projection: nn.Linear) -> Tensor:
        """Position codes (n,C) through `projection` and its bias, (heads,head_dim,n)."""
        return self.split_heads(projection(codes)).transpose(-1, -2)

    def split_heads(self, x: Tensor) -> Tensor:
        """(…,L,inner) to (…,heads,L,head_dim)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

    def split_weight(self, weight: Tensor) -> Tensor:
        """(inner,C) to (heads,head_dim,C)."""
        return weight.unflatten(0, (self.num_heads, -1))


class TwoWayBlock(nn.Module):
    """Self-attention, token-to-image, MLP, image-to-token; each followed by its LayerNorm."""

    def __init__(self, config: TAPConfig, dropout: float = 0.0) -> None:
        super().__init__()
        dim, heads = config.decoder_dim, config.decoder_heads
        self.self_attn = ProjectedAttention(dim, dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.token_to_image = ProjectedAttention(dim, dim // 2, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, config.decoder_mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.image_to_token = ProjectedAttention(dim, dim // 2, heads)
        self.norm4 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def prepare(self, features: Tensor, codes: Tensor) -> BlockContext:
        """Project what all prompts share: of features (B,n,C) and codes (n,C)."""
        read, write = self.token_to_image, self.image_to_token
        return BlockContext(
            read.project_codes(codes, read.k_proj),
            write.project_codes(codes, write.q_proj),
        )

    def forward(
        self, tokens: Tensor, token_codes: Tensor, features: Tensor, context: BlockContext
    ) -> tuple[Tensor, Tensor]:
        """Exchange information once.

        Args:
            tokens: (B,P,T,C).
            token_codes: (B,P,T,C) position codes of the tokens.
            features: (B,P,n,C), or (B,1,n,C) for the first block.
            context: from `prepare`.

        Returns:
            tokens (B,P,T,C) and features (B,P,n,C).
        """
        tokens = self.norm1(self._attend_self(tokens, token_codes))
        update = self._read_image(tokens + token_codes, features, context)
        tokens = self.norm2(tokens + self.dropout(update))
        tokens = self.norm3(tokens + self.dropout(self.mlp(tokens)))
        keys = self.image_to_token.k_proj(tokens + token_codes) * self.image_to_token.scale
        keys = self.image_to_token.split_heads(keys)  # (B,P,heads,T,head_dim)
        scores = self._write_scores(keys, features, context)
        return tokens, self.norm4(self.image_to_token.mix_into(features, scores, tokens))

    def _attend_self(self, tokens: Tensor, token_codes: Tensor) -> Tensor:
        query, value = (tokens + token_codes).flatten(0, 1), tokens.flatten(0, 1)
        update = self.self_attn(query, query, value).view_as(tokens)
        return tokens + self.dropout(update)

    def _read_image(self, tokens: Tensor, features: Tensor, context: BlockContext) -> Tensor:
        return self.token_to_image.attend_own(tokens, features, context.read_keys)

    def _write_scores(self, keys: Tensor, features: Tensor, context: BlockContext) -> Tensor:
        """Scores (B,P,heads,T,n) of keys (B,P,heads,T,head_dim) for each feature as a query."""
        attention = self.image_to_token
        weight = attention.q_proj.weight
        scores = attention.folded_scores(keys, weight, features, context.write_queries)
        return scores.unflatten(2, keys.shape[2:4])


class FirstTwoWayBlock(TwoWayBlock):
    """The first block: its image features are still the same for all prompts.

    Its self-attention has neither position codes nor a residual, as published.
    """

    def prepare(self, features: Tensor, codes: Tensor) -> BlockContext:
        """Project features (B,n,C) with their codes (n,C), once for all prompts."""
        read, write = self.token_to_image, self.image_to_token
        return BlockContext(
            read.split_heads(read.k_proj(features + codes)),
            write.split_heads(write.q_proj(features + codes)),
            read.split_heads(read.v_proj(features)),
        )

    def _attend_self(self, tokens: Tensor, token_codes: Tensor) -> Tensor:
        flat = tokens.flatten(0, 1)
        return self.self_attn(flat, flat, flat).view_as(tokens)

    def _read_image(self, tokens: Tensor, features: Tensor, context: BlockContext) -> Tensor:
        assert context.read_values is not None
        queries = tokens.flatten(1, 2)  # the tokens of all prompts, one long query per image
        update = self.token_to_image.attend(queries, context.read_keys, context.read_values)
        return update.view_as(tokens)

    def _write_scores(self, keys: Tensor, features: Tensor, context: BlockContext) -> Tensor:
        prompts, num_tokens = keys.shape[1], keys.shape[3]
        keys = keys.transpose(1, 2).flatten(2, 3)  # (B,heads,P*T,head_dim)
        scores = keys @ context.write_queries.transpose(-1, -2)  # (B,heads,P*T,n)
        return scores.unflatten(2, (prompts, num_tokens)).transpose(1, 2)


class TwoWayTransformer(nn.Module):
    """Blocks of two-way attention, then one last token-to-image attention."""

    def __init__(self, config: TAPConfig, dropout: float = 0.0) -> None:
        super().__init__()
        kinds = [FirstTwoWayBlock] + [TwoWayBlock] * (config.decoder_depth - 1)
        self.blocks = nn.ModuleList(kind(config, dropout) for kind in kinds)
        self.final_token_to_image = ProjectedAttention(
            config.decoder_dim, config.decoder_dim // 2, config.decoder_heads
        )
        self.norm = nn.LayerNorm(config.decoder_dim)
        self.dropout = nn.Dropout(dropout)

    def prepare(self, features: Tensor, codes: Tensor) -> ImageContext:
        """Compute what all prompts of an image share.

        Args:
            features: (B,n,C) image features.
            codes: (n,C) position codes of the grid.
        """
        final = self.final_token_to_image
        blocks = cast(Iterable[TwoWayBlock], self.blocks)
        return ImageContext(
            features.unsqueeze(1),
            tuple(block.prepare(features, codes) for block in blocks),
            final.project_codes(codes, final.k_proj),
        )

    def forward(self, tokens: Tensor, context: ImageContext) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            tokens: (B,P,T,C); the initial tokens are their own position codes.
            context: from `prepare`, of B images.

        Returns:
            tokens (B,P,T,C) and features (B,P,n,C).
        """
        token_codes, features = tokens, context.features
        for block, block_context in zip(self.blocks, context.blocks, strict=True):
            tokens, features = block(tokens, token_codes, features, block_context)
        update = self.final_token_to_image.attend_own(
            tokens + token_codes, features, context.final_keys
        )
        return self.norm(tokens + self.dropout(update)), features
