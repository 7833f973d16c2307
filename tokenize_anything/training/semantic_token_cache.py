"""Region tokens on disk: computed once by the frozen first stage, block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.checkpoints import write_safetensors
from tokenize_anything.data.region_captions import CaptionedRegion
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.modeling import TAP
from tokenize_anything.training.region_tokens import RegionTokens

BLOCK_IMAGES = 64


class CachedTokens:
    """Tokens of all views of all regions, in memory.

    tokens: (regions,1+views,C) float32.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def select(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """(n,) region rows and (n,) views to tokens (n,C)."""
        return self.tokens[torch.from_numpy(rows), torch.from_numpy(views)]


def fill_cache(source: RegionTokens, folder: str | Path, *, rank: int = 0, world: int = 1) -> None:
    """Compute the blocks that the folder lacks, every `world`-th of them from `rank` on.

    Files whose key differs, or that are damaged, are replaced. What is done is kept when the work
    is interrupted.

    Raises:
        FileNotFoundError, ValueError: what `RegionTokens.select` raises.
        OSError: the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = weights_digest(source.model)
    blocks = list(enumerate(split_blocks(source.regions)))[rank::world]
    with tqdm(total=sum(len(rows) for _, rows in blocks), desc="tokens", mininterval=5) as progress:
        for number, rows in blocks:
            path, key = folder / f"{number:05d}.safetensors", tokens_key(source, rows, weights)
            if load_tokens(path, key) is None:
                save_tokens(path, _all_views(source, rows), key)
            progress.update(len(rows))


def read_cache(source: RegionTokens, folder: str | Path) -> CachedTokens:
    """Read what `fill_cache` left.

    Raises:
        ValueError: a block is missing, damaged or of another model or data.
    """
    weights = weights_digest(source.model)
    parts = []
    for number, rows in enumerate(split_blocks(source.regions)):
        path = Path(folder) / f"{number:05d}.safetensors"
        tokens = load_tokens(path, tokens_key(source, rows, weights))
        if tokens is None:
            raise ValueError(f"tokens: {path} is missing or damaged; run again to compute it")
        parts.append(tokens)
    return CachedTokens(torch.cat(parts))


def split_blocks(regions: Sequence[CaptionedRegion]) -> Iterator[NDArray[np.int64]]:
    """Rows of the regions of `BLOCK_IMAGES` images at a time; regions come image by image."""
    blocks = np.array([region.image_index // BLOCK_IMAGES for region in regions])
    for block in np.unique(blocks):
        yield np.flatnonzero(blocks == block)


def weights_digest(model: TAP) -> str:
    """Digest of everything in a model that tokens depend on."""
    config = model.config
    digest = hashlib.sha256(f"{config.image_size} {config.pixels} {config.zoom}".encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("text_decoder."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokens_key(source: RegionTokens, rows: NDArray[np.int64], weights: str) -> str:
    """Digest of what the tokens of some regions depend on."""
    config = source.config
    facts = (
        config.token, config.point_views, config.max_points, config.precision, source.seed,
    )  # fmt: skip
    digest = hashlib.sha256(f"{weights} {facts}".encode())
    for row in rows.tolist():
        region = source.regions[row]
        record: ImageRecord = source.records[region.image_index]
        digest.update(f"{row}\0{record.path}\0{region.box_xyxy}\0".encode())
    return digest.hexdigest()


def save_tokens(path: str | Path, tokens: Tensor, key: str) -> None:
    """Keep computed tokens, whole or not at all."""
    write_safetensors(path, {"tokens": tokens}, {"key": key})


def load_tokens(path: str | Path, key: str) -> Tensor | None:
    """Tokens that were kept under the same key; None when there are none, or they are damaged."""
    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return file.get_tensor("tokens").clone()
    except SafetensorError:
        return None
    return None


def _all_views(source: RegionTokens, rows: NDArray[np.int64]) -> Tensor:
    num_views = 1 + source.config.point_views
    views = np.tile(np.arange(num_views), len(rows))
    return source.select(np.repeat(rows, num_views), views).unflatten(0, (len(rows), num_views))
