"""Training configurations: frozen dataclasses; a YAML file is a serialised one."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.config import TAPConfig, tap_tiny
from tokenize_anything.data.augment import AugmentConfig
from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.data.region_dataset import RegionSamplingConfig
from tokenize_anything.training.optimizer import OptimizerConfig

TRAINABLE_PARTS = ("image_encoder", "prompt_encoder", "image_decoder")

Precision = Literal["float32", "bfloat16"]
Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the annotated photos are.

    annotation_files: COCO-style JSON, see `data.coco_lvis.read_regions`.
    image_folder: where their `file_name` is looked up.
    """

    annotation_files: tuple[str, ...]
    image_folder: str


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Stage 1: masks, IoU and concepts.

    init_from: a model to start from; its position table is resized to `model.image_size`.
    freeze: parts that stay as they are, of `TRAINABLE_PARTS`.
    fresh: parts that start from noise although `init_from` has them.
    sine_positions: scale of a sine table added to the position table at the start (see
        `sine_position_table`); 0 adds none.
    dice_weight: of the dice loss beside 20 times the focal loss; the paper has 1.
    num_steps: length of the learning-rate schedule.
    stop_step: end the run here, before the end of the schedule; None goes to the end.
    teacher_scale and student_scale: logit scales of the two concept classifiers.
    second_stage_probability: how often a step decodes a second stage of prompts.
    device: "cpu", "cuda", "mps", or "auto".
    precision: bfloat16 runs the network under autocast; the losses are float32 always.
    compile_model: compile encoder, decoder and losses, which takes minutes at the start.
    """

    data: DataConfig
    output_folder: str
    model: TAPConfig = field(default_factory=tap_tiny)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampling: RegionSamplingConfig = field(default_factory=RegionSamplingConfig)
    prompts: PromptSamplingConfig = field(default_factory=PromptSamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    init_from: str | None = None
    freeze: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    sine_positions: float = 0.0
    batch_size: int = 16
    num_steps: int = 5000
    stop_step: int | None = None
    drop_path: float = 0.1
    decoder_dropout: float = 0.1
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    concept_weight: float = 1.0
    iou_weight: float = 1.0
    teacher_scale: float = 30.0
    student_scale: float = 40.0
    second_stage_probability: float = 1.0
    ema_decay: float = 0.999
    device: str = "cpu"
    precision: Precision = "bfloat16"
    compile_model: bool = False
    seed: int = 0
    num_workers: int = 1
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        _require_counts(self, ("batch_size", "num_steps", "save_every", "log_every"))
        _require_fractions(self, ("second_stage_probability", "ema_decay"))
        _require_parts(self, ("freeze", "fresh"))
        if self.num_workers < 0:
            raise ValueError(f"num_workers: expected at least 0, got {self.num_workers}")
        if self.stop_step is not None and not 1 <= self.stop_step <= self.num_steps:
            raise ValueError(
                f"stop_step: expected 1 to num_steps = {self.num_steps}, got {self.stop_step}"
            )
        if self.model.image_size % self.sampling.mask_stride:
            raise ValueError(
                f"sampling.mask_stride: expected a divisor of model.image_size "
                f"{self.model.image_size}, got {self.sampling.mask_stride}"
            )

    @property
    def last_step(self) -> int:
        """The step at which the run ends."""
        return self.num_steps if self.stop_step is None else self.stop_step


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Stage 2: captions from frozen semantic tokens.

    init_from: the model of stage 1.
    text_tokenizer: a SentencePiece file.
    image_size: the size to use the model at, its position table resized; None keeps its own.
    fresh_text_decoder: start with a new text decoder, made for the pieces of the tokenizer;
        otherwise that of `init_from` goes on, and the tokenizer must have as many pieces.
    device: "cpu", "cuda", "mps", or "auto".
    """

    data: DataConfig
    output_folder: str
    init_from: str
    text_tokenizer: str
    image_size: int | None = None
    fresh_text_decoder: bool = False
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(peak_lr=1e-3, weight_decay=0.05)
    )
    batch_size: int = 64
    num_steps: int = 4000
    text_dropout: float = 0.2
    label_smoothing: float = 0.1
    device: str = "cpu"
    precision: Precision = "bfloat16"
    seed: int = 0
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        _require_counts(self, ("batch_size", "num_steps", "save_every", "log_every"))
        _require_fractions(self, ("label_smoothing",))


def load_config(kind: type[Config], path: str | Path) -> Config:
    """Read a YAML configuration.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown or missing key, or a value of another type or outside its
            range; the message gives the place.
    """
    yaml = _import_yaml()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config: no file at {path}; expected a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is not YAML ({error})") from error
    return config_from_dict(kind, {} if values is None else values, str(path))


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved configuration as YAML, whole or not at all."""
    text = _import_yaml().safe_dump(config_to_dict(config), sort_keys=False)
    with replace_on_success(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a configuration, ready for YAML."""
    return _plain(dataclasses.asdict(config))


def config_from_dict(
    kind: type[Config], values: Mapping[str, Any], where: str = "config"
) -> Config:
    """Build a configuration from plain values.

    Args:
        kind: a dataclass.
        values: by field name, nested for nested dataclasses.
        where: what error messages call it; nested keys are named with their path.

    Raises:
        ValueError: an unknown or missing key, or a value of another type or outside its range.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected keys and values, got {values!r:.99}")
    unknown = sorted(set(map(str, values)) - set(hints))
    if unknown:
        raise ValueError(f"{where}: unknown keys {unknown}; known keys are {sorted(hints)}")
    missing = sorted(_required_keys(kind) - set(values))
    if missing:
        raise ValueError(f"{where}: the keys {missing} are missing")
    converted = {
        key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()
    }
    try:
        return kind(**converted)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _required_keys(kind: Any) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return config_from_dict(hint, value, where)
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: expected one of {list(arguments)}, got {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):  # of one type and None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _convert(inner, value, where)
    return _convert_scalar(hint, value, where)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: expected a list, got {value!r}")
    hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(value) != len(hints):
        raise ValueError(f"{where}: expected {len(hints)} values, got {len(value)}: {value!r}")
    return tuple(
        _convert(hint, item, f"{where}[{index}]")
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    cure = "; YAML reads 1e-3 as text, write 0.001 or 1.0e-3" if _looks_like_number(value) else ""
    raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}{cure}")


def _looks_like_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def _import_yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "configuration files need PyYAML: pip install tokenize-anything[train]"
        ) from error
    return yaml


def _require_counts(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")


def _require_parts(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        unknown = sorted(set(getattr(config, name)) - set(TRAINABLE_PARTS))
        if unknown:
            raise ValueError(f"{name}: expected some of {list(TRAINABLE_PARTS)}, got {unknown}")


def _require_fractions(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: expected 0 to 1, got {getattr(config, name)}")
