"""A small convolutional network that says what one outlined region of a photo is.

It is no part of the paper. It looks at a view in which the region has a known size, as the view
segmenter does, and at the mask that was found; and, where the configuration says so, at a wider
view that shows what is around the region. See `view_names`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling.layers import PredictionHead
from tokenize_anything.modeling.view_encoder import (
    ViewEncoder,
    cover_boxes,
    pool_levels,
)

NUM_REGION_MAPS = 2
HEAD_DIM = 384


class ViewNamer(ViewEncoder):
    """Pixels, box and mask of each view to features, and what they add to semantic tokens.

    The features become a part of the region's semantic token (R,C), which saw the whole photo;
    `semantic_head` reads an embedding (R,D) in the concept space from the sum.

    Args:
        config: sizes.
        dropout: share of features and tokens that training leaves out.
    """

    def __init__(self, config: TAPConfig, dropout: float = 0.0) -> None:
        width = config.namer_dim or config.view_dim
        super().__init__(width, NUM_REGION_MAPS)
        self.dropout = dropout
        self.wide = ViewEncoder(width, 1) if config.wide_size else None
        num_looks = 1 if self.wide is None else 2
        self.token_head = nn.Linear(num_looks * self.pooled_dim, config.decoder_dim)
        self.semantic_head = PredictionHead(config.decoder_dim, HEAD_DIM, config.semantic_dim)

    def forward(self, pixels: Tensor, boxes_xyxy: Tensor, masks: Tensor) -> Tensor:
        """Features (R,20*width) of one region in each view.

        Args:
            pixels: (R,3,v,v) normalised, v a multiple of 32.
            boxes_xyxy: (R,4) pixels of the view.
            masks: (R,v,v) in [0, 1]; where one is empty, the box counts in its place.
        """
        boxes = cover_boxes(boxes_xyxy, pixels.shape[-1])
        return self.look(pixels, boxes, masks)

    def look(self, pixels: Tensor, boxes: Tensor, masks: Tensor) -> Tensor:
        """The same with boxes drawn already, (R,v,v) in [0, 1]."""
        maps = torch.stack([boxes.float(), masks.float()], dim=1)
        is_empty = ~maps[:, 1].flatten(1).any(dim=1)
        inside = torch.where(is_empty[:, None, None], maps[:, 0], maps[:, 1])
        return pool_levels(self.encode(pixels, maps), inside)

    def look_around(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        """Features (R,20*width) of wider views, which `fuse` wants behind those of the regions.

        Args:
            pixels: (R,3,v,v) normalised, v a multiple of 32.
            boxes: (R,v,v) in [0, 1], the region's box drawn.
        """
        assert self.wide is not None
        return pool_levels(self.wide.encode(pixels, boxes[:, None].float()), boxes.float())

    def fuse(self, features: Tensor, semantic_tokens: Tensor) -> Tensor:
        """Semantic tokens (R,C) with what the features (R,F) say added to them.

        F is 20 times the width, twice that with a wider view.
        """
        features = F.dropout(features, self.dropout, self.training)
        tokens = F.dropout(semantic_tokens, self.dropout, self.training)
        return tokens + self.token_head(features).to(tokens.dtype)
