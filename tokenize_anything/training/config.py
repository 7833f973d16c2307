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
from tokenize_anything.data.region_dataset import BadDataRule, RegionSamplingConfig
from tokenize_anything.training.optimizer import OptimizerConfig
from tokenize_anything.training.region_losses import ConceptLoss

TRAINABLE_PARTS = ("image_encoder", "prompt_encoder", "image_decoder")

Precision = Literal["float32", "bfloat16"]
PretrainPrecision = Literal["float32", "bfloat16", "float16"]
Parallel = Literal["ddp", "fsdp"]
Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the annotated photos are: one of three kinds of places.

    annotation_files: COCO-style JSON, see `data.coco_lvis.read_regions`.
    image_folder: where their `file_name` is looked up.
    photo_folder: a folder of photos with a JSON file beside each, as SA-1B unpacked; stage 1 only.
    shards: tar files of the same, read in place, or patterns such as "sa1b/*.tar"; stage 1 only.
    on_bad_data: what stage 1 does about an image or a region that cannot be used: "stop" ends the
        run and names it; "skip" goes on without it and names it in `skipped.csv`.
    """

    annotation_files: tuple[str, ...] = ()
    image_folder: str = ""
    photo_folder: str = ""
    shards: tuple[str, ...] = ()
    on_bad_data: BadDataRule = "stop"

    def __post_init__(self) -> None:
        places = {name: getattr(self, name) for name in _PLACES}
        given = [name for name, value in places.items() if value]
        if len(given) != 1:
            raise ValueError(f"data: expected one of {list(places)}, got {given or 'none'}")


_PLACES = ("annotation_files", "photo_folder", "shards")


@dataclass(frozen=True, kw_only=True)
class MaskValidationConfig:
    """Photos whose masks are predicted during training, from a box and from a point each.

    every: how many steps lie between two looks.
    max_images: at most so many photos are looked at, spread evenly over the data.
    """

    data: DataConfig
    every: int = 500
    max_images: int = 200

    def __post_init__(self) -> None:
        require_counts(self, ("every", "max_images"))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Stage 1: masks, IoU and concepts.

    init_from: a model to start from; its position table is resized to `model.image_size`.
    init_encoder_from: a plain ViT to start the image encoder from, such as MAE's: "timm/" and a
        model name, or a file; the rest starts from noise.
    freeze: parts that stay as they are, of `TRAINABLE_PARTS`.
    fresh: parts that start from noise although `init_from` has them.
    sine_positions: scale of a sine table added to the position table at the start (see
        `sine_position_table`); 0 adds none.
    batch_size: images of an update, over all processes and accumulated parts.
    accumulate: in how many parts a process computes its share of a batch, to save memory. Each part
        has BatchNorm statistics of its own; all else is as in one part.
    num_steps: length of the learning-rate schedule.
    stop_step: end the run here, before the end of the schedule; None goes to the end.
    dice_weight: of the dice loss beside 20 times the focal loss; the paper has 1.
    concept_loss: "concept" compares concept distributions, "feature" the embeddings themselves,
        "none" leaves the semantic tokens to the masks (tables 4 and 5 of the paper).
    concepts: the student's vocabulary as a file; None makes it of the category names of the data.
    target_concepts: the teacher's vocabulary as a file, of the same names in the same order.
    embeddings: a store with a vector of each region (see `data.region_embeddings`), to be taught
        from with both vocabularies; None teaches from the texts of the regions.
    teacher_scale and student_scale: logit scales of the two classifiers that are made of names.
    second_stage_probability: how often a step decodes a second stage of prompts.
    ema_decay: of the averaged model, which is the one that is validated and kept for use.
    device: "cpu", "cuda", "mps", or "auto".
    parallel: how processes share the work: "ddp" gives each a whole model, "fsdp" a part of every
        weight and of what the optimiser remembers, for models too large for one GPU.
    precision: bfloat16 and float16 run the network under autocast, float16 with a scaled loss; the
        losses are float32 always.
    compile_model: compile encoder, decoder and losses, which takes minutes at the start.
    num_workers: processes that prepare data, for each training process.
    keep_last: how many saved states are kept in `checkpoints`, besides the one to go on from.
    validation: what to measure on the way, to keep the best model; None for nothing.
    tensorboard: write the log for TensorBoard too.
    """

    data: DataConfig
    output_folder: str
    model: TAPConfig = field(default_factory=tap_tiny)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampling: RegionSamplingConfig = field(default_factory=RegionSamplingConfig)
    prompts: PromptSamplingConfig = field(default_factory=PromptSamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: MaskValidationConfig | None = None
    init_from: str | None = None
    init_encoder_from: str | None = None
    freeze: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    sine_positions: float = 0.0
    batch_size: int = 16
    accumulate: int = 1
    num_steps: int = 5000
    stop_step: int | None = None
    drop_path: float = 0.1
    decoder_dropout: float = 0.1
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    concept_weight: float = 1.0
    iou_weight: float = 1.0
    concept_loss: ConceptLoss = "concept"
    concepts: str | None = None
    target_concepts: str | None = None
    embeddings: str | None = None
    teacher_scale: float = 30.0
    student_scale: float = 40.0
    second_stage_probability: float = 1.0
    ema_decay: float = 0.999
    device: str = "cpu"
    parallel: Parallel = "ddp"
    precision: PretrainPrecision = "bfloat16"
    compile_model: bool = False
    seed: int = 0
    num_workers: int = 1
    save_every: int = 500
    keep_last: int = 0
    log_every: int = 50
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require_counts(self, ("batch_size", "accumulate", "num_steps", "save_every", "log_every"))
        require_fractions(self, ("second_stage_probability", "ema_decay"))
        _require_parts(self, ("freeze", "fresh"))
        for name in ("num_workers", "keep_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.stop_step is not None and not 1 <= self.stop_step <= self.num_steps:
            raise ValueError(
                f"stop_step: expected 1 to num_steps = {self.num_steps}, got {self.stop_step}"
            )
        self._require_fitting()

    def _require_fitting(self) -> None:
        """Raise ValueError unless the fields fit each other."""
        rules = [
            (self.model.image_size % self.sampling.mask_stride == 0,
             f"sampling.mask_stride: expected a divisor of model.image_size "
             f"{self.model.image_size}, got {self.sampling.mask_stride}"),
            (self.batch_size % self.accumulate == 0,
             f"accumulate: expected a divisor of batch_size {self.batch_size}, got "
             f"{self.accumulate}"),
            (not (self.init_from and self.init_encoder_from),
             "init_encoder_from: expected init_from or init_encoder_from, got both"),
            (bool(self.embeddings) == bool(self.concepts) == bool(self.target_concepts),
             "embeddings: expected the three of embeddings, concepts and target_concepts, or none "
             "of them"),
            (self.precision != "float16" or self.parallel != "fsdp",
             "precision: float16 scales the loss by gradients that fsdp spreads over processes; "
             "use bfloat16, or parallel: ddp"),
            (not self.compile_model or self.parallel != "fsdp",
             "compile_model: expected parallel: ddp with it, got fsdp"),
        ]  # fmt: skip
        for holds, message in rules:
            if not holds:
                raise ValueError(message)

    @property
    def last_step(self) -> int:
        """The step at which the run ends."""
        return self.num_steps if self.stop_step is None else self.stop_step


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


def require_counts(config: object, names: tuple[str, ...]) -> None:
    """Raise ValueError unless the named fields are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")


def _require_parts(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        unknown = sorted(set(getattr(config, name)) - set(TRAINABLE_PARTS))
        if unknown:
            raise ValueError(f"{name}: expected some of {list(TRAINABLE_PARTS)}, got {unknown}")


def require_fractions(config: object, names: tuple[str, ...]) -> None:
    """Raise ValueError unless the named fields are from 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: expected 0 to 1, got {getattr(config, name)}")
