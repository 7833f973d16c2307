"""What a run that trains one part of a trained model needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenize_anything.training.config import (
    DataConfig,
    Precision,
    require_counts,
    require_fractions,
)
from tokenize_anything.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """What the runs of all parts have in common.

    init_from: the model that gets the part; all else in it stays as it is. A part of the same sizes
        goes on learning, another one is replaced.
    fresh: start the part from noise although `init_from` has one of the same sizes.
    max_images: of the photos of the data, the first so many of a fixed shuffle; 0 takes all.
    num_steps: length of the learning-rate schedule.
    teacher_scale, student_scale: logit scales of the two classifiers that are made of names.
    ema_decay: of the averaged weights, which are the ones that are kept for use.
    precision: bfloat16 runs the network under autocast; the losses are float32 always.
    """

    data: DataConfig
    output_folder: str
    init_from: str = "tap_tiny"
    fresh: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_images: int = 0
    num_steps: int = 10000
    teacher_scale: float = 30.0
    student_scale: float = 40.0
    ema_decay: float = 0.998
    device: str = "cpu"
    precision: Precision = "bfloat16"
    seed: int = 0
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        require_counts(self, ("num_steps", "save_every", "log_every"))
        require_fractions(self, ("ema_decay",))
        if self.max_images < 0:
            raise ValueError(f"max_images: expected at least 0, got {self.max_images}")
        if not self.data.annotation_files:
            raise ValueError("data: expected annotation_files, got a folder of photos or shards")
        if self.data.on_bad_data != "stop":
            raise ValueError(f"data.on_bad_data: expected stop, got {self.data.on_bad_data}")
