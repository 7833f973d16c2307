"""Training configurations: frozen dataclasses; a YAML file is a serialised one."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tokenize_anything.config import TAPConfig, tap_tiny
from tokenize_anything.data.augment import AugmentConfig
from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.data.region_dataset import RegionSamplingConfig
from tokenize_anything.training.optimizer import OptimizerConfig

Precision = Literal["float32", "bfloat16"]
Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the annotated photos are."""

    annotation_files: tuple[str, ...]
    image_folder: str


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Stage 1: masks, IoU and concepts.

    init_from: a model file to start from; its position table is resized to `model.image_size`.
    teacher_scale and student_scale: logit scales of the two concept classifiers.
    second_stage_probability: how often a step decodes a second stage of prompts.
    """

    data: DataConfig
    output_folder: str
    model: TAPConfig = field(default_factory=tap_tiny)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampling: RegionSamplingConfig = field(default_factory=RegionSamplingConfig)
    prompts: PromptSamplingConfig = field(default_factory=PromptSamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    init_from: str | None = None
    batch_size: int = 16
    num_steps: int = 5000
    drop_path: float = 0.1
    decoder_dropout: float = 0.1
    mask_weight: float = 1.0
    concept_weight: float = 1.0
    iou_weight: float = 1.0
    teacher_scale: float = 30.0
    student_scale: float = 40.0
    second_stage_probability: float = 1.0
    ema_decay: float = 0.999
    precision: Precision = "bfloat16"
    compile_encoder: bool = False
    seed: int = 0
    num_workers: int = 1
    save_every: int = 500
    log_every: int = 50


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Stage 2: captions from frozen semantic tokens."""

    data: DataConfig
    output_folder: str
    init_from: str
    text_tokenizer: str
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(peak_lr=1e-3, weight_decay=0.05)
    )
    batch_size: int = 64
    num_steps: int = 4000
    text_dropout: float = 0.2
    label_smoothing: float = 0.1
    precision: Precision = "bfloat16"
    seed: int = 0
    save_every: int = 500
    log_every: int = 50


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a configuration, ready for YAML."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def config_from_dict(kind: type[Config], values: dict[str, Any], where: str = "config") -> Config:
    """Build a configuration from plain values.

    Raises:
        ValueError: a key that `kind` does not have; nested keys are named with their path.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown keys {unknown}; known keys are {sorted(hints)}")
    return kind(
        **{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return config_from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return value
    if hint is float and isinstance(value, int):
        return float(value)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def load_config(kind: type[Config], path: str | Path) -> Config:
    """Read a YAML configuration; unknown keys are errors."""
    import yaml

    values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    return config_from_dict(kind, values, str(path))


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved configuration as YAML."""
    import yaml

    text = yaml.safe_dump(config_to_dict(config), sort_keys=False)
    Path(path).write_text(text, encoding="utf-8")
