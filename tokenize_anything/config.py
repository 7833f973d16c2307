"""Model configuration: the numbers that define a TAP model, and the named presets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

NUM_MASK_SLOTS = 4
# fields of TAPConfig that are no positive integers
_NOT_SIZES = (
    "pixels", "zoom", "view_dim", "view_corrects", "namer_size", "namer_dim", "wide_size",
    "click_size",
)  # fmt: skip


class PointLabel(IntEnum):
    """What a prompt point means (paper section 3.2)."""

    BACKGROUND = 0
    FOREGROUND = 1
    TOP_LEFT = 2
    BOTTOM_RIGHT = 3
    PADDING = 4


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Preprocessing facts of a set of weights; they travel with the weights.

    `mean` and `std` are in 0..255 units and listed in `channel_order`, the order in which the
    model's first convolution expects its channels.
    """

    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    std: tuple[float, float, float] = (57.375, 57.12, 58.395)
    channel_order: Literal["BGR", "RGB"] = "BGR"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _as_triple("mean", self.mean))
        object.__setattr__(self, "std", _as_triple("std", self.std))
        if min(self.std) <= 0:
            raise ValueError(f"std: expected three positive numbers, got {self.std}")
        if self.channel_order not in ("BGR", "RGB"):
            raise ValueError(f"channel_order: expected 'BGR' or 'RGB', got {self.channel_order!r}")


