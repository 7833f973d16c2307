"""TAP: image encoder, prompt encoder, image decoder and text decoder, composed (paper figure 2)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from tokenize_anything.config import PointLabel, TAPConfig
from tokenize_anything.modeling.click_segmenter import ClickSegmenter
from tokenize_anything.modeling.folded_views import FoldedViews, NetworkT
from tokenize_anything.modeling.image_decoder import (
    AttendedPrompts,
    ImageDecoder,
    RegionOutputs,
)
from tokenize_anything.modeling.image_encoder import ImageEncoder
from tokenize_anything.modeling.prompt_encoder import PromptEncoder
from tokenize_anything.modeling.text_decoder import TextDecoder
from tokenize_anything.modeling.two_way_transformer import ImageContext
from tokenize_anything.modeling.view_namer import ViewNamer
from tokenize_anything.modeling.view_segmenter import ViewSegmenter


class TAP(nn.Module):
    """The network. Tensors in, tensors out; pixels and coordinates are in the model frame.

    `fast_views` says whether the networks for views run in bfloat16, whatever the weights are in.

    Args:
        config: sizes.
        drop_path: stochastic depth of the last encoder block; earlier ones ramp up to it.
        decoder_dropout: dropout of the image decoder.
        text_dropout: dropout of the text decoder.
    """

    def __init__(
        self,
        config: TAPConfig,
        *,
        drop_path: float = 0.0,
        decoder_dropout: float = 0.0,
        text_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.fast_views = False
        self._folded_views = FoldedViews()
        self.image_encoder = ImageEncoder(config, drop_path)
        self.prompt_encoder = PromptEncoder(config.decoder_dim, config.image_size)
        self.image_decoder = ImageDecoder(config, decoder_dropout)
        self.text_decoder = TextDecoder(config, text_dropout)
        self.view_segmenter = ViewSegmenter(config) if config.view_dim else None
        has_clicks = config.view_dim and config.click_size
        self.click_segmenter = ClickSegmenter(config) if has_clicks else None
        self.view_namer = ViewNamer(config) if config.view_dim and config.namer_size else None

    def view_precision(self) -> AbstractContextManager[object]:
        """Where networks for views run: in bfloat16 if `fast_views`, else as the caller does."""
        if not self.fast_views:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def fold_views(self, network: NetworkT) -> NetworkT:
        """One of this model's networks for views as inference runs it, see `folded_views`."""
        return self._folded_views.get(network, torch.bfloat16 if self.fast_views else None)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B,3,S,S) normalised pixels to image_features (B,C,h,w)."""
        return self.image_encoder(pixels)

    def encode_prompts(self, coords_xy: Tensor, labels: Tensor) -> Tensor:
        """(R,N,2) model-frame pixels and (R,N) labels to point_embeddings (R,N,C)."""
        return self.prompt_encoder(coords_xy, labels)

    def prepare_regions(self, image_features: Tensor) -> ImageContext:
        """Make images (B,C,h,w) ready for any number of `decode_regions` calls."""
        grid_encoding = self.prompt_encoder.encode_grid(*image_features.shape[-2:])
        return self.image_decoder.prepare(image_features, grid_encoding)

    def decode_regions(
        self,
        context: ImageContext,
        coords_xy: Tensor,
        labels: Tensor,
        *,
        all_slots: bool = True,
        with_masks: bool = True,
    ) -> RegionOutputs:
        """Decode prompts; all images carry the same number of prompts.

        Args:
            context: B images, from `prepare_regions`.
            coords_xy: (B,P,N,2) model-frame pixels.
            labels: (B,P,N) point labels 0..4.
            all_slots: False computes the mask of the routed slot only.
            with_masks: False computes no mask.

        Returns:
            RegionOutputs of R = B * P regions, image-major.
        """
        point_embeddings = self.encode_prompts(coords_xy, labels)
        is_box = labels[..., 0] == PointLabel.TOP_LEFT
        return self.image_decoder(
            context, point_embeddings, is_box, all_slots=all_slots, with_masks=with_masks
        )

    def attend_prompts(
        self, context: ImageContext, coords_xy: Tensor, labels: Tensor
    ) -> AttendedPrompts:
        """The first half of `decode_regions`: scores and tokens, before any mask is made.

        `image_decoder.make_masks` and `image_decoder.semantic_head` finish the chosen ones.

        Args:
            context: B images, from `prepare_regions`.
            coords_xy: (B,P,N,2) model-frame pixels.
            labels: (B,P,N) point labels 0..4.

        Returns:
            AttendedPrompts of R = B * P prompts, image-major.
        """
        return self.image_decoder.attend(context, self.encode_prompts(coords_xy, labels))

    def score_captions(self, semantic_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """(R,C) semantic tokens and (R,L) token ids to next-token logits (R,L,V)."""
        return self.text_decoder(semantic_tokens, token_ids)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.image_encoder.pos_embed.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.image_encoder.pos_embed.device
