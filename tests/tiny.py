"""A tiny TAP and its inputs for tests; its sizes differ wherever the model leaves a choice."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tokenize_anything.config import PointLabel, TAPConfig
from tokenize_anything.modeling import TAP
from tokenize_anything.text_tokenizer import TextTokenizer

ModuleT = TypeVar("ModuleT", bound=nn.Module)

TINY_TEXTS = (
    "a red car on the street",
    "two small dogs run over green grass",
    "an old man sits on a wooden bench",
    "the black cat sleeps under a table",
    "people fly a yellow kite at the beach",
)


def tiny_config(**overrides: Any) -> TAPConfig:
    """A 6x6 grid in 2x2 windows, 2 heads everywhere, 9 new tokens at most."""
    sizes: dict[str, Any] = dict(
        image_size=48,
        patch_size=8,
        window_size=3,
        encoder_dim=22,
        encoder_depth=4,
        encoder_heads=2,
        encoder_mlp_dim=19,
        decoder_dim=64,
        decoder_depth=2,
        decoder_mlp_dim=37,
        semantic_dim=29,
        text_dim=128,
        text_depth=3,
        text_mlp_dim=53,
        vocabulary_size=43,
        max_text_length=11,
    )
    return TAPConfig(**(sizes | overrides))


def tiny_tap(config: TAPConfig | None = None, *, seed: int = 0, **dropouts: float) -> TAP:
    """A TAP with random weights, in eval mode; about 460,000 parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TAP(config or tiny_config(), **dropouts)
    return randomize(model, seed).eval()


def randomize(module: ModuleT, seed: int = 0) -> ModuleT:
    """Fill all parameters and running statistics, so that no initial 0 or 1 hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif name.endswith("running_mean") or name.endswith("bias"):
                value.copy_(0.3 * noise)
            elif isinstance(value, nn.Parameter):
                fan_in = value[0].numel()
                value.copy_(noise / fan_in**0.5 if value.ndim > 1 else 1.0 + 0.3 * noise)
    return module


def tiny_prompts(
    config: TAPConfig, *, images: int = 2, prompts: int = 3, points: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """coords_xy (B,P,N,2) in model pixels and labels (B,P,N); every label occurs, boxes first."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, prompts, points)
    coords_xy = config.image_size * torch.rand(*shape, 2, generator=generator)
    labels = torch.randint(len(PointLabel), shape, generator=generator)
    labels[:, 0, :2] = torch.tensor([2, 3])  # a box in each image
    labels[:, 1:, 0] = 1  # clicks otherwise
    return coords_xy, labels


def tiny_pixels(config: TAPConfig, *, images: int = 2, seed: int = 0) -> Tensor:
    """Normalised pixels (B,3,S,S)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, config.image_size, config.image_size, generator=generator)


@functools.cache
def tiny_tokenizer_model() -> bytes:
    """A SentencePiece model with as many pieces as `tiny_config` has words."""
    return TextTokenizer.train(TINY_TEXTS, tiny_config().vocabulary_size)


def tiny_tokenizer() -> TextTokenizer:
    """Text tokenizer that fits `tiny_config`."""
    return TextTokenizer.from_bytes(tiny_tokenizer_model())
