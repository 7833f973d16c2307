"""Translate between our tensor names and those of the published checkpoints.

A published checkpoint is a pickle of a dict: tensor name to NumPy array. It holds no configuration;
every size is read off the tensors.
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.checkpoints import (
    check_depths,
    check_state,
    expected_state,
    parse_dtype,
    read_checkpoint,
    read_extra_tensors,
    replace_on_success,
    save_state,
)
from tokenize_anything.config import PixelConfig, TAPConfig
from tokenize_anything.modeling import TAP
from tokenize_anything.modeling.image_encoder import relative_position_index
from tokenize_anything.published_pickle import describe, load_published_pickle

# Ours (pattern) and theirs (template), one line per difference; the first match is applied.
_RENAMES = tuple(
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"^image_encoder\.patch_embed\.", "image_encoder.patch_embed.proj."),
        (r"^image_encoder\.pos_embed$", "image_encoder.pos_embed.weight"),
        (r"\.attn\.position_bias\.", ".attn.rel_pos_embed."),
        (r"\.cross_window\.(\d+)\.conv(\d)\.0\.", r".cross_conv.\1.conv\2."),
        (r"\.cross_window\.(\d+)\.conv(\d)\.1\.", r".cross_conv.\1.norm\2."),
        (r"^image_encoder\.neck\.0\.", "image_encoder.neck.lateral_conv.0."),
        (r"^image_encoder\.neck\.1\.", "image_encoder.neck.output_conv.0."),
        (r"^prompt_encoder\.position_encoding\.", "prompt_encoder."),
        (r"^prompt_encoder\.label_embedding\.", "prompt_encoder.point_embed."),
        (r"\.(token_to_image|image_to_token)\.", r".cross_attn_\1."),
        (r"\.final_token_to_image\.", ".final_attn_token_to_image."),
        (r"^image_decoder\.semantic_tokens$", "image_decoder.sem_tokens.weight"),
        (r"^image_decoder\.(iou_token|mask_tokens)$", r"image_decoder.\1.weight"),
        (r"^image_decoder\.upscale1\.", "image_decoder.output_conv.0."),
        (r"^image_decoder\.upscale_norm\.", "image_decoder.output_conv.1."),
        (r"^image_decoder\.upscale2\.", "image_decoder.output_conv.3."),
        (r"^image_decoder\.mask_heads\.", "image_decoder.mask_pred."),
        (r"^image_decoder\.iou_head\.", "image_decoder.iou_pred."),
        (r"^image_decoder\.semantic_head\.", "image_decoder.sem_pred."),
        (r"^text_decoder\.visual_proj\.", "text_decoder.encoder."),
        (r"^text_decoder\.word_embedding\.", "text_decoder.transformer.tok_embeddings."),
        (r"^text_decoder\.word_proj\.", "text_decoder.transformer.text_proj."),
        (
            r"^text_decoder\.blocks\.(\d+)\.(qkv|proj)\.",
            r"text_decoder.transformer.blocks.\1.attn.\2.",
        ),
        (r"^text_decoder\.(blocks|norm)\.", r"text_decoder.transformer.\1."),
    )
)
_INDEX_SUFFIX = ".attn.rel_pos_embed.index"
_ENCODER_BLOCK = "image_encoder.blocks"
_DECODER_BLOCK = "image_decoder.transformer.blocks"
_TEXT_BLOCK = "text_decoder.transformer.blocks"
# Tensors the sizes are read from, with their number of axes.
_ANCHORS = {
    "pixel_mean": 1,
    "pixel_rsig": 1,
    "image_encoder.patch_embed.proj.weight": 4,
    "image_encoder.pos_embed.weight": 2,
    f"{_ENCODER_BLOCK}.0.attn.rel_pos_embed.weight": 2,
    f"{_ENCODER_BLOCK}.0.mlp.fc1.weight": 2,
    "prompt_encoder.point_embed.weight": 2,
    f"{_DECODER_BLOCK}.0.mlp.fc1.weight": 2,
    "image_decoder.sem_pred.layers.2.weight": 2,
    "text_decoder.transformer.tok_embeddings.weight": 2,
    f"{_TEXT_BLOCK}.0.mlp.fc1.weight": 2,
}


def to_published_key(name: str) -> str:
    """The published name of one of our tensors."""
    for ours, theirs in _RENAMES:
        renamed, count = ours.subn(theirs, name, count=1)
        if count:
            return renamed
    return name


def to_published_state_dict(
    model: TAP, *, dtype: torch.dtype | str | None = None
) -> dict[str, Tensor]:
    """All tensors a published checkpoint of this model would hold, by their published names.

    Adds what the published files store and our modules derive: the index tables of the relative
    positions (int64) and the pixel facts, `pixel_mean` and `pixel_rsig` = 1 / std, in BGR order.

    Args:
        model: on any device, the meta device included.
        dtype: of all floating-point tensors; None takes the model's.

    Raises:
        ValueError: a model whose first convolution expects RGB, which that format cannot say.
    """
    return _to_published(model.config, model.state_dict(), dtype or model.dtype)


def from_published_state_dict(
    arrays: Mapping[str, np.ndarray],
) -> tuple[TAPConfig, dict[str, Tensor]]:
    """Configuration and native state dict of a published checkpoint.

    Every size is read from the tensors, except the text length, which they do not tell: it is 40.
    The index tables may be left out; if present they must be ours.

    Args:
        arrays: published name to array; not modified.

    Returns:
        The configuration, and tensors for `TAP(config)` in the dtype of the arrays.

    Raises:
        ValueError: lists every missing, unexpected and misfitting name, sorted, at once.
        TypeError: not a mapping.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"checkpoint: expected a dict of tensor name to array, got {type(arrays).__name__}"
        )
    config = _read_config(arrays)
    check_depths(config, len(arrays), where="checkpoint")
    expected = {to_published_key(name): (name, t) for name, t in expected_state(config).items()}
    shapes = {key: tensor for key, (_, tensor) in expected.items()}
    shapes |= {key: torch.empty(3, device="meta") for key in ("pixel_mean", "pixel_rsig")}
    index = relative_position_index(config.window_size)
    for block in range(config.encoder_depth):
        key = f"{_ENCODER_BLOCK}.{block}{_INDEX_SUFFIX}"
        if key in arrays:
            shapes[key] = index.to("meta")
    check_state(shapes, arrays, where="checkpoint")
    wrong = [k for k in shapes if k.endswith(_INDEX_SUFFIX) and (arrays[k] != index.numpy()).any()]
    if wrong:
        raise ValueError(
            f"checkpoint: relative position tables of another layout: {', '.join(sorted(wrong))}; "
            f"expected entry (q, k) = (dy + w - 1) * (2w - 1) + dx + w - 1"
        )
    return config, {name: _to_tensor(arrays[key]) for key, (name, _) in expected.items()}


