"""Find CLIP models and read their weights: open_clip's by name, a hub repository, or own files."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tokenize_anything.hub import download
from tokenize_anything.torchvision_operators import ensure_torchvision_operators

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HUB_PREFIX = "hf-hub:"
_SAMPLE = 1024  # values of each tensor that go into its fingerprint


@dataclass(frozen=True)
class ClipFiles:
    """One CLIP model, found but not yet read.

    name: how it is called in the name of its text space: "TOWER" or "TOWER:TAG".
    architecture: open_clip's configuration, with embed_dim, vision_cfg and text_cfg.
    tokenizer: what open_clip finds the tokenizer by.
    weights: a .safetensors file, or one written by torch.
    mean, std: of the pixels it was trained with, RGB in [0, 1].
    """

    name: str
    architecture: Mapping[str, Any]
    tokenizer: str
    weights: Path
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def import_open_clip() -> Any:
    """The package open_clip, which works beside a torchvision of another build too.

    Raises:
        ImportError: it, or a part it needs, is missing; names the cure.
    """
    ensure_torchvision_operators()
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            f"CLIP towers need open_clip ({error}): pip install tokenize-anything[clip]"
        ) from error
    return open_clip


def locate_clip(name: str, weights: str | os.PathLike[str] | None = None) -> ClipFiles:
    """Find a CLIP model, downloading its weights where they are not given.

    Args:
        name: a name of open_clip, "EVA02-E-14-plus"; with the tag of its weights where it has
            several, "ViT-B-32:laion2b_s34b_b79k"; "hf-hub:owner/name"; or a folder that holds
            open_clip_config.json and weights.
        weights: a file with weights for that architecture, in place of the published ones.

    Raises:
        FileNotFoundError: no such file, here or on the hub.
        ImportError: open_clip is missing.
        ValueError: an unknown name or tag, a tag where weights are given, or a name with several
            tags and none chosen.
        ConnectionError, PermissionError: see `hub.download`.
    """
    open_clip = import_open_clip()
    folder = Path(name).expanduser()
    if name.startswith(HUB_PREFIX):
        found = _describe_hub(open_clip, name)
    elif folder.is_dir():
        found = _describe_folder(open_clip, folder)
    else:
        found = _describe_named(open_clip, name, has_weights=weights is not None)
    if weights is not None:
        found = dataclasses.replace(found, weights=Path(weights).expanduser())
    if not found.weights.is_file():
        raise FileNotFoundError(f"weights: no file at {found.weights}; expected those of {name}")
    return found


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, as it names them; they stay on disk until they are used.

    A file of torch may hold them under "state_dict", as training checkpoints do; anything in it
    but tensors and plain values is refused, for a pickle can carry code.

    Raises:
        ValueError: damaged, refused, or without tensors.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch_file(path)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # damaged pickles raise anything
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path}: not a weights file, damaged, or with more in it than tensors ({reason}); "
            "expected .safetensors, or what torch.save writes of a state dict"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = content.items() if isinstance(content, Mapping) else ()
    state = {
        str(name).removeprefix("module."): tensor
        for name, tensor in tensors
        if isinstance(tensor, Tensor)
    }
    if not state:
        raise ValueError(f"{path}: expected a state dict of tensors, got none in it")
    return state


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """16 hex digits that tell weights apart: names, shapes, and the middle of every tensor.

    Quick for any size, and the same in whatever file and wider dtype the weights are kept. It is
    no protection against forgery.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].reshape(-1)
        start = max(0, (values.numel() - _SAMPLE) // 2)
        sample = values[start : start + _SAMPLE].float().cpu()
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _describe_named(open_clip: Any, name: str, *, has_weights: bool) -> ClipFiles:
    tower, _, tag = name.partition(":")
    architecture = open_clip.get_model_config(tower)
    if architecture is None:
        close = difflib.get_close_matches(tower, open_clip.list_models(), n=3, cutoff=0.4)
        raise ValueError(
            f"tower: open_clip knows no {tower!r}; did you mean one of {close}? A folder with "
            f"{CONFIG_FILE} and weights will do too"
        )
    if has_weights and tag:
        raise ValueError(f"tower: {name!r} names published weights, but a file is given too")
    tags = open_clip.list_pretrained_tags_by_model(tower)
    if not has_weights and not tag:
        if len(tags) != 1:
            raise ValueError(
                f"tower: {tower} has several published weights; expected one of "
                f"{[f'{tower}:{each}' for each in tags]}"
                if tags
                else f"tower: {tower} has no published weights; give a file"
            )
        tag = tags[0]
    if tag and tag not in tags:
        raise ValueError(f"tower: {tower} has no weights {tag!r}; expected one of {tags}")
    published = open_clip.get_pretrained_cfg(tower, tag) if tag else {}
    if published.get("quick_gelu"):  # a fact of the weights, not of the architecture's name
        architecture["quick_gelu"] = True
    weights = _download_weights(published["hf_hub"]) if tag else Path()
    return ClipFiles(
        f"{tower}:{tag}" if tag else tower,
        architecture,
        tower,
        weights,
        *_pixel_facts(open_clip, published),
    )


def _describe_folder(open_clip: Any, folder: Path) -> ClipFiles:
    architecture, pixels = _read_config(folder / CONFIG_FILE)
    candidates = [folder / file for file in WEIGHT_FILES]
    weights = next((file for file in candidates if file.is_file()), candidates[0])
    return ClipFiles(
        re.sub("[:@]", "-", folder.resolve().name),
        architecture,
        f"local-dir:{folder}",
        weights,
        *_pixel_facts(open_clip, pixels),
    )


def _describe_hub(open_clip: Any, name: str) -> ClipFiles:
    repo_id = name.removeprefix(HUB_PREFIX)
    architecture, pixels = _read_config(download(CONFIG_FILE, repo_id=repo_id))
    weights = _download_weights(f"{repo_id}/")
    return ClipFiles(name, architecture, name, weights, *_pixel_facts(open_clip, pixels))


def _download_weights(place: str) -> Path:
    """Fetch "owner/name/file"; or "owner/name/", which has its weights under a usual name."""
    repo_id, _, file = place.rpartition("/")
    if file:
        return download(file, repo_id=repo_id)
    try:
        return download(WEIGHT_FILES[0], repo_id=repo_id)
    except FileNotFoundError:
        return download(WEIGHT_FILES[1], repo_id=repo_id)


def _read_config(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"tower: no {path.name} in {path.parent}; open_clip writes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        architecture = content["model_cfg"]
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(architecture)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected JSON with a model_cfg, as open_clip writes") from error
    if missing:
        raise ValueError(f"{path}: its model_cfg lacks {sorted(missing)}")
    return dict(architecture), content.get("preprocess_cfg") or {}


def _pixel_facts(
    open_clip: Any, found: Mapping[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    mean = found.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = found.get("std") or open_clip.OPENAI_DATASET_STD
    return tuple(mean), tuple(std)


def _read_torch_file(path: Path) -> Any:
    # Older files of torch are no zip and cannot be mapped into memory.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
