"""The main use: photos and prompts in; masks, concepts, captions and region tokens out."""

from __future__ import annotations

import os
import warnings
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.build import choose_device, choose_dtype, load_model, locate_checkpoint
from tokenize_anything.companions import (
    ConceptSource,
    check_companions,
    check_same_space,
    check_tokenizer_source,
    find_companions,
    pick_concepts,
    read_concepts,
)
from tokenize_anything.concepts import ConceptVocabulary, check_top_k
from tokenize_anything.everything import find_in_photos
from tokenize_anything.everything_config import EverythingConfig, check_everything_config
from tokenize_anything.image_transform import ImageSource, load_image
from tokenize_anything.modeling import TAP, RegionOutputs
from tokenize_anything.predictor_arguments import (
    as_rows,
    check_generation,
    check_model,
    check_zoom,
)
from tokenize_anything.prompt_arguments import PromptArguments, require_prompts
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import (
    DecodedImage,
    EncodedImage,
    check_encoded,
    count_regions_in_memory,
    decode_regions,
    encode_photo,
)
from tokenize_anything.regions import RegionPredictions
from tokenize_anything.text_generation import GenerationConfig, generate
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.zooming import decode_source


class TAPPredictor:
    """Segments, names and describes the regions that prompts point at.

    A predictor holds weights and nothing about any image, so threads can share one.

    Args:
        model: in evaluation mode.
        concepts: vocabulary in the model's concept space; without one, regions get no names.
        text_tokenizer: of the model's text decoder; without one, regions get no captions.
        region_chunk: most prompts decoded at once. None lets memory decide; the result is the same.

    Raises:
        TypeError: parts of another kind.
        ValueError: parts that do not belong together, a model in training mode, or an empty chunk.

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
        check_model(model)
        check_companions(model.config, concepts, text_tokenizer)
        if region_chunk is not None and not (isinstance(region_chunk, int) and region_chunk >= 1):
            raise ValueError(
                f"region_chunk: expected None or a whole number from 1, got {region_chunk!r}"
            )
        self.model = model
        self.concepts = concepts
        self.text_tokenizer = text_tokenizer
        self.region_chunk = region_chunk or count_regions_in_memory(model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "tap_tiny",
        *,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = "auto",
        concepts: ConceptSource = None,
        text_tokenizer: str | os.PathLike[str] | None = None,
    ) -> TAPPredictor:
        """Load a model with the concepts and the tokenizer that belong to it.

        Args:
            name_or_path: "tap_tiny" (built in, offline), "tap_vit_b", "tap_vit_l", "tap_vit_h"
                (published weights, from the hub), a .safetensors file or a published .pkl file.
            device: "auto", "cpu", "cuda", "mps" or a torch device.
            dtype: "auto" is bfloat16 on CUDA and float32 on the CPU; where that computes bfloat16
                natively, "auto" runs the small networks of the second look in it, "float32" not.
            concepts: a concept file; "merged_2560", "lvis_1203" or "coco_80" (published, from the
                hub); a vocabulary; or a list of names. Names that the model's own vocabulary lacks
                are embedded with the text encoder its concept space belongs to.
            text_tokenizer: SentencePiece file of the text decoder. Published weights need the
                LLaMA tokenizer, which cannot be shipped here.

        Raises:
            FileNotFoundError: a file that is not there.
            ImportError: new concept names, and their text encoder needs a package.
            TypeError: an argument of another kind.
            ValueError: an unknown name, a damaged file, or parts that do not belong together.
            ConnectionError, PermissionError: see `hub.download`.
        """
        check_tokenizer_source(text_tokenizer)
        device = choose_device(device)
        choose_dtype(dtype, device)  # a wrong one is named before anything is read
        vocabulary = read_concepts(concepts)
        path = locate_checkpoint(name_or_path)
        model = load_model(path, device=device, dtype=dtype)
        own = find_companions(
            name_or_path,
            path,
            text_tokenizer,
            model.config.vocabulary_size,
            with_concepts=vocabulary is None,
        )
        check_same_space(vocabulary, own.concept_space)
        if vocabulary is None:
            vocabulary = pick_concepts(concepts, own.concepts, own.concept_space, device=device)
        if own.text_tokenizer is None:
            warnings.warn(
                f"no text tokenizer for {name_or_path}: regions will have no captions; pass "
                "text_tokenizer=PATH of the SentencePiece model the weights were trained with",
                stacklevel=2,
            )
        return cls(model, concepts=vocabulary, text_tokenizer=own.text_tokenizer)

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

        Raises:
            FileNotFoundError, TypeError, ValueError: not images; see `image_loading.load_image`.
        """
        if not isinstance(images, list | tuple):
            return encode_photo(self.model, load_image(images))
        # One by one: a larger batch is no faster on the CPU, and needs memory.
        return [
            encode_photo(self.model, load_image(image, name=f"images[{index}]"))
            for index, image in enumerate(images)
        ]

    @torch.inference_mode()
    def decode_regions(
        self, encoded: EncodedImage, prompts: PointPrompts, *, all_slots: bool = True
    ) -> RegionOutputs:
        """Decode prompts into all four slots, in the model frame.

        Args:
            encoded: from `encode_images`.
            prompts: (R,N,2) original pixels.
            all_slots: False computes the mask of the routed slot only.

        Returns:
            RegionOutputs; `mask_logits` (R,4,4h,4w), or (R,1,4h,4w), cover the padded square.

        Raises:
            TypeError: arguments of another kind.
            ValueError: prompts outside the photo, or a photo encoded by a model of another size.
        """
        check_encoded(encoded, self.model.config)
        require_prompts(prompts).validate_for_image(*encoded.original_hw)
        return decode_regions(
            self.model, encoded, prompts, chunk=self.region_chunk, all_slots=all_slots
        )

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
            TypeError: embeddings or top_k that are not numbers.
            ValueError: the predictor has no vocabulary, another shape, or top_k is under 1.
        """
        if self.concepts is None:
            raise ValueError(
                "concepts: this predictor has no vocabulary; pass concepts=FILE to from_pretrained"
            )
        width = self.model.config.semantic_dim
        embeddings = as_rows("semantic_embeddings", semantic_embeddings, width)
        names, scores = self.concepts.top_k(embeddings, top_k)
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
            TypeError: tokens that are not numbers, or a `generation` of another kind.
            ValueError: the predictor has no text tokenizer, or another shape.
        """
        if self.text_tokenizer is None:
            raise ValueError(
                "text_tokenizer: this predictor has none; pass text_tokenizer=FILE to "
                "from_pretrained"
            )
        check_generation(generation)
        width = self.model.config.decoder_dim
        tokens = as_rows("semantic_tokens", semantic_tokens, width).to(self.device, self.dtype)
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
        zoom: float | None = None,
    ) -> Any:
        """Segment, name and describe what the prompts point at.

        Coordinates are x, y in pixels of the photo as given. Each kind of prompt makes regions of
        its own, in the order points, boxes, masks, prompts; what a region gets does not depend on
        the others. To refine one region with a box and clicks together, use
        `PointPrompts.from_boxes(boxes, points=...)`.

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
            zoom: see `zooming`; None does what suits the model, 0 never looks twice.

        Returns:
            RegionPredictions, or a list of them for a list. Without vocabulary or text tokenizer
            they hold no names or no captions.

        Raises:
            FileNotFoundError: no such photo.
            TypeError: an argument of another kind.
            ValueError: no prompt at all, or a prompt or photo that does not fit.
        """
        check_top_k(top_k)
        check_generation(generation)
        check_zoom(zoom)
        given = PromptArguments(points, labels, boxes, masks, prompts)
        is_many = isinstance(images, list | tuple)
        sources = list(images) if is_many else [images]
        rows = given.split(len(sources)) if is_many else [given]
        for row in rows:  # before any photo is read or encoded
            row.check()
        decoded = [
            decode_source(self.model, source, row, chunk=self.region_chunk, zoom=zoom)
            for source, row in zip(sources, rows, strict=True)
        ]
        regions = self._describe(decoded, top_k, captions, generation) if decoded else []
        return regions if is_many else regions[0]

    def predict_everything(
        self,
        images: Any,
        *,
        config: EverythingConfig | None = None,
        top_k: int = 1,
        captions: bool = True,
        generation: GenerationConfig | None = None,
        progress: bool = False,
    ) -> Any:
        """Find, name and describe all regions of a photo by a grid of clicks; see `everything`.

        Args:
            images: a photo or a list of photos, as in `predict_mask_concept_caption`. The masks of
                all photos of a list are in memory together; give long lists in pieces.
            config: how to search, and which masks to keep.
            top_k: names per region.
            captions: False skips the text decoder.
            generation: how captions are written; greedy by default.
            progress: show a bar of the clicks done.

        Returns:
            RegionPredictions with `parent_index`, best predicted IoU first, or a list of them for a
            list. Where no mask is good enough there are no regions.

        Raises:
            FileNotFoundError, TypeError: as `predict_mask_concept_caption`.
            ValueError: the same, or crops of an EncodedImage.
        """
        check_top_k(top_k)
        check_generation(generation)
        config = check_everything_config(config)
        is_many = isinstance(images, list | tuple)
        sources = list(images) if is_many else [images]
        chunk = self.region_chunk
        found = find_in_photos(self.model, sources, config, chunk=chunk, progress=progress)
        decoded = [each.decoded for each in found]
        records = self._describe(decoded, top_k, captions, generation) if decoded else []
        regions = [each.add_tree(record) for each, record in zip(found, records, strict=True)]
        return regions if is_many else regions[0]

    def _describe(
        self,
        decoded: list[DecodedImage],
        top_k: int,
        captions: bool,
        generation: GenerationConfig | None,
    ) -> list[RegionPredictions]:
        """Name and caption the regions of all images together, then hand them out again."""
        counts = [len(image) for image in decoded]
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
                mask_tokens=image.mask_tokens.float().cpu().numpy(),
                **{name: values[end - count : end] for name, values in columns.items()},
            )
            for image, count, end in zip(decoded, counts, ends, strict=True)
        ]
