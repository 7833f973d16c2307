"""The text and image towers of a CLIP model: texts and pictures as vectors of one space."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from tokenize_anything.build import choose_device, choose_dtype
from tokenize_anything.open_clip_files import (
    ClipFiles,
    fingerprint,
    import_open_clip,
    locate_clip,
    read_state,
)

DEFAULT_CLIP = "EVA02-E-14-plus"  # the teacher of the paper; 5.0 B parameters, 0.69 B for texts
Towers: TypeAlias = Literal["both", "text", "image"]

_FACTORIES = frozenset([torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros])
_LARGE = 2**20  # elements; tables that a model computes for itself are smaller
_SHARED = ("logit_scale", "logit_bias")
_BAR_FROM = 1000  # texts


class ClipTowers:
    """A CLIP model, or one tower of it; the other one never takes memory.

    identity: names the space of its vectors, for files that must not mix two: the model's name
        and a digest of its weights, the same whichever tower was loaded.
    dim: D.
    logit_scale: what the model multiplies cosines with before a softmax.
    image_size, mean, std: of the pictures it was trained with; RGB in [0, 1].

    Args:
        name: see `open_clip_files.locate_clip`.
        weights: a file, in place of published weights, which are downloaded.
        towers: "text" and "image" load one tower.
        device: "auto", "cpu", "cuda", "mps" or a torch device.
        dtype: of the weights; "auto" is float32 on the CPU and bfloat16 on CUDA.

    Raises:
        FileNotFoundError: no such file, here or on the hub.
        ImportError: open_clip is missing.
        ValueError: an unknown name, or weights that are damaged or of another architecture.
        ConnectionError, PermissionError: see `hub.download`.
    """

    def __init__(
        self,
        name: str = DEFAULT_CLIP,
        weights: str | os.PathLike[str] | None = None,
        *,
        towers: Towers = "both",
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = "auto",
    ) -> None:
        if towers not in ("both", "text", "image"):
            raise ValueError(f"towers: expected 'both', 'text' or 'image', got {towers!r}")
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        files = locate_clip(name, weights)
        model = _lay_out(files)
        state = _conform(read_state(files.weights), model, files)
        size = model.visual.image_size
        self.image_size = int(size if isinstance(size, int) else max(size))
        self.mean, self.std = files.mean, files.std
        self.identity = f"{files.name}@{fingerprint(state)}"
        self.dim = int(files.architecture["embed_dim"])
        self.logit_scale = float(state["logit_scale"].float().exp())
        self._has_text, self._has_image = towers != "image", towers != "text"
        _keep_towers(model, towers)
        self._model = _fill(model, state, self.device, self.dtype)
        if self._has_text:
            self._tokenize = import_open_clip().get_tokenizer(files.tokenizer)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Embed texts; what is longer than the tower's context is cut off.

        Returns:
            (n,D) float32 on the CPU, L2-normalised.

        Raises:
            TypeError: not texts.
            ValueError: the text tower was not loaded, or overflows in this dtype.
        """
        if not self._has_text:
            raise ValueError("towers: this model was loaded for images; expected 'text' or 'both'")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts: expected a sequence of texts, got {texts!r:.60}")
        rows = [
            self._model.encode_text(self._tokenize(batch).to(self.device)).float().cpu()
            for batch in _batches(list(texts), batch_size)
        ]
        return self._unit_rows(rows)

    @torch.no_grad()
    def embed_images(self, pixels: Tensor, *, batch_size: int = 64) -> Tensor:
        """Embed pictures.

        Args:
            pixels: (n,3,S,S) of any floating-point type, S = `image_size`, normalised with `mean`
                and `std`.
            batch_size: how many at once.

        Returns:
            (n,D) float32 on the CPU, L2-normalised.

        Raises:
            ValueError: another shape, the image tower was not loaded, or it overflows in this
                dtype.
        """
        if not self._has_image:
            raise ValueError("towers: this model was loaded for texts; expected 'image' or 'both'")
        shape = (3, self.image_size, self.image_size)
        if pixels.ndim != 4 or pixels.shape[1:] != shape or not pixels.is_floating_point():
            raise ValueError(
                f"pixels: expected floating-point (n, {', '.join(map(str, shape))}), got "
                f"{tuple(pixels.shape)} {pixels.dtype}"
            )
        rows = [
            self._model.encode_image(batch.to(self.device, self.dtype)).float().cpu()
            for batch in pixels.split(batch_size)
            if len(batch)
        ]
        return self._unit_rows(rows)

    def _unit_rows(self, rows: list[Tensor]) -> Tensor:
        joined = torch.cat([*rows, torch.empty(0, self.dim)])
        if not torch.isfinite(joined).all():
            raise ValueError(
                f"dtype: {self.dtype} is too narrow for this tower, which gave NaN or infinity; "
                "choose bfloat16 or float32"
            )
        return F.normalize(joined, dim=-1)


