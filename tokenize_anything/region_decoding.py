"""Prompts on one encoded photo: decoded in chunks that fit into memory, and brought to its size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.config import NUM_MASK_SLOTS, TAPConfig
from tokenize_anything.geometry import masks_to_boxes
from tokenize_anything.image_transform import ImageFrame, prepare_images, restore_masks
from tokenize_anything.modeling import TAP, RegionOutputs
from tokenize_anything.prompts import PointPrompts

REGION_MEMORY = 64 * 2**20  # bytes of decoder activations at once; more is slower on a CPU


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One encoded photo: a value that the caller keeps and passes on.

    features: (C,h,w) on the device and in the dtype of the model.
    frame: how the photo was scaled and padded.
    rgb: (H,W,3) uint8 the photo itself, where the model looks at small regions closely.
    """

    features: Tensor
    frame: ImageFrame
    rgb: np.ndarray | None = None

    @property
    def original_hw(self) -> tuple[int, int]:
        """Height and width of the photo in pixels."""
        return self.frame.original_hw


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """The routed outputs of one photo, without words.

    masks: (R,H,W) bool, original pixels.
    iou_scores, mask_index: (R,).
    semantic_tokens: (R,C).
    semantic_embeddings: (R,D).
    mask_tokens: (R,C).
    """

    masks: np.ndarray
    iou_scores: Tensor
    semantic_tokens: Tensor
    semantic_embeddings: Tensor
    mask_index: Tensor
    mask_tokens: Tensor

    def __len__(self) -> int:
        return len(self.masks)

    @classmethod
    def blank(cls, model: TAP, masks: np.ndarray) -> DecodedImage:
        """Regions of which nothing is known but their masks (R,H,W)."""
        config, count = model.config, len(masks)
        zeros = torch.zeros(count, config.decoder_dim, device=model.device, dtype=model.dtype)
        return cls(
            masks=masks,
            iou_scores=zeros.new_zeros(count, dtype=torch.float32),
            semantic_tokens=zeros,
            semantic_embeddings=zeros.new_zeros(count, config.semantic_dim),
            mask_index=zeros.new_zeros(count, dtype=torch.int64),
            mask_tokens=zeros.clone(),
        )

    def write_tokens(self, rows: np.ndarray, outputs: RegionOutputs) -> None:
        """Put the routed slots of a decoder's outputs in the place of what is known of `rows`."""
        for name in ("semantic_tokens", "semantic_embeddings", "mask_tokens"):
            values = getattr(self, name)
            values[rows] = outputs.select(getattr(outputs, name)).to(values.dtype)
        self.mask_index[rows] = outputs.mask_index


