"""Make models: from a configuration, or from a name or file that brings weights."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenize_anything.checkpoints import lay_out_model, parse_dtype, read_checkpoint
from tokenize_anything.config import TAPConfig
from tokenize_anything.hub import PUBLISHED_WEIGHTS, download
from tokenize_anything.modeling import TAP
from tokenize_anything.published_format import read_published_checkpoint
from tokenize_anything.weight_rounding import cast_tensor

BUILT_IN_WEIGHTS: Mapping[str, str] = {"tap_tiny": "weights/tap_tiny.safetensors"}
_OTHER_SUFFIXES = frozenset([".pth", ".pt", ".bin", ".ckpt", ".npz", ".onnx"])


def build_model(
    config: TAPConfig,
    *,
    device: torch.device | str = "cpu",
    drop_path: float = 0.0,
    decoder_dropout: float = 0.0,
    text_dropout: float = 0.0,
) -> TAP:
    """Make a model with fresh random weights, in float32 and evaluation mode.

    Args:
        config: sizes.
        device: "cpu", "cuda", "mps", or "auto" for the best one present.
        drop_path: stochastic depth of the last encoder block, used in training mode only.
        decoder_dropout: dropout of the image decoder, used in training mode only.
        text_dropout: dropout of the text decoder, used in training mode only.

    Raises:
        ValueError: a rate outside [0, 1), or a device that is not present.
    """
    rates = _checked_rates(drop_path, decoder_dropout, text_dropout)
    return TAP(config, **rates).to(choose_device(device)).eval()


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    config: TAPConfig | None = None,
    drop_path: float = 0.0,
    decoder_dropout: float = 0.0,
    text_dropout: float = 0.0,
) -> TAP:
    """Load a model with its weights, in evaluation mode; the file says its sizes.

    Args:
        name_or_path: "tap_tiny" (built in), "tap_vit_b", "tap_vit_l", "tap_vit_h" (published
            weights, downloaded; "tap_vit_b.v1_0" selects a version), or the path of a
            .safetensors or published-format .pkl file.
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: "float32", "float16", "bfloat16" or the torch dtype; "auto" is bfloat16 on CUDA
            (float16 where the GPU lacks it) and float32 elsewhere; on CPUs that compute bfloat16
            natively the small networks for views (`TAP.fast_views`) then run in it.
        config: what the file must contain; None accepts any. Pixel facts are not compared.
        drop_path: see `build_model`; the three rates matter in training mode only.
        decoder_dropout: see `build_model`.
        text_dropout: see `build_model`.

    Raises:
        FileNotFoundError: no such file, here or on the hub.
        ValueError: an unknown name, a file that is damaged, refused or of other sizes than
            `config`, an unknown dtype, a device that is not present, or a rate outside [0, 1).
        TypeError: neither text nor path.
        ConnectionError, PermissionError: see `hub.download`.
    """
    device = choose_device(device)
    is_chosen = dtype == "auto"
    dtype = choose_dtype(dtype, device)
    rates = _checked_rates(drop_path, decoder_dropout, text_dropout)
    path = locate_checkpoint(name_or_path)
    found, state = read_weights(path, dtype=dtype, device=device)
    if config is not None:
        _check_sizes(found, config, path)
    model = _assemble(found, state, rates)
    model.fast_views = is_chosen and device.type == "cpu" and has_bfloat16_units()
    return model


def read_weights(
    path: Path, *, dtype: torch.dtype | str, device: torch.device | str = "cpu"
) -> tuple[TAPConfig, dict[str, Tensor]]:
    """Configuration and state dict of a .safetensors or published-format .pkl file."""
    if path.suffix == ".pkl":
        config, state = read_published_checkpoint(path)
        target = parse_dtype(dtype)
        state = {name: cast_tensor(name, t, target).to(device) for name, t in state.items()}
        return config, state
    header, state = read_checkpoint(path, dtype=dtype, device=device)
    return header.config, state


def locate_checkpoint(name_or_path: str | os.PathLike[str]) -> Path:
    """Find the file behind a name or path, downloading published weights where needed.

    Raises:
        FileNotFoundError: no such file, here or on the hub.
        ValueError: an unknown name, or a file of another kind.
        TypeError: neither text nor path.
        ConnectionError, PermissionError: see `hub.download`.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(
            f"name_or_path: expected a name or a path, got {type(name_or_path).__name__}"
        )
    path = Path(name_or_path).expanduser()
    if path.suffix in (".safetensors", ".pkl"):
        if path.is_file():
            return path
        raise FileNotFoundError(f"{path}: no such file; the built-in model is named 'tap_tiny'")
    name = str(name_or_path)
    if name in BUILT_IN_WEIGHTS:
        return _locate_built_in(name)
    if name in PUBLISHED_WEIGHTS:
        return download(PUBLISHED_WEIGHTS[name])
    if path.exists() or path.suffix in _OTHER_SUFFIXES:
        raise ValueError(
            f"{path}: expected a .safetensors file, or a published-format .pkl file; turn other "
            f"files into a pickled dict of NumPy arrays with the published names, then run "
            f"`tap convert`"
        )
    known = [*BUILT_IN_WEIGHTS, *PUBLISHED_WEIGHTS]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"unknown model {name!r}{hint} Known names are {known}; or pass the path of a .safetensors "
        f"or .pkl file"
    )