def read_published_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[TAPConfig, dict[str, Tensor]]:
    """Read a published .pkl file of model weights, without running it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a refused or damaged pickle, or tensors that make no TAP model.
    """
    try:
        return from_published_state_dict(load_published_pickle(path))
    except (ValueError, TypeError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: {error}") from error


def load_published_concepts(path: str | os.PathLike[str]) -> tuple[list[str], np.ndarray]:
    """Read concept weights in the published format: a pickle of the list [weights, names].

    Returns:
        K names, and float32 weights (D,K) whose column k belongs to name k.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a refused or damaged pickle, or not the list described above.
    """
    found = load_published_pickle(path)
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise ValueError(
            f"{path}: expected concept weights, a list [weights (D,K), K names], got "
            f"{describe(found)}. A file of model weights goes to load_model"
        )
    weights, names = found
    names = names.tolist() if isinstance(names, np.ndarray) else names
    if not isinstance(weights, np.ndarray) or weights.ndim != 2 or weights.dtype.kind != "f":
        raise ValueError(f"{path}: weights: expected floats (D,K), got {describe(weights)}")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: names: expected a list of text, got {describe(names)}")
    if len(names) != weights.shape[1]:
        raise ValueError(
            f"{path}: expected one name per column of weights, got {len(names)} names and weights "
            f"{weights.shape}"
        )
    if not np.isfinite(weights).all():
        raise ValueError(f"{path}: weights: expected finite numbers, got NaN or infinity")
    return list(names), weights.astype(np.float32)


def save_published_checkpoint(
    model: TAP, path: str | os.PathLike[str], *, dtype: torch.dtype | str | None = None
) -> Path:
    """Write a model as a published-format .pkl file, whole or not at all.

    Args:
        model: not modified.
        path: where to; its folder must exist.
        dtype: float16 or float32, of all floating-point arrays; None takes the model's.

    Raises:
        ValueError: bfloat16, which NumPy lacks, or an RGB model.
    """
    return _save_published(model.config, model.state_dict(), Path(path), dtype or model.dtype)


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str = "float16",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Convert a checkpoint; the two suffixes say from what to what.

    Args:
        source: a published .pkl or a native .safetensors file.
        destination: .safetensors, or .pkl for the published format; replaced if it exists.
        dtype: of the floating-point weights in the new file.
        metadata: text for the header of a new .safetensors file. From native to native the old
            text and the extra tensors are kept; the published format has no place for them.

    Returns:
        The destination.

    Raises:
        FileNotFoundError: no such source, or no such folder.
        ValueError: another suffix, or a source that makes no TAP model.
    """
    source, destination = Path(source), Path(destination)
    for name, path in (("source", source), ("destination", destination)):
        if path.suffix not in (".pkl", ".safetensors"):
            raise ValueError(f"{name}: expected a .pkl or .safetensors file, got {path.name!r}")
    parse_dtype(dtype)
    if source.suffix == ".pkl":
        config, state = read_published_checkpoint(source)
        kept: Mapping[str, str] = {}
        extra_tensors: Mapping[str, Tensor] = {}
    else:
        header, state = read_checkpoint(source)
        config, kept, extra_tensors = header.config, header.metadata, read_extra_tensors(source)
    if destination.suffix == ".pkl":
        return _save_published(config, state, destination, dtype)
    kept = {**kept, **(metadata or {})}
    return save_state(
        config, state, destination, dtype=dtype, metadata=kept, extra_tensors=extra_tensors
    )


def _to_published(
    config: TAPConfig, state: Mapping[str, Tensor], dtype: torch.dtype | str
) -> dict[str, Tensor]:
    if config.pixels.channel_order != "BGR":
        raise ValueError("model: the published format holds BGR models only, got an RGB model")
    dtype = parse_dtype(dtype)
    published = {to_published_key(name): tensor for name, tensor in state.items()}
    published["pixel_mean"] = torch.tensor(config.pixels.mean, dtype=torch.float64)
    published["pixel_rsig"] = 1.0 / torch.tensor(config.pixels.std, dtype=torch.float64)
    published = {k: t.to(dtype) if t.is_floating_point() else t for k, t in published.items()}
    index = relative_position_index(config.window_size)
    for block in range(config.encoder_depth):
        published[f"{_ENCODER_BLOCK}.{block}{_INDEX_SUFFIX}"] = index
    return published


def _save_published(
    config: TAPConfig, state: Mapping[str, Tensor], path: Path, dtype: torch.dtype | str
) -> Path:
    if parse_dtype(dtype) == torch.bfloat16:
        raise ValueError("dtype: expected float16 or float32, got bfloat16, which NumPy lacks")
    published = _to_published(config, state, dtype)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in published.items()}
    with replace_on_success(path) as temporary, temporary.open("wb") as file:
        pickle.dump(arrays, file, protocol=4)
    return path


def _read_config(arrays: Mapping[str, np.ndarray]) -> TAPConfig:
    _check_anchors(arrays)
    shape = {name: arrays[name].shape for name in _ANCHORS}
    encoder_dim, _, patch_size, _ = shape["image_encoder.patch_embed.proj.weight"]
    heads, offsets = shape[f"{_ENCODER_BLOCK}.0.attn.rel_pos_embed.weight"]
    vocabulary_size, text_dim = shape["text_decoder.transformer.tok_embeddings.weight"]
    cells = shape["image_encoder.pos_embed.weight"][0]
    return TAPConfig(
        image_size=_exact_root("image_encoder.pos_embed.weight", cells) * patch_size,
        patch_size=patch_size,
        window_size=(_exact_root("attn.rel_pos_embed.weight", offsets) + 1) // 2,
        encoder_dim=encoder_dim,
        encoder_depth=_count_blocks(arrays, _ENCODER_BLOCK),
        encoder_heads=heads,
        encoder_mlp_dim=shape[f"{_ENCODER_BLOCK}.0.mlp.fc1.weight"][0],
        decoder_dim=shape["prompt_encoder.point_embed.weight"][1],
        decoder_depth=_count_blocks(arrays, _DECODER_BLOCK),
        decoder_mlp_dim=shape[f"{_DECODER_BLOCK}.0.mlp.fc1.weight"][0],
        semantic_dim=shape["image_decoder.sem_pred.layers.2.weight"][0],
        text_dim=text_dim,
        text_depth=_count_blocks(arrays, _TEXT_BLOCK),
        text_mlp_dim=shape[f"{_TEXT_BLOCK}.0.mlp.fc1.weight"][0],
        vocabulary_size=vocabulary_size,
        pixels=PixelConfig(
            mean=_as_floats(arrays["pixel_mean"]),
            std=_as_floats(1.0 / arrays["pixel_rsig"].astype(float)),
        ),
    )


def _check_anchors(arrays: Mapping[str, Any]) -> None:
    missing = sorted(set(_ANCHORS) - set(arrays))
    if missing:
        raise ValueError(
            f"checkpoint: not the weights of a TAP model; {len(missing)} missing: "
            f"{', '.join(missing)} (found {len(arrays)} names)"
        )
    wrong = [
        f"{name} is {getattr(arrays[name], 'shape', 'no array')}, expected {axes} axes, none empty"
        for name, axes in sorted(_ANCHORS.items())
        if not isinstance(arrays[name], np.ndarray)
        or arrays[name].ndim != axes
        or arrays[name].size == 0
    ]
    if wrong:
        raise ValueError(f"checkpoint: {len(wrong)} misfitting: {'; '.join(wrong)}")
    rsig = arrays["pixel_rsig"]
    if rsig.dtype.kind != "f" or not (np.isfinite(rsig) & (rsig > 0)).all():
        raise ValueError(f"checkpoint: pixel_rsig: expected three positive numbers, got {rsig}")


def _count_blocks(arrays: Mapping[str, Any], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max(int(match[1]) for name in arrays if (match := pattern.match(name)))


def _exact_root(name: str, count: int) -> int:
    root = math.isqrt(count)
    if root * root != count:
        raise ValueError(f"checkpoint: {name}: expected a square number of entries, got {count}")
    return root


def _as_floats(values: np.ndarray) -> Any:
    return tuple(values.astype(float).tolist())


def _to_tensor(array: np.ndarray) -> Tensor:
    native = array.astype(
        array.dtype.newbyteorder("=")
    )  # torch knows the machine's byte order only
    return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
