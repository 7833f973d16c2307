"""What a run that trains the view segmenter needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.data.view_dataset import ViewSamplingConfig
from tokenize_anything.training.config import (
    DataConfig,
    Precision,
    require_counts,
    require_fractions,
)
from tokenize_anything.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Train the network that outlines regions in views (`modeling.view_segmenter`).

    init_from: the model that gets it; all else in it stays as it is. A segmenter of the same width
        goes on learning, another one is replaced.
    fresh: start the segmenter from noise although `init_from` has one of the same width.
    view_dim: width of the segmenter, see `TAPConfig`.
    view_size: side of a view, pixels.
    max_images: of the photos of the data, the first so many of a fixed shuffle; 0 takes all.
    batch_size: photos of an update; each gives `views.views_per_image` views.
    num_steps: length of the learning-rate schedule.
    prompts: how boxes are jittered and how many clicks follow; its probabilities say how often a
        step corrects the segmenter's own masks instead of taking clicks from the truth.
    second_stage_probability: how often a step has more than the first box or click.
    mask_weight, dice_weight, iou_weight, concept_weight: of the losses: binary cross-entropy and
        dice of the masks, squared error of the IoU scores, KL divergence of the concepts.
    teacher_scale, student_scale: logit scales of the two classifiers that are made of names.
    ema_decay: of the averaged weights, which are the ones that are kept for use.
    precision: bfloat16 runs the network under autocast; the losses are float32 always.
    """

    data: DataConfig
    output_folder: str
    init_from: str = "tap_tiny"
    fresh: bool = False
    view_dim: int = 24
    view_size: int = 128
    views: ViewSamplingConfig = field(default_factory=ViewSamplingConfig)
    prompts: PromptSamplingConfig = field(default_factory=PromptSamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_images: int = 0
    batch_size: int = 12
    num_steps: int = 10000
    second_stage_probability: float = 0.5
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    concept_weight: float = 0.2
    teacher_scale: float = 30.0
    student_scale: float = 40.0
    ema_decay: float = 0.998
    device: str = "cpu"
    precision: Precision = "bfloat16"
    seed: int = 0
    num_workers: int = 1
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        require_counts(
            self, ("view_dim", "view_size", "batch_size", "num_steps", "save_every", "log_every")
        )
        require_fractions(self, ("second_stage_probability", "ema_decay"))
        for name in ("num_workers", "max_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not self.data.annotation_files:
            raise ValueError("data: expected annotation_files, got a folder of photos or shards")
        if self.data.on_bad_data != "stop":
            raise ValueError(f"data.on_bad_data: expected stop, got {self.data.on_bad_data}")
        if self.view_size % 32:
            raise ValueError(f"view_size: expected a multiple of 32, got {self.view_size}")
