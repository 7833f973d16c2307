"""Semantic tokens of all captioned regions, computed once by the frozen first stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.checkpoints import write_safetensors
from tokenize_anything.data.region_captions import CaptionedRegion
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.image_transform import prepare_images
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts

CHUNK = 64


@torch.no_grad()
def compute_semantic_tokens(
    model: TAP, records: Sequence[ImageRecord], regions: Sequence[CaptionedRegion]
) -> Tensor:
    """Tokens of box prompts, (len(regions),C) float32 on the CPU, in the order of `regions`.

    The model is put in evaluation mode.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: an image cannot be decoded or has another size than its annotation says.
    """
    model.eval()
    tokens = torch.zeros(len(regions), model.config.decoder_dim)
    by_image: dict[int, list[int]] = {}
    for row, region in enumerate(regions):
        by_image.setdefault(region.image_index, []).append(row)
    for index, rows in tqdm(by_image.items(), desc="semantic tokens", mininterval=5):
        pixels, frames = prepare_images([read_image(records[index])], model.config)
        context = model.prepare_regions(model.encode_images(pixels.to(model.device, model.dtype)))
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            prompts = PointPrompts.from_boxes([regions[row].box_xyxy for row in part])
            coords = torch.from_numpy(frames[0].to_model_frame(prompts.coords_xy)).to(model.device)
            labels = torch.tensor(prompts.labels, device=model.device)
            outputs = model.decode_regions(context, coords[None], labels[None], all_slots=False)
            tokens[part] = outputs.select(outputs.semantic_tokens).float().cpu()
    return tokens


def tokens_key(
    model: TAP, records: Sequence[ImageRecord], regions: Sequence[CaptionedRegion]
) -> str:
    """Digest of what the tokens depend on: weights of the image side, paths and boxes."""
    digest = hashlib.sha256(f"{model.config.image_size} {model.config.pixels}".encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("text_decoder."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    for region in regions:
        digest.update(f"{records[region.image_index].path}\0{region.box_xyxy}\0".encode())
    return digest.hexdigest()


def save_tokens(path: str | Path, tokens: Tensor, key: str) -> None:
    """Keep computed tokens, whole or not at all."""
    write_safetensors(path, {"semantic_tokens": tokens}, {"key": key})


def load_tokens(path: str | Path, key: str) -> Tensor | None:
    """Tokens that were kept under the same key; None when there are none, or they are damaged."""
    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return file.get_tensor("semantic_tokens").clone()
    except SafetensorError:
        return None
    return None
