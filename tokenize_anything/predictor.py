"""The main use: photos and prompts in; masks, concepts, captions and region tokens out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.build import choose_device, choose_dtype, load_model, locate_checkpoint
from tokenize_anything.companions import find_companions
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.image_transform import (
    ImageFrame,
    ImageSource,
    prepare_images,
    restore_masks,
)
from tokenize_anything.modeling import TAP, RegionOutputs
from tokenize_anything.prompts import PointPrompts, check_mask_size
from tokenize_anything.regions import RegionPredictions
from tokenize_anything.text_generation import GenerationConfig, generate
from tokenize_anything.text_tokenizer import TextTokenizer

REGION_MEMORY = 256 * 2**20  # bytes of decoder activations held at once


@dataclass(frozen=True)
class EncodedImage:
    """One encoded photo: a value that the caller keeps and passes on.

    features: (C,h,w) on the device and in the dtype of the model.
    frame: how the photo was scaled and padded.
    """

    features: Tensor
    frame: ImageFrame

    @property
    def original_hw(self) -> tuple[int, int]:
        """Height and width of the photo in pixels."""
        return self.frame.original_hw


@dataclass(frozen=True)
class _DecodedImage:
    """Routed outputs of one image: masks at its original size, the rest per region."""

    masks: np.ndarray
    iou_scores: Tensor
    semantic_tokens: Tensor
    semantic_embeddings: Tensor
    mask_index: Tensor


class TAPPredictor:
    """Segments, names and describes the regions that prompts point at.

    A predictor holds weights and nothing about any image, so threads can share one.

    Args:
        model: in evaluation mode.
        concepts: vocabulary in the model's concept space; without one, regions get no names.
        text_tokenizer: of the model's text decoder; without one, regions get no captions.
        region_chunk: most prompts decoded at once. None lets memory decide; the result is the same.

    Example:
        >>> predictor = TAPPredictor.from_pretrained("tap_tiny")
        >>> regions = predictor.predict_mask_concept_caption("photo.jpg", points=[[320, 240]])
        >>> regions.concepts[0][0], regions.captions[0]
    """

    def __init__(
        self,
        model: TAP,
        *,
        concepts: ConceptVocabulary | None = None,
        text_tokenizer: TextTokenizer | None = None,
        region_chunk: int | None = None,
    ) -> None:
        if region_chunk is not None and region_chunk < 1:
            raise ValueError(f"region_chunk: expected at least 1, got {region_chunk}")
        if concepts is not None and concepts.weights.shape[0] != model.config.semantic_dim:
            raise ValueError(
                f"concepts: expected weights of {model.config.semantic_dim} rows, the model's "
                f"semantic width, got {concepts.weights.shape[0]}; use the vocabulary made for it"
            )
        if text_tokenizer and text_tokenizer.vocabulary_size != model.config.vocabulary_size:
            raise ValueError(
                f"text_tokenizer: expected {model.config.vocabulary_size} pieces, as the model's "
                f"text decoder, got {text_tokenizer.vocabulary_size}; use the tokenizer it was "
                "trained with"
            )
        self.model = model
        self.concepts = concepts
        self.text_tokenizer = text_tokenizer
        self.region_chunk = region_chunk or _regions_in_memory(model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "tap_tiny",
        *,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = "auto",
        concepts: str | os.PathLike[str] | ConceptVocabulary | Sequence[str] | None = None,
        text_tokenizer: str | os.PathLike[str] | None = None,
    ) -> TAPPredictor:
        """Load a model with the concepts and the tokenizer that belong to it.

        Args:
            name_or_path: "tap_tiny" (built in, offline), "tap_vit_b", "tap_vit_l", "tap_vit_h"
                (published weights, from the hub), a .safetensors file or a published .pkl file.
            device: "auto", "cpu", "cuda", "mps" or a torch device.
            dtype: "auto" is float32 on the CPU and bfloat16 on CUDA.
            concepts: a concept file, a vocabulary, or some names of the model's own vocabulary.
            text_tokenizer: SentencePiece file of the text decoder. Published weights need the
                LLaMA tokenizer, which cannot be shipped here.

        Raises:
            FileNotFoundError: a file that is not there.
            ValueError: an unknown name, or parts that do not belong together.
        """
        device = choose_device(device)
        path = locate_checkpoint(name_or_path)
        model = load_model(path, device=device, dtype=choose_dtype(dtype, device))
        chosen = None if _are_names(concepts) else _load_concepts(concepts)
        own = find_companions(
            name_or_path,
            path,
            text_tokenizer,
            model.config.vocabulary_size,
            with_concepts=chosen is None,
        )
        if own.text_tokenizer is None:
            warnings.warn(
                f"no text tokenizer for {name_or_path}: regions will have no captions; pass "
                "text_tokenizer=PATH of the SentencePiece model the weights were trained with",
                stacklevel=2,
            )
        return cls(
            model,
            concepts=_pick_names(concepts, own.concepts) if _are_names(concepts) else chosen or own.concepts,
            text_tokenizer=own.text_tokenizer,
        )

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the model."""
        return self.model.dtype

    @overload
    def encode_images(self, images: ImageSource) -> EncodedImage: ...
    @overload
    def encode_images(self, images: list[ImageSource]) -> list[EncodedImage]: ...
    @torch.inference_mode()
    def encode_images(self, images: Any) -> Any:
        """Encode one photo, or a list of photos of any sizes.

        Args:
            images: path, PIL image or (H,W,3) uint8 RGB array; or a list of those.

        Returns:
            An EncodedImage, or a list of them for a list.
        """
        if not isinstance(images, list | tuple):
            return self.encode_images([images])[0]
        encoded = []
        for image in images:  # one by one: a larger batch is no faster on the CPU, and needs memory
            pixels, frames = prepare_images([image], self.model.config)
            features = self.model.encode_images(pixels.to(self.device, self.dtype))
            encoded.append(EncodedImage(features[0], frames[0]))
        return encoded

    @torch.inference_mode()
    def decode_regions(self, encoded: EncodedImage, prompts: PointPrompts) -> RegionOutputs:
        """Decode prompts into all four slots, in the model frame.

        Args:
            encoded: from `encode_images`.
            prompts: (R,N,2) original pixels.

        Returns:
            RegionOutputs; `mask_logits` (R,4,4h,4w) cover the padded square.
        """
        chunks = list(self._decode_chunks(encoded, prompts, all_slots=True))
        return RegionOutputs.concatenate(chunks)

    @torch.inference_mode()
    def describe_concepts(
        self, semantic_embeddings: Tensor | np.ndarray, *, top_k: int = 1
    ) -> tuple[list[list[str]], np.ndarray]:
        """Name semantic embeddings.

        Args:
            semantic_embeddings: (R,D).
            top_k: how many names each; at most the size of the vocabulary.

        Returns:
            R lists of names, best first, and their probabilities (R,k) in [0, 1].

        Raises:
            ValueError: the predictor has no vocabulary, or top_k is under 1.
        """
        if self.concepts is None:
            raise ValueError(
                "concepts: this predictor has no vocabulary; pass concepts=FILE to from_pretrained"
            )
        names, scores = self.concepts.top_k(torch.as_tensor(semantic_embeddings), top_k)
        return names, scores.cpu().numpy()

    @torch.inference_mode()
    def write_captions(
        self, semantic_tokens: Tensor | np.ndarray, *, generation: GenerationConfig | None = None
    ) -> tuple[list[str], np.ndarray]:
        """Describe semantic tokens in words.

        Args:
            semantic_tokens: (R,C).
            generation: greedy by default; beams or sampling otherwise.

        Returns:
            R captions and their mean log-probabilities per token (R,).

        Raises:
            ValueError: the predictor has no text tokenizer.
        """
        if self.text_tokenizer is None:
            raise ValueError(
                "text_tokenizer: this predictor has none; pass text_tokenizer=FILE to "
                "from_pretrained"
            )
        tokens = torch.as_tensor(semantic_tokens).to(self.device, self.dtype)
        text = generate(
            self.model.text_decoder,
            tokens,
            start_id=self.text_tokenizer.start_id,
            end_id=self.text_tokenizer.end_id,
            config=generation,
        )
        return self.text_tokenizer.decode(text.token_ids), text.scores.numpy()

    def predict_mask_concept_caption(
        self,
        images: Any,
        *,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
        prompts: Any = None,
        top_k: int = 1,
        captions: bool = True,
        generation: GenerationConfig | None = None,
    ) -> Any:
        """Segment, name and describe what the prompts point at.

        Coordinates are x, y in pixels of the photo as given. Each kind of prompt makes regions of
        its own, in the order points, boxes, masks, prompts; to refine one region with a box and
        clicks together, use `PointPrompts.from_boxes(boxes, points=...)`.

        Args:
            images: a photo (path, PIL image, (H,W,3) uint8 RGB array) or an `EncodedImage`; or a
                list of those, and then every prompt argument is a list with one entry per image.
            points: (R,2) one region per point, or (R,N,2) several clicks per region.
            labels: of the points: 1 foreground (default), 0 background.
            boxes: (R,4) x0, y0, x1, y1.
            masks: (H,W) or (R,H,W) masks or sketches of the photo's size; nonzero is drawn.
            prompts: a PointPrompts.
            top_k: names per region.
            captions: False skips the text decoder.
            generation: how captions are written; greedy by default.

        Returns:
            RegionPredictions, or a list of them for a list.

        Raises:
            ValueError: no prompt at all, or a prompt or image that does not fit.
        """
        given = {"points": points, "labels": labels, "boxes": boxes, "masks": masks,
                 "prompts": prompts}  # fmt: skip
        is_many = isinstance(images, list | tuple)
        images = list(images) if is_many else [images]
        rows = _prompts_per_image(given, len(images)) if is_many else [given]
        decoded = []
        for image, row in zip(images, rows, strict=True):
            encoded = image if isinstance(image, EncodedImage) else self.encode_images(image)
            decoded.append(self._decode_image(encoded, _collect_prompts(row, encoded.original_hw)))
        regions = self._describe(decoded, top_k, captions, generation)
        return regions if is_many else regions[0]

    @torch.inference_mode()
    def _decode_image(self, encoded: EncodedImage, prompts: PointPrompts) -> _DecodedImage:
        config = self.model.config
        masks = np.empty((len(prompts), *encoded.original_hw), dtype=bool)
        parts = []
        start = 0
        for outputs in self._decode_chunks(encoded, prompts, all_slots=False):
            stop = start + len(outputs)
            masks[start:stop] = restore_masks(outputs.mask_logits, encoded.frame)
            fields = (outputs.iou_scores, outputs.semantic_tokens, outputs.semantic_embeddings)
            parts.append([outputs.select(field) for field in fields] + [outputs.mask_index])
            start = stop
        if not parts:
            shapes = ((0,), (0, config.decoder_dim), (0, config.semantic_dim))
            empty = [torch.zeros(shape, device=self.device) for shape in shapes]
            return _DecodedImage(masks, *empty, torch.zeros(0, dtype=torch.int64))
        return _DecodedImage(masks, *(torch.cat(column) for column in zip(*parts, strict=True)))

    def _decode_chunks(self, encoded: EncodedImage, prompts: PointPrompts, *, all_slots: bool) -> Any:
        prompts.validate_for_image(*encoded.original_hw)
        coords = torch.from_numpy(encoded.frame.to_model_frame(prompts.coords_xy)).to(self.device)
        labels = torch.from_numpy(prompts.labels.copy()).to(self.device)
        features = encoded.features.to(self.device, self.dtype).unsqueeze(0)
        context = self.model.prepare_regions(features) if len(prompts) else None
        for start in range(0, len(prompts), self.region_chunk):
            rows = slice(start, start + self.region_chunk)
            yield self.model.decode_regions(
                context, coords[rows].unsqueeze(0), labels[rows].unsqueeze(0), all_slots=all_slots
            )

    def _describe(
        self,
        decoded: list[_DecodedImage],
        top_k: int,
        captions: bool,
        generation: GenerationConfig | None,
    ) -> list[RegionPredictions]:
        """Name and caption the regions of all images together, then hand them out again."""
        counts = [len(image.masks) for image in decoded]
        tokens = torch.cat([image.semantic_tokens for image in decoded])
        embeddings = torch.cat([image.semantic_embeddings for image in decoded])
        columns: dict[str, Any] = {}
        if self.concepts is not None:
            columns["concepts"], columns["concept_scores"] = self.describe_concepts(
                embeddings, top_k=top_k
            )
        if captions and self.text_tokenizer is not None:
            columns["captions"], columns["caption_scores"] = self.write_captions(
                tokens, generation=generation
            )
        columns["semantic_tokens"] = tokens.float().cpu().numpy()
        columns["semantic_embeddings"] = embeddings.float().cpu().numpy()
        ends = np.cumsum(counts)
        return [
            RegionPredictions(
                masks=image.masks,
                iou_scores=image.iou_scores.cpu().numpy(),
                mask_index=image.mask_index.cpu().numpy(),
                **{name: values[end - count : end] for name, values in columns.items()},
            )
            for image, count, end in zip(decoded, counts, ends, strict=True)
        ]


