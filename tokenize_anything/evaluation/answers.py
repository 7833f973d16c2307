"""What protocols ask of a predictor: its four steps, and prompts answered with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.image_transform import restore_masks
from tokenize_anything.modeling import TAP, RegionOutputs
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import DecodedImage, EncodedImage
from tokenize_anything.text_generation import GenerationConfig
from tokenize_anything.zooming import decode_closely

MAX_REGIONS_AT_ONCE = 256  # prompts of one decoder call, as in the published protocols


class RegionModel(Protocol):
    """The steps of `TAPPredictor` that an evaluation uses; `RulePredictor` has them too."""

    concepts: ConceptVocabulary | None

    def encode_images(self, images: Any) -> Any:
        """One photo, or a list of photos; one EncodedImage, or a list of them."""

    def decode_regions(
        self, encoded: EncodedImage, prompts: PointPrompts, *, all_slots: bool = True
    ) -> RegionOutputs:
        """Prompts on one encoded photo."""

    def describe_concepts(
        self, semantic_embeddings: Tensor | np.ndarray, *, top_k: int = 1
    ) -> tuple[list[list[str]], np.ndarray]:
        """Names and probabilities of semantic embeddings (R,D)."""

    def write_captions(
        self, semantic_tokens: Tensor | np.ndarray, *, generation: GenerationConfig | None = None
    ) -> tuple[list[str], np.ndarray]:
        """Captions and scores of semantic tokens (R,C)."""


@dataclass(frozen=True, eq=False)
class PromptedPhoto:
    """A decoded photo (H,W,3) uint8 RGB and its prompts, original pixels."""

    rgb: np.ndarray
    prompts: PointPrompts


def answer_photos(
    predictor: RegionModel,
    photos: Sequence[PromptedPhoto | None],
    *,
    with_masks: bool = True,
    with_names: bool = True,
) -> list[DecodedImage | None]:
    """Encode photos together and decode the prompts of each; None answers None."""
    wanted = {"with_masks": with_masks, "with_names": with_names}
    present = [photo for photo in photos if photo is not None]
    encoded = iter(predictor.encode_images([photo.rgb for photo in present]))
    return [
        None if photo is None else decode_prompts(predictor, next(encoded), photo.prompts, **wanted)
        for photo in photos
    ]


def decode_prompts(
    predictor: RegionModel,
    encoded: EncodedImage,
    prompts: PointPrompts,
    *,
    with_masks: bool = True,
    with_names: bool = True,
) -> DecodedImage:
    """The routed outputs of prompts on one encoded photo, at most 256 decoded at once.

    A model that looks at small regions twice does so here as in its predictor (see `zooming`).

    Args:
        predictor: the model, or a rule in its place.
        encoded: from its `encode_images`.
        prompts: original pixels.
        with_masks: False leaves the masks out; they are then (0,H,W).
        with_names: False leaves out what a second look adds to tokens and embeddings alone.

    Returns:
        DecodedImage; vectors stay on the device of the predictor.
    """
    if (model := second_look(predictor)) is not None:
        with torch.inference_mode():
            found = decode_closely(
                model, encoded, prompts, chunk=MAX_REGIONS_AT_ONCE, zoom=model.config.zoom,
                with_names=with_names,
            )  # fmt: skip
        return found if with_masks else dataclasses.replace(found, masks=found.masks[:0])
    masks, columns = [], []
    for start in range(0, max(len(prompts), 1), MAX_REGIONS_AT_ONCE):
        part = prompts[start : start + MAX_REGIONS_AT_ONCE]
        outputs = predictor.decode_regions(encoded, part, all_slots=False)
        if with_masks:
            masks.append(restore_masks(outputs.select(outputs.mask_logits), encoded.frame))
        fields = (outputs.iou_scores, outputs.semantic_tokens, outputs.semantic_embeddings)
        chosen = [outputs.select(values) for values in fields]
        columns.append([*chosen, outputs.mask_index, outputs.select(outputs.mask_tokens)])
    empty = np.zeros((0, *encoded.original_hw), bool)
    vectors = [torch.cat(column) for column in zip(*columns, strict=True)]
    return DecodedImage(np.concatenate([empty, *masks]), *vectors)


def second_look(predictor: RegionModel) -> TAP | None:
    """The network of a predictor whose model looks at small regions twice; None for all others."""
    model = getattr(predictor, "model", None)
    return model if isinstance(model, TAP) and model.config.zoom else None


def split_rows(values: Sequence[Any] | np.ndarray, counts: Sequence[int]) -> list[Any]:
    """Cut what was computed for the regions of several photos together into one part per photo."""
    ends = np.cumsum(counts)
    return [values[end - count : end] for count, end in zip(counts, ends, strict=True)]