@dataclass(frozen=True, kw_only=True)
class TAPConfig:
    """Sizes of one TAP model (paper section 3.2 and table 3).

    Letters of the shape alphabet: `decoder_dim` is C, `semantic_dim` is D, `vocabulary_size` is V.
    `max_text_length` counts the visual token, so at most `max_text_length - 2` new tokens follow
    the start token. `zoom` is how large a small region appears in a second view (see `zooming`), as
    a share of the view's side; 0 for models that look once. `view_dim` is the width of the network
    that outlines regions in views of `view_size` pixels (`modeling.view_segmenter`), 0 for none;
    `view_corrects` says whether it is shown the mask that clicks correct. `namer_size` is the side
    of the views of another one that names regions (`modeling.view_namer`), 0 for none; `namer_dim`
    its width, 0 for `view_dim`; `wide_size` the side of a second, wider view of that one, 0 for
    none. `click_size` is the side of the windows of a network of width `view_dim` that answers
    clicks (`modeling.click_segmenter`), 0 for none.
    """

    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 16
    encoder_dim: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    encoder_mlp_dim: int = 3072
    decoder_dim: int = 256
    decoder_depth: int = 2
    decoder_mlp_dim: int = 2048
    semantic_dim: int = 1024
    text_dim: int = 512
    text_depth: int = 12
    text_mlp_dim: int = 2048
    vocabulary_size: int = 32000
    max_text_length: int = 40
    zoom: float = 0.0
    view_dim: int = 0
    view_size: int = 128
    view_corrects: bool = False
    namer_size: int = 0
    namer_dim: int = 0
    wide_size: int = 0
    click_size: int = 0
    pixels: PixelConfig = dataclasses.field(default_factory=PixelConfig)

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be a positive integer, got {value!r}"
            for name, value in self._sizes().items()
            if not isinstance(value, int) or isinstance(value, bool) or value < 1
        ]
        if not problems:
            problems = self._cross_field_problems()
        if problems:
            raise ValueError("TAPConfig: " + "; ".join(problems))

    def _sizes(self) -> dict[str, Any]:
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in _NOT_SIZES
        }

    def _cross_field_problems(self) -> list[str]:
        rules = [
            (self.image_size % (self.patch_size * self.window_size) == 0,
             f"image_size must be a multiple of patch_size * window_size = "
             f"{self.patch_size * self.window_size}, got {self.image_size}"),
            (self.encoder_dim % self.encoder_heads == 0,
             f"encoder_dim must be a multiple of encoder_heads, got {self.encoder_dim} and "
             f"{self.encoder_heads}"),
            (self.encoder_depth % 4 == 0,
             f"encoder_depth must be a multiple of 4, got {self.encoder_depth}"),
            (self.decoder_dim % 32 == 0,
             f"decoder_dim must be a multiple of 32, got {self.decoder_dim}"),
            (self.text_dim % 64 == 0, f"text_dim must be a multiple of 64, got {self.text_dim}"),
            (self.max_text_length >= 3,
             f"max_text_length must be at least 3, got {self.max_text_length}"),
            (isinstance(self.zoom, int | float) and 0 <= self.zoom <= 1,
             f"zoom must be a number from 0 to 1, got {self.zoom!r}"),
            (type(self.view_dim) is int and self.view_dim >= 0,
             f"view_dim must be a whole number of at least 0, got {self.view_dim!r}"),
            (self.view_size % 32 == 0, f"view_size must be a multiple of 32, got {self.view_size}"),
            (type(self.view_corrects) is bool and (bool(self.view_dim) or not self.view_corrects),
             f"view_corrects must be False where view_dim is 0, and True or False elsewhere, got "
             f"{self.view_corrects!r}"),
            (type(self.namer_size) is int and self.namer_size >= 0 and self.namer_size % 32 == 0,
             f"namer_size must be 0 or a multiple of 32, got {self.namer_size!r}"),
            (not self.namer_size or bool(self.view_dim),
             f"namer_size must be 0 where view_dim is 0 (`tap train views` comes first), got "
             f"{self.namer_size!r}"),
            (type(self.namer_dim) is int and self.namer_dim >= 0,
             f"namer_dim must be a whole number of at least 0, got {self.namer_dim!r}"),
            (not self.namer_dim or bool(self.namer_size),
             f"namer_dim must be 0 where namer_size is 0, got {self.namer_dim!r}"),
            (type(self.wide_size) is int and self.wide_size >= 0 and self.wide_size % 32 == 0,
             f"wide_size must be 0 or a multiple of 32, got {self.wide_size!r}"),
            (not self.wide_size or bool(self.namer_size),
             f"wide_size must be 0 where namer_size is 0, got {self.wide_size!r}"),
            (type(self.click_size) is int and self.click_size >= 0 and self.click_size % 64 == 0,
             f"click_size must be 0 or a multiple of 64, got {self.click_size!r}"),
            (not self.click_size or bool(self.view_dim),
             f"click_size must be 0 where view_dim is 0 (`tap train views` comes first), got "
             f"{self.click_size!r}"),
        ]  # fmt: skip
        return [message for holds, message in rules if not holds]

    @property
    def grid_size(self) -> int:
        """Side of the feature grid, h = w."""
        return self.image_size // self.patch_size

    @property
    def decoder_heads(self) -> int:
        """Heads of the image decoder: 32 channels each in self-attention, 16 in cross-attention."""
        return self.decoder_dim // 32

    @property
    def text_heads(self) -> int:
        """Heads of the text decoder, 64 channels each."""
        return self.text_dim // 64

    def to_json(self) -> str:
        """Serialise; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TAPConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not JSON, an unknown key, or sizes that do not fit together.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"config: expected JSON, got {text[:60]!r} ({error})") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TAPConfig:
        """Build from plain values; unknown keys are errors."""
        pixels = values.get("pixels", {}) if isinstance(values, Mapping) else None
        if not isinstance(pixels, Mapping):
            raise ValueError(f"config: expected keys with values, pixels too, got {values!r:.60}")
        values = {key: value for key, value in values.items() if key != "pixels"}
        _refuse_unknown_keys(values, cls, "config")
        _refuse_unknown_keys(pixels, PixelConfig, "config.pixels")
        return cls(**values, pixels=PixelConfig(**pixels))


def _as_triple(name: str, values: Any) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name}: expected 3 finite numbers, one per channel, got {values!r}")
    return numbers[0], numbers[1], numbers[2]


def _refuse_unknown_keys(values: Mapping[str, Any], kind: type, where: str) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{where}: unknown keys {unknown}; known keys are {sorted(known)}")


def tap_tiny() -> TAPConfig:
    """The built-in model: trained on a laptop, shipped inside the package."""
    return TAPConfig(
        image_size=384,
        window_size=8,
        encoder_dim=192,
        encoder_depth=12,
        encoder_heads=3,
        encoder_mlp_dim=768,
        decoder_dim=128,
        decoder_mlp_dim=512,
        semantic_dim=384,
        text_dim=256,
        text_depth=4,
        text_mlp_dim=1024,
        vocabulary_size=3812,
        zoom=0.5,
        view_dim=24,
        view_corrects=True,
        namer_size=128,
        wide_size=64,
        click_size=64,
    )


def tap_vit_b() -> TAPConfig:
    """ViT-B of the paper, 174.5 M parameters."""
    return TAPConfig()


def tap_vit_l() -> TAPConfig:
    """ViT-L of the paper, 399.3 M parameters."""
    return TAPConfig(encoder_dim=1024, encoder_depth=24, encoder_heads=16, encoder_mlp_dim=4096)


def tap_vit_h() -> TAPConfig:
    """ViT-H, published with the v1.1 weights, 735.8 M parameters."""
    return TAPConfig(encoder_dim=1280, encoder_depth=32, encoder_heads=16, encoder_mlp_dim=5120)


PRESETS: Mapping[str, Callable[[], TAPConfig]] = {
    "tap_tiny": tap_tiny,
    "tap_vit_b": tap_vit_b,
    "tap_vit_l": tap_vit_l,
    "tap_vit_h": tap_vit_h,
}