class _WithoutMemory(TorchFunctionMode):
    """Large new tensors have no memory (meta device), and are not filled; small ones are real.

    Tables that a model computes for itself, and no file holds, so keep their values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        if isinstance(first, Tensor) and first.is_meta and _is_in_place(func.__name__):
            return first
        if func in _FACTORIES:
            trial = func(*args, **(kwargs | {"device": "meta"}))
            if trial.numel() > _LARGE:
                return trial
        return func(*args, **kwargs)


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _lay_out(files: ClipFiles) -> Any:
    """The model with both towers, as yet without memory for its weights."""
    open_clip = import_open_clip()
    config = {**files.architecture}
    config["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    config["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
    has_custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = open_clip.CustomTextCLIP if has_custom_text else open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
    try:
        with _WithoutMemory():
            return kind(**config).eval()
    except TypeError as error:
        raise ValueError(f"tower: unusable configuration of {files.name} ({error})") from error


def _conform(state: dict[str, Tensor], model: nn.Module, files: ClipFiles) -> dict[str, Tensor]:
    """The tensors of the model, by its own names; checks that all are there and fit.

    Raises:
        ValueError: lists what is missing or misfits.
    """
    if hasattr(model, "text") and "text_projection" in state:  # the text tower was top level once
        top = ("visual.", *_SHARED)
        state = {n if n.startswith(top) else f"text.{n}": tensor for n, tensor in state.items()}
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys() - {"logit_bias"})
    surplus = sorted(
        name for name in state.keys() - expected.keys() if not name.endswith("position_ids")
    )
    misfits = [
        f"{name} is {list(state[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].numel() != expected[name].numel()
        or (name not in _SHARED and state[name].shape != expected[name].shape)
    ]
    if missing or surplus or misfits:
        raise ValueError(
            f"{files.weights}: not the weights of {files.name}: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(surplus)} unknown {surplus[:3]}, {len(misfits)} of another shape "
            f"{misfits[:3]}"
        )
    return {name: state[name].reshape(expected[name].shape) for name in expected if name in state}


def _keep_towers(model: nn.Module, towers: Towers) -> None:
    """Drop the tower that is not wanted."""
    parts = [name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))]
    parts += [name for name, _ in model.named_buffers(recurse=False)]
    for name in parts:
        is_image = name == "visual"
        if (towers == "text" and is_image) or (
            towers == "image" and not is_image and name not in _SHARED
        ):
            delattr(model, name)


def _fill(model: Any, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> Any:
    """Give the model its weights, tensor by tensor, so that no second copy of all is needed."""
    own = {
        name: state[name].to(device, dtype if state[name].is_floating_point() else None, copy=True)
        for name in model.state_dict()
        if name in state
    }
    model.load_state_dict(own, strict=False, assign=True)
    without = [name for name, value in model.named_parameters() if value.is_meta]
    without += [name for name, value in model.named_buffers() if value.is_meta]
    if without:
        raise RuntimeError(f"no weights for {without[:3]}")
    return model.to(device, dtype).eval().requires_grad_(False)


def _batches(texts: list[str], size: int) -> Iterator[list[str]]:
    """Slices of `size`, with a bar where it takes long."""
    with tqdm(total=len(texts), unit="text", disable=len(texts) < _BAR_FROM) as bar:
        for start in range(0, len(texts), size):
            batch = texts[start : start + size]
            yield batch
            bar.update(len(batch))
