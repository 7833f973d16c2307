"""Image decoder: per prompt four masks, four semantic tokens, four IoU estimates (paper 3.2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_anything.config import NUM_MASK_SLOTS, TAPConfig
from tokenize_anything.modeling.layers import PredictionHead
from tokenize_anything.modeling.two_way_transformer import ImageContext, TwoWayTransformer


@dataclass(frozen=True)
class RegionOutputs:
    """Everything the image decoder says about R prompts, in the model frame.

    mask_logits: (R,4,4h,4w), (R,1,4h,4w) when only the routed slot was asked for, or (R,0,4h,4w)
        when no mask was.
    iou_scores: (R,4) float32 estimates of the IoU of each mask.
    mask_tokens: (R,4,C).
    semantic_tokens: (R,4,C), input of the text decoder.
    semantic_embeddings: (R,4,D), or (R,1,D) for the routed slot only, in the concept space.
    mask_index: (R,) the slot `select_mask_index` chose.
    """

    mask_logits: Tensor
    iou_scores: Tensor
    mask_tokens: Tensor
    semantic_tokens: Tensor
    semantic_embeddings: Tensor
    mask_index: Tensor

    def __len__(self) -> int:
        return self.iou_scores.shape[0]

    @classmethod
    def concatenate(cls, parts: Sequence[RegionOutputs]) -> RegionOutputs:
        """Join outputs along R, in order."""
        fields = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in fields})

    def select(self, values: Tensor) -> Tensor:
        """Pick the chosen slot of `values` (R,4,…) or (R,1,…). Returns (R,…)."""
        if values.shape[1] == 1:
            return values[:, 0]
        return values[torch.arange(len(self), device=values.device), self.mask_index]


@dataclass(frozen=True)
class AttendedPrompts:
    """What R prompts have become before any mask is made, in the model frame.

    features: (R,n,C) the cells of the image as each prompt has rewritten them.
    iou_token: (R,C), input of the IoU head.
    iou_scores: (R,4) float32 estimates of the IoU of each mask.
    mask_tokens: (R,4,C).
    semantic_tokens: (R,4,C), input of the text decoder.
    """

    features: Tensor
    iou_token: Tensor
    iou_scores: Tensor
    mask_tokens: Tensor
    semantic_tokens: Tensor


def select_mask_index(iou_scores: Tensor, is_box: Tensor) -> Tensor:
    """Choose one of the four outputs: slot 0 for a box, else the best of slots 1 to 3.

    Args:
        iou_scores: (…,4).
        is_box: (…) bool, whether the first point of the prompt is a box corner (label 2).

    Returns:
        (…) int64.
    """
    best_of_rest = iou_scores[..., 1:].argmax(dim=-1) + 1
    return torch.where(is_box, torch.zeros_like(best_of_rest), best_of_rest)


class ImageDecoder(nn.Module):
    """Two-way transformer with learned output tokens and their prediction heads."""

    def __init__(self, config: TAPConfig, dropout: float = 0.0) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.transformer = TwoWayTransformer(config, dropout)
        self.semantic_tokens = nn.Parameter(torch.empty(NUM_MASK_SLOTS, dim).normal_())
        self.iou_token = nn.Parameter(torch.empty(1, dim).normal_())
        self.mask_tokens = nn.Parameter(torch.empty(NUM_MASK_SLOTS, dim).normal_())
        self.upscale1 = nn.ConvTranspose2d(dim, dim // 4, 2, stride=2)
        self.upscale_norm = nn.LayerNorm(dim // 4)
        self.upscale2 = nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2)
        self.mask_heads = nn.ModuleList(
            PredictionHead(dim, dim, dim // 8) for _ in range(NUM_MASK_SLOTS)
        )
        self.iou_head = PredictionHead(dim, dim, NUM_MASK_SLOTS)
        self.semantic_head = PredictionHead(dim, config.semantic_dim, config.semantic_dim)

    def prepare(self, image_features: Tensor, grid_encoding: Tensor) -> ImageContext:
        """Compute what all prompts of an image share, once.

        Args:
            image_features: (B,C,h,w).
            grid_encoding: (C,h,w).
        """
        features = image_features.flatten(2).transpose(1, 2).contiguous()
        return self.transformer.prepare(features, grid_encoding.flatten(1).transpose(0, 1))

    def forward(
        self,
        context: ImageContext,
        point_embeddings: Tensor,
        is_box: Tensor,
        *,
        all_slots: bool = True,
        with_masks: bool = True,
    ) -> RegionOutputs:
        """Decode the same number of prompts for each image.

        Args:
            context: from `prepare`, of B images with a square grid.
            point_embeddings: (B,P,N,C).
            is_box: (B,P) bool, which routing rule applies.
            all_slots: False computes mask and embedding of the routed slot only.
            with_masks: False computes no mask.

        Returns:
            RegionOutputs of R = B * P regions, image-major.
        """
        prompts = self.attend(context, point_embeddings)
        mask_index = select_mask_index(prompts.iou_scores, is_box.flatten())
        rows = torch.arange(len(mask_index), device=mask_index.device)
        described = prompts.semantic_tokens
        if not all_slots:
            described = described[rows, mask_index].unsqueeze(1)
        if with_masks:
            weights = self._mask_weights(prompts.mask_tokens)
            if not all_slots:
                weights = weights[rows, mask_index].unsqueeze(1)
            mask_logits = self._mask_logits(prompts.features, weights)
        else:
            side = 4 * math.isqrt(prompts.features.shape[1])
            mask_logits = prompts.features.new_zeros(len(rows), 0, side, side)
        return RegionOutputs(
            mask_logits=mask_logits,
            iou_scores=prompts.iou_scores,
            mask_tokens=prompts.mask_tokens,
            semantic_tokens=prompts.semantic_tokens,
            semantic_embeddings=self.semantic_head(described),
            mask_index=mask_index,
        )

    def attend(self, context: ImageContext, point_embeddings: Tensor) -> AttendedPrompts:
        """The first half of `forward`, which scores masks before any of them is made.

        Args:
            context: from `prepare`, of B images with a square grid.
            point_embeddings: (B,P,N,C).

        Returns:
            AttendedPrompts of R = B * P prompts, image-major.
        """
        batch, prompts = point_embeddings.shape[:2]
        learned = torch.cat([self.semantic_tokens, self.iou_token, self.mask_tokens])
        learned = learned.to(point_embeddings.dtype).expand(batch, prompts, -1, -1)
        tokens, features = self.transformer(torch.cat([learned, point_embeddings], dim=2), context)
        tokens = tokens.flatten(0, 1)  # (R,T,C)
        semantic_tokens, iou_token, mask_tokens = tokens[:, :9].split([4, 1, 4], dim=1)
        return AttendedPrompts(
            features=features.flatten(0, 1),
            iou_token=iou_token[:, 0],
            iou_scores=self.iou_head(iou_token[:, 0]).float(),
            mask_tokens=mask_tokens,
            semantic_tokens=semantic_tokens,
        )

    def make_masks(self, prompts: AttendedPrompts, rows: Tensor, slots: Tensor) -> Tensor:
        """Masks of chosen slots only; prompts without a chosen slot cost nothing.

        Args:
            prompts: R prompts, from `attend`.
            rows: (K,) which prompt each mask belongs to.
            slots: (K,) which of its four slots.

        Returns:
            (K,4h,4w) mask logits.
        """
        used, place = rows.unique(return_inverse=True)
        weights = self._mask_weights(prompts.mask_tokens[used])
        return self._mask_logits(prompts.features[used], weights)[place, slots]

    def upscale(self, features: Tensor) -> Tensor:
        """Features (R,n,C) to channels (R,n,4,4,C/8), whose product with weights are mask logits.

        A transposed convolution whose kernel equals its stride is one matrix product per cell, so
        channels stay last and only the finished logits are put in image order.
        """
        x = F.gelu(self.upscale_norm(_upscale(features, self.upscale1)))  # (R,n,4,C/4)
        return F.gelu(_upscale(x, self.upscale2))

    def _mask_weights(self, mask_tokens: Tensor) -> Tensor:
        """Per-pixel weights of each mask, (R,4,C/8)."""
        heads = enumerate(self.mask_heads)
        return torch.stack([head(mask_tokens[:, slot]) for slot, head in heads], dim=1)

    def _mask_logits(self, features: Tensor, weights: Tensor) -> Tensor:
        """Features (R,n,C) of a square grid and weights (R,slots,C/8) to logits (R,slots,4h,4w)."""
        side = math.isqrt(features.shape[1])
        logits = self.upscale(features).flatten(1, 3) @ weights.transpose(1, 2)  # (R,n*16,slots)
        count, slots = weights.shape[:2]
        logits = logits.reshape(count, side, side, 2, 2, 2, 2, slots)
        logits = logits.permute(0, 7, 1, 3, 5, 2, 4, 6)  # slots, then rows, then columns
        return logits.reshape(count, slots, 4 * side, 4 * side)


def _upscale(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """Apply a 2x2 stride-2 transposed convolution to cells (…,C); returns (…,4,C')."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2*2*C',C)
    bias = layer.bias.repeat(4) if layer.bias is not None else None
    return F.linear(x, weight, bias).unflatten(-1, (4, -1))
