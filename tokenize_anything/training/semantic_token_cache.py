"""Semantic tokens of all captioned regions, computed once by the frozen first stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.checkpoints import write_safetensors
from tokenize_anything.data.region_captions import CaptionedRegion
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.image_transform import prepare_images
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts

CHUNK = 64


@torch.inference_mode()
def compute_semantic_tokens(
    model: TAP, records: Sequence[ImageRecord], regions: Sequence[CaptionedRegion]
) -> Tensor:
    """Tokens of box prompts, (len(regions),C) float32, in the order of `regions`."""
    model.eval()
    tokens = torch.zeros(len(regions), model.config.decoder_dim)
    by_image: dict[int, list[int]] = {}
    for row, region in enumerate(regions):
        by_image.setdefault(region.image_index, []).append(row)
    for index, rows in tqdm(by_image.items(), desc="semantic tokens", mininterval=5):
        pixels, frames = prepare_images([records[index].path], model.config)
        context = model.prepare_regions(model.encode_images(pixels.to(model.dtype)))
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            prompts = PointPrompts.from_boxes([regions[row].box_xyxy for row in part])
            coords = torch.from_numpy(frames[0].to_model_frame(prompts.coords_xy))
            labels = torch.from_numpy(np.array(prompts.labels))
            outputs = model.decode_regions(context, coords[None], labels[None], all_slots=False)
            tokens[part] = outputs.select(outputs.semantic_tokens).float()
    return tokens


def save_tokens(path: str | Path, tokens: Tensor) -> None:
    """Keep computed tokens, whole or not at all."""
    write_safetensors(path, {"semantic_tokens": tokens}, {})
