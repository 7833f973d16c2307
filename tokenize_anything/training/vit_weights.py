"""Start the image encoder from a plain ViT, as the paper does from MAE (He et al. 2022)."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokenize_anything.modeling import TAP
from tokenize_anything.torchvision_operators import ensure_torchvision_operators
from tokenize_anything.training.initialize import resize_position_table

TIMM_PREFIX = "timm/"
# Written alike by MAE's own files and by timm; what else they hold (class token, decoder,
# classifier, the norm behind a pooled output) has no place in the encoder.
_WANTED = re.compile(
    r"(pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)|"
    r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias))"
)


def initialize_encoder(model: TAP, source: str) -> None:
    """Copy patches, positions, blocks and the last norm of a ViT into the image encoder, in place.

    What a plain ViT lacks keeps what it has: position biases, cross-window blocks, neck. Plain ViTs
    are trained on RGB; where the model wants BGR, the patch filters are turned round. The position
    table is resized bicubically. MAE's norms use an epsilon of 1e-6, these 1e-5.

    Args:
        model: its encoder has the width, depth and patch size of the ViT.
        source: "timm/" and the name of a timm model, downloaded; or a file of MAE's or timm's:
            safetensors, or a torch file of tensors, possibly under "model" or "state_dict".

    Raises:
        FileNotFoundError: no such file.
        ImportError: timm is needed and not installed.
        ValueError: not such a file, or of another size (all misfits are listed).
    """
    state = _read_timm(source) if source.startswith(TIMM_PREFIX) else _read_file(Path(source))
    state = {name: value for name, value in state.items() if _WANTED.fullmatch(name)}
    if "pos_embed" not in state or "patch_embed.proj.weight" not in state:
        raise ValueError(
            f"init_encoder_from: expected a plain ViT with pos_embed and patch_embed.proj in "
            f"{source}, got {len(state)} of its tensors"
        )
    encoder = model.image_encoder
    table = state["pos_embed"].flatten(0, -2).float()
    side = math.isqrt(len(table))  # a class token, if there is one, comes first
    state["pos_embed"] = resize_position_table(table[-(side**2) :], model.config.grid_size)
    weight = state.pop("patch_embed.proj.weight")
    is_bgr = model.config.pixels.channel_order == "BGR"
    state["patch_embed.weight"] = weight.flip(1) if is_bgr else weight
    state["patch_embed.bias"] = state.pop("patch_embed.proj.bias")
    own = encoder.state_dict()
    needed = {name for name in own if _WANTED.fullmatch(name) or name.startswith("patch_embed")}
    problems = [f"{name} is missing" for name in sorted(needed - state.keys())]
    problems += [f"{name} is not in the encoder" for name in sorted(state.keys() - needed)]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in sorted(needed & state.keys())
        if state[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError(
            f"init_encoder_from: {source} is a ViT of other sizes than the encoder: "
            f"{'; '.join(problems)}"
        )
    encoder.load_state_dict(state, strict=False)


def _read_timm(source: str) -> Mapping[str, Tensor]:
    ensure_torchvision_operators()
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"init_encoder_from: {source} needs timm: pip install tokenize-anything[train]"
        ) from error
    name = source.removeprefix(TIMM_PREFIX)
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except RuntimeError as error:  # what timm raises for names and weights it does not have
        raise ValueError(
            f"init_encoder_from: timm has no weights for {name!r} ({error}); MAE's are "
            f"vit_base_patch16_224.mae, vit_large_patch16_224.mae and vit_huge_patch14_224.mae"
        ) from error
    return model.state_dict()


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"init_encoder_from: no file at {path}; write timm/NAME for one of timm's models"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"init_encoder_from: {path} is damaged, or holds more than tensors ({error})"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(
            f"init_encoder_from: expected tensors by name in {path}, got a {type(content).__name__}"
        )
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