def count_regions_in_memory(model: TAP) -> int:
    """How many prompts fit into REGION_MEMORY on the CPU, and 32 times that elsewhere."""
    config = model.config
    values = config.grid_size**2 * config.decoder_dim * 8  # features, their keys, upscaled maps
    size = torch.finfo(model.dtype).bits // 8
    memory = REGION_MEMORY if model.device.type == "cpu" else 32 * REGION_MEMORY
    return max(1, memory // (values * size))


def check_encoded(encoded: Any, config: TAPConfig) -> None:
    """Check that a photo was encoded by a model of this size.

    Raises:
        TypeError: not an EncodedImage.
        ValueError: another size.
    """
    if not isinstance(encoded, EncodedImage):
        raise TypeError(
            f"encoded: expected an EncodedImage, got {type(encoded).__name__}; encode_images makes "
            "one from a photo"
        )
    expected = (config.decoder_dim, config.grid_size, config.grid_size)
    found, side = tuple(encoded.features.shape), encoded.frame.padded_size
    if found != expected or side != config.image_size:
        raise ValueError(
            f"encoded: expected features {expected} of a square of {config.image_size} pixels, got "
            f"{found} of {side}; encode the photo with this predictor"
        )


def encode_photo(model: TAP, rgb: np.ndarray) -> EncodedImage:
    """Encode one loaded photo (H,W,3) uint8."""
    pixels, frames = prepare_images([rgb], model.config)
    features = model.encode_images(pixels.to(model.device, model.dtype))
    return EncodedImage(features[0], frames[0], rgb if model.config.zoom else None)


def embed_tokens(model: TAP, semantic_tokens: Tensor) -> Tensor:
    """Semantic tokens (R,C) of chosen slots to embeddings (R,D) in the concept space."""
    if not len(semantic_tokens):  # kernels differ on how they take empty tensors
        return semantic_tokens.new_zeros(0, model.config.semantic_dim)
    embeddings: Tensor = model.image_decoder.semantic_head(semantic_tokens)
    return embeddings


def decode_regions(
    model: TAP, encoded: EncodedImage, prompts: PointPrompts, *, chunk: int, all_slots: bool
) -> RegionOutputs:
    """Decode all prompts into one record, see `decode_chunks`."""
    parts = list(decode_chunks(model, encoded, prompts, chunk=chunk, all_slots=all_slots))
    joined = RegionOutputs.concatenate([outputs for _, outputs in parts])
    if (prompts.num_points == prompts.labels.shape[1]).all():
        return joined  # in order already
    order = _original_order([rows for rows, _ in parts], joined.mask_index.device)
    fields = [field.name for field in dataclasses.fields(RegionOutputs)]
    return RegionOutputs(**{name: getattr(joined, name)[order] for name in fields})


def decode_image(
    model: TAP,
    encoded: EncodedImage,
    prompts: PointPrompts,
    *,
    chunk: int,
    has_mask: np.ndarray | None = None,
    is_asked: np.ndarray | None = None,
) -> DecodedImage:
    """Decode the routed slot of prompts and restore their masks, see `decode_chunks`.

    Args:
        model: in evaluation mode.
        encoded: checked with `check_encoded`.
        prompts: original pixels, checked to lie in the photo.
        chunk: see `decode_chunks`.
        has_mask: (R,) bool, whose masks are wanted, None for all; the others stay empty.
        is_asked: (R,) bool, which are decoded, None for all; of the others nothing is known.
    """
    target = DecodedImage.blank(model, np.zeros((len(prompts), *encoded.original_hw), bool))
    wanted = np.ones(len(prompts), bool) if has_mask is None else has_mask
    asked = np.arange(len(prompts)) if is_asked is None else np.flatnonzero(is_asked)
    for places, outputs in decode_chunks(
        model, encoded, prompts[asked], chunk=chunk, all_slots=False,
        with_masks=bool(wanted[asked].any()),
    ):  # fmt: skip
        rows = asked[places]
        if wanted[rows].any():
            some = torch.from_numpy(wanted[rows]).to(outputs.mask_logits.device)
            masks = restore_masks(outputs.mask_logits[some], encoded.frame)
            target.masks[rows[wanted[rows]]] = masks
        target.iou_scores[rows] = outputs.select(outputs.iou_scores)
        target.write_tokens(rows, outputs)
    return target


def decode_chunks(
    model: TAP,
    encoded: EncodedImage,
    prompts: PointPrompts,
    *,
    chunk: int,
    all_slots: bool,
    with_masks: bool = True,
) -> Iterator[tuple[np.ndarray, RegionOutputs]]:
    """Yield rows of prompts and their outputs, at most `chunk` at once; at least one yield.

    Only prompts with the same number of points are decoded together, since a point more is a
    token more, and what a region gets must not depend on its neighbours.

    Args:
        model: in evaluation mode.
        encoded: checked with `check_encoded`.
        prompts: original pixels, checked to lie in the photo.
        chunk: at least 1; it changes memory, never the result.
        all_slots: False computes the mask of the routed slot only.
        with_masks: False computes no mask.
    """
    if len(prompts) == 0:
        yield np.zeros(0, np.int64), _no_regions(model, NUM_MASK_SLOTS if all_slots else 1)
        return
    coords = torch.from_numpy(encoded.frame.to_model_frame(prompts.coords_xy)).to(model.device)
    labels = torch.from_numpy(prompts.labels.copy()).to(model.device)
    features = encoded.features.to(model.device, model.dtype).unsqueeze(0)
    context = model.prepare_regions(features)
    for num_points in np.unique(prompts.num_points).tolist():
        alike = np.flatnonzero(prompts.num_points == num_points)
        for start in range(0, len(alike), chunk):
            rows = alike[start : start + chunk]
            yield (
                rows,
                model.decode_regions(
                    context,
                    coords[rows, :num_points].unsqueeze(0),
                    labels[rows, :num_points].unsqueeze(0),
                    all_slots=all_slots,
                    with_masks=with_masks,
                ),
            )


def tell_boxes(
    model: TAP, encoded: EncodedImage, rows: np.ndarray, target: DecodedImage, *, chunk: int
) -> None:
    """Give regions the tokens that the boxes of their masks get on the whole photo.

    Args:
        model: in evaluation mode.
        encoded: the photo.
        rows: of the regions; those without a mask keep what they have.
        target: changed in place.
        chunk: regions decoded at once.
    """
    # one mask at a time, since those of a large photo are large
    found = {row: masks_to_boxes(target.masks[row][None])[0] for row in rows.tolist()}
    boxes = {row: box for row, box in found.items() if box[2] > box[0]}
    rows = np.array(list(boxes), dtype=np.intp)
    if not len(rows):
        return
    prompts = PointPrompts.from_boxes(np.stack(list(boxes.values())))
    tell_prompts(model, encoded, prompts, rows, target, chunk=chunk)


def tell_prompts(
    model: TAP,
    encoded: EncodedImage,
    prompts: PointPrompts,
    rows: np.ndarray,
    target: DecodedImage,
    *,
    chunk: int,
) -> None:
    """Give the regions `rows` of `target` the tokens that prompts get on the whole photo."""
    for places, outputs in decode_chunks(
        model, encoded, prompts, chunk=chunk, all_slots=False, with_masks=False
    ):
        target.write_tokens(rows[places], outputs)


def _original_order(rows: list[np.ndarray], device: torch.device) -> Tensor:
    """Where to find each prompt after its chunks were joined, (R,)."""
    return torch.from_numpy(np.argsort(np.concatenate(rows))).to(device)


def _no_regions(model: TAP, num_slots: int) -> RegionOutputs:
    """What the decoder would say about no prompt; kernels differ on how they take empty tensors."""
    config, side = model.config, 4 * model.config.grid_size
    reference = torch.zeros(0, device=model.device, dtype=model.dtype)
    return RegionOutputs(
        mask_logits=reference.new_zeros(0, num_slots, side, side),
        iou_scores=reference.new_zeros(0, NUM_MASK_SLOTS, dtype=torch.float32),
        mask_tokens=reference.new_zeros(0, NUM_MASK_SLOTS, config.decoder_dim),
        semantic_tokens=reference.new_zeros(0, NUM_MASK_SLOTS, config.decoder_dim),
        semantic_embeddings=reference.new_zeros(0, num_slots, config.semantic_dim),
        mask_index=reference.new_zeros(0, dtype=torch.int64),
    )