def _regions_in_memory(model: TAP) -> int:
    """How many prompts fit into REGION_MEMORY on the CPU, and four times that elsewhere."""
    config = model.config
    values = config.grid_size**2 * config.decoder_dim * 8  # features, their keys, upscaled maps
    size = torch.finfo(model.dtype).bits // 8
    memory = REGION_MEMORY if model.device.type == "cpu" else 4 * REGION_MEMORY
    return max(1, memory // (values * size))


def _are_names(concepts: Any) -> bool:
    return isinstance(concepts, Sequence) and not isinstance(concepts, str)


def _load_concepts(concepts: Any) -> ConceptVocabulary | None:
    if concepts is None or isinstance(concepts, ConceptVocabulary):
        return concepts
    if isinstance(concepts, str | os.PathLike):
        return ConceptVocabulary.load(concepts)
    kind = type(concepts).__name__
    raise TypeError(f"concepts: expected a file, a ConceptVocabulary or a list of names, got {kind}")


def _pick_names(names: Sequence[str], own: ConceptVocabulary | None) -> ConceptVocabulary:
    if own is None:
        raise ValueError(
            "concepts: names are picked from the model's own vocabulary, and this model has none; "
            "pass a concept file instead"
        )
    return own.subset(list(names))


def _prompts_per_image(given: dict[str, Any], num_images: int) -> list[dict[str, Any]]:
    for name, values in given.items():
        if values is not None and len(values) != num_images:
            raise ValueError(
                f"{name}: expected one entry for each of {num_images} images, got {len(values)}"
            )
    return [
        {name: values[index] if values is not None else None for name, values in given.items()}
        for index in range(num_images)
    ]


def _collect_prompts(given: dict[str, Any], original_hw: tuple[int, int]) -> PointPrompts:
    parts = []
    if given["points"] is not None:
        parts.append(PointPrompts.from_points(given["points"], given["labels"]))
    elif given["labels"] is not None:
        raise ValueError("labels: expected points to go with them, got labels alone")
    if given["boxes"] is not None:
        parts.append(PointPrompts.from_boxes(given["boxes"]))
    if given["masks"] is not None:
        check_mask_size(given["masks"], *original_hw)
        parts.append(PointPrompts.from_masks(given["masks"]))
    if given["prompts"] is not None:
        if not isinstance(given["prompts"], PointPrompts):
            kind = type(given["prompts"]).__name__
            raise TypeError(f"prompts: expected a PointPrompts, got {kind}")
        parts.append(given["prompts"])
    if not parts:
        raise ValueError("prompts: expected points, boxes, masks or prompts, got none of them")
    return PointPrompts.concatenate(parts)