def choose_device(device: torch.device | str = "auto") -> torch.device:
    """Resolve "auto" to CUDA, MPS or the CPU, whichever is present first, and check any other.

    Raises:
        ValueError: no such device, or not on this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device: expected 'auto', 'cpu', 'cuda' or 'mps', got {device!r}"
        ) from error
    is_missing = {
        "cuda": not torch.cuda.is_available(),
        "mps": not torch.backends.mps.is_available(),
    }
    if is_missing.get(chosen.type, False):
        raise ValueError(f"device: {chosen} is not available to torch here; use device='cpu'")
    return chosen


def choose_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """Resolve "auto": bfloat16 on CUDA (float16 where the GPU lacks it), else float32.

    Raises:
        ValueError: not "auto", float32, float16 or bfloat16.
    """
    if dtype != "auto":
        return parse_dtype(dtype)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def has_bfloat16_units() -> bool:
    """Whether the CPU computes bfloat16 natively (AMX, AVX512-BF16), as far as torch can tell."""
    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("amx_bf16") or facts.get("avx512_bf16"))


def _assemble(config: TAPConfig, state: Mapping[str, Tensor], rates: dict[str, float]) -> TAP:
    """Lay the model out without memory, then hand it the tensors."""
    model = lay_out_model(config, **rates)
    model.load_state_dict(dict(state), assign=True)
    return model.to(model.device).eval()  # moves the index tables to where the weights are


def _locate_built_in(name: str) -> Path:
    path = Path(str(importlib.resources.files("tokenize_anything"))) / BUILT_IN_WEIGHTS[name]
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: the built-in weights are missing from this installation (expected {path}). "
            f"Install the package again: pip install --force-reinstall tokenize-anything"
        )
    return path


def _check_sizes(found: TAPConfig, wanted: TAPConfig, path: Path) -> None:
    differences = [
        f"{f.name} is {getattr(found, f.name)}, expected {getattr(wanted, f.name)}"
        for f in dataclasses.fields(TAPConfig)
        if f.name != "pixels" and getattr(found, f.name) != getattr(wanted, f.name)
    ]
    if differences:
        raise ValueError(
            f"{path}: the weights are of another size than asked for: {'; '.join(differences)}. "
            f"Leave out the configuration to take the file's own"
        )


def _checked_rates(
    drop_path: float, decoder_dropout: float, text_dropout: float
) -> dict[str, float]:
    rates = {
        "drop_path": drop_path, "decoder_dropout": decoder_dropout, "text_dropout": text_dropout,
    }  # fmt: skip
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name}: expected a rate of at least 0 and below 1, got {rate}")
    return rates
