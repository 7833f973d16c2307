"""Point-only prompt encoder: clicks, box corners and padding are all labelled points."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenize_anything.config import PointLabel
from tokenize_anything.modeling.position_encoding import PositionEncoding


class PromptEncoder(nn.Module):
    """Labelled points to tokens: position code plus the embedding of the label.

    Labels: 0 background, 1 foreground, 2 top-left and 3 bottom-right corner of a box, 4 padding.
    """

    def __init__(self, dim: int, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.position_encoding = PositionEncoding(dim)
        self.label_embedding = nn.Embedding(len(PointLabel), dim)

    def forward(self, coords_xy: Tensor, labels: Tensor) -> Tensor:
        """Encode prompts.

        Args:
            coords_xy: (R,N,2) pixels of the padded square the model sees; positions outside it
                count as the nearest border.
            labels: (R,N) integers 0..4; the coordinate of a padding point is ignored.

        Returns:
            point_embeddings (R,N,C) in the dtype of the model.
        """
        fractions = ((coords_xy.float() + 0.5) / self.image_size).clamp(0.0, 1.0)
        is_real = (labels != PointLabel.PADDING).unsqueeze(-1)
        codes = torch.where(is_real, self.position_encoding(fractions), 0.0)
        embeddings = self.label_embedding(labels.long())
        return codes.to(embeddings.dtype) + embeddings

    def encode_grid(self, height: int, width: int) -> Tensor:
        """Position codes of the feature grid, (C,h,w), in the dtype of the model."""
        codes = self.position_encoding.encode_grid(height, width)
        return codes.to(self.label_embedding.weight.dtype)
