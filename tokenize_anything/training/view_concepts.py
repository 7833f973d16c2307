"""The head of the view segmenter that names regions, trained once more on features that are kept.

Outlines and names share the segmenter while it learns, and names are the smaller part of its loss.
What its last features say about names, a head learns in minutes (compare `concept_head`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord, TextTable
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.training.token_heads import HeadConfig, fit_head
from tokenize_anything.view_outlines import show_views
from tokenize_anything.views import known_extents

VIEW_HEAD = HeadConfig(num_epochs=12, token_noise=0.1)


@torch.no_grad()
def collect_view_features(
    model: TAP,
    records: Sequence[ImageRecord],
    texts: TextTable,
    vocabulary: ConceptVocabulary,
    *,
    mirrored: bool = True,
) -> tuple[Tensor, NDArray[np.int64]]:
    """Features of all named regions, each asked for by its box as at inference.

    Args:
        model: with a view segmenter, in evaluation mode.
        records: photos with named boxes.
        texts: the table their regions refer to.
        vocabulary: whose names count.
        mirrored: also of the photos flipped left to right.

    Returns:
        features (S,F) float32, and the rows (S,) of the vocabulary.

    Raises:
        FileNotFoundError, ValueError: a photo cannot be read.
    """
    known = {name: row for row, name in enumerate(vocabulary.names)}
    parts, names = [torch.zeros(0)], []
    for record in tqdm(records, desc="features of views", mininterval=5):
        named = [
            (region, known[texts.texts[region.text_index]])
            for region in record.regions
            if not region.is_whole_image
            and region.text_index >= 0
            and texts.texts[region.text_index] in known
        ]
        if not named:
            continue
        rgb = read_image(record)
        boxes = np.array([region.box_xyxy for region, _ in named], dtype=np.float64)
        for is_mirrored in (False, True)[: 1 + mirrored]:
            if is_mirrored:
                rgb = np.ascontiguousarray(rgb[:, ::-1])
                boxes[:, [0, 2]] = rgb.shape[1] - boxes[:, [2, 0]]
            parts.append(_features(model, rgb, PointPrompts.from_boxes(boxes)))
            names += [row for _, row in named]
    return torch.cat(parts[1:] or parts), np.array(names, dtype=np.int64)


def fit_view_concepts(
    model: TAP,
    features: Tensor,
    names: NDArray[np.int64],
    vocabulary: ConceptVocabulary,
    config: HeadConfig = VIEW_HEAD,
) -> None:
    """Train `model.view_segmenter.semantic_head` on features; nothing else changes.

    The loss is the cross-entropy of the concept distribution with the name of the region.

    Args:
        model: changed in place.
        features: (S,F), see `collect_view_features`.
        names: (S,) rows of the vocabulary.
        vocabulary: in the model's concept space.
        config: how.

    Raises:
        ValueError: a model without a segmenter, other shapes, or no region.
    """
    if model.view_segmenter is None:
        raise ValueError("model: expected one with a view segmenter, got view_dim 0")
    head = model.view_segmenter.semantic_head
    width = head.layers[0].in_features
    if features.ndim != 2 or features.shape[1] != width or not 0 < len(features) == len(names):
        raise ValueError(
            f"features: expected ({len(names)},{width}), a row for each of at least one name, got "
            f"{tuple(features.shape)}"
        )
    targets = torch.from_numpy(names)
    fit_head(
        head, features,
        lambda rows, found: F.nll_loss(vocabulary.log_probs(found), targets[rows]),
        config,
    )  # fmt: skip


def _features(model: TAP, rgb: NDArray[np.uint8], prompts: PointPrompts) -> Tensor:
    """(R,F) float32 on the CPU."""
    assert model.view_segmenter is not None
    parts = []
    for _, seen in show_views(model, rgb, prompts, known_extents(prompts)):
        described = model.view_segmenter.describe(seen.pixels, seen.coords_xy, seen.labels)
        parts.append(described[1].float().cpu())
    return torch.cat(parts)
