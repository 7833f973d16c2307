"""A tiny CLIP with random weights, in files as open_clip writes them, and its answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tokenize_anything.open_clip_files import CONFIG_FILE, WEIGHT_FILES, import_open_clip

DIM, SIDE = 13, 21
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CONFIG: dict[str, Any] = {
    "embed_dim": DIM,
    "vision_cfg": {
        "image_size": SIDE, "layers": 2, "width": 22, "head_width": 11, "patch_size": 7,
    },
    "text_cfg": {
        "context_length": 11, "vocab_size": 49408, "width": 10, "heads": 2, "layers": 2,
    },
}  # fmt: skip

needs_open_clip = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs tokenize-anything[clip]"
)


def make_tiny_clip(*, custom_text: bool = False, seed: int = 0) -> Any:
    """Built by open_clip, with all weights drawn anew."""
    open_clip = import_open_clip()
    model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**CONFIG).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def write_tiny_clip(folder: Path, model: Any, *, file: str = WEIGHT_FILES[0]) -> Path:
    """A folder that open_clip calls local-dir: configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    has_custom_text = hasattr(model, "text")
    content = {
        "model_cfg": CONFIG | {"custom_text": has_custom_text},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    state = model.state_dict()
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    return folder


@torch.no_grad()
def embed_plainly(model: Any, values: list[str] | Tensor) -> Tensor:
    """Texts or pixels through open_clip itself, one at a time."""
    if isinstance(values, Tensor):
        rows = [model.encode_image(one[None]) for one in values]
    else:
        tokenize = import_open_clip().SimpleTokenizer(context_length=11)
        rows = [model.encode_text(tokenize([one])) for one in values]
    return F.normalize(torch.cat(rows), dim=-1)


def write_hub_cache(cache: Path, repo_id: str, source: Path) -> None:
    """Lay the files of a folder out as huggingface_hub does after a download."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file in source.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())


def use_hub_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let huggingface_hub find everything there, and nothing on the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
