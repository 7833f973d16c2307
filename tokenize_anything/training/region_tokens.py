"""Tokens of regions under boxes and points, from the frozen first stage (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenize_anything.data.region_captions import CaptionedRegion
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.image_transform import prepare_images
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import DecodedImage, EncodedImage, count_regions_in_memory
from tokenize_anything.training.caption_config import RegionTokenConfig
from tokenize_anything.zooming import decode_closely


class TokenSource(Protocol):
    """Gives tokens by region and view: view 0 is the box, the others are points of its mask."""

    def select(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """(n,) region rows and (n,) views to tokens (n,C) float32 on the CPU."""
        ...


class RegionTokens:
    """Computes tokens when they are asked for.

    What a region gets does not depend on the regions asked for beside it, up to rounding.

    Args:
        model: put in evaluation mode; its text decoder is not used.
        records: images.
        regions: of these images.
        config: which token, and how the points of a view are drawn.
        seed: of the draws.
    """

    def __init__(
        self,
        model: TAP,
        records: Sequence[ImageRecord],
        regions: Sequence[CaptionedRegion],
        config: RegionTokenConfig,
        seed: int,
    ) -> None:
        self.model, self.records, self.regions = model.eval(), records, regions
        self.config, self.seed = config, seed
        self.chunk = count_regions_in_memory(model)

    def select(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """See `TokenSource`; each image is read once.

        Raises:
            FileNotFoundError: an image is missing.
            ValueError: an image cannot be decoded, has another size than its annotation says, or a
                box lies outside it.
        """
        tokens = torch.zeros(len(rows), self.model.config.decoder_dim)
        images = np.array([self.regions[row].image_index for row in rows.tolist()], dtype=np.int64)
        for index in np.unique(images).tolist():
            here = np.flatnonzero(images == index)
            tokens[here] = self.of_image(index, rows[here], views[here])
        return tokens

    @torch.no_grad()
    def of_image(
        self, image_index: int, rows: NDArray[np.int64], views: NDArray[np.int64]
    ) -> Tensor:
        """`select` for regions of one image."""
        is_low = self.config.precision == "bfloat16"
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=is_low):
            return self._compute(image_index, rows, views)

    def _compute(
        self, image_index: int, rows: NDArray[np.int64], views: NDArray[np.int64]
    ) -> Tensor:
        encoded = self._encode(image_index)
        alone, place = np.unique(rows, return_inverse=True)
        by_box = self._decode_boxes(encoded, alone, image_index)
        tokens = self._pick(by_box)[place]
        # A region whose box gave an empty mask keeps the token of its box.
        is_drawn = by_box.masks.reshape(len(alone), -1).any(axis=1)
        used = np.flatnonzero((views > 0) & np.asarray(is_drawn)[place])
        if len(used):
            prompts = [
                PointPrompts.from_points(
                    self._draw(by_box.masks[place[row]], rows[row], views[row])
                )
                for row in used.tolist()
            ]
            tokens[used] = self._pick(self._decode(encoded, PointPrompts.concatenate(prompts)))
        return tokens

    def _encode(self, image_index: int) -> EncodedImage:
        image = read_image(self.records[image_index])
        pixels, frames = prepare_images([image], self.model.config)
        features = self.model.encode_images(pixels.to(self.model.device, self.model.dtype))
        return EncodedImage(features[0], frames[0], image)

    def _decode_boxes(
        self, encoded: EncodedImage, rows: NDArray[np.int64], image_index: int
    ) -> DecodedImage:
        boxes = PointPrompts.from_boxes([self.regions[row].box_xyxy for row in rows.tolist()])
        try:
            boxes.validate_for_image(*encoded.original_hw)
        except ValueError as error:
            raise ValueError(f"image: {self.records[image_index].path}: {error}") from error
        return self._decode(encoded, boxes)

    def _decode(self, encoded: EncodedImage, prompts: PointPrompts) -> DecodedImage:
        return decode_closely(self.model, encoded, prompts, chunk=self.chunk, zoom=None)

    def _draw(self, mask: NDArray[np.bool_], row: np.int64, view: np.int64) -> NDArray[np.float32]:
        rng = np.random.default_rng((self.seed, int(row), int(view)))
        return draw_points(mask, self.config.max_points, rng)[None]

    def _pick(self, decoded: DecodedImage) -> Tensor:
        is_semantic = self.config.token == "semantic"
        return (decoded.semantic_tokens if is_semantic else decoded.mask_tokens).float().cpu()


def draw_points(
    mask: NDArray[np.bool_], max_points: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """1 to `max_points` pixels of a mask, uniformly; all different where it has enough.

    Args:
        mask: (H,W) with at least one pixel.
        max_points: most points.
        rng: of the draws.

    Returns:
        (n,2) x, y of the pixels.
    """
    pixels = np.flatnonzero(mask)
    count = int(rng.integers(1, max_points + 1))
    picks = rng.choice(pixels, count, replace=len(pixels) < count)
    return np.stack([picks % mask.shape[1], picks // mask.shape[1]], axis=-1).astype(np.float32)
