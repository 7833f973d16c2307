"""Configuration of stage 2: captions from frozen region tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokenize_anything.training.config import (
    DataConfig,
    Precision,
    require_counts,
    require_fractions,
)
from tokenize_anything.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class RegionTokenConfig:
    """Which tokens of the frozen first stage stand for a region.

    Every region has a token from its box, and `point_views` further ones, each from 1 to
    `max_points` random points of the mask that the box gave (the v1.1 recipe). The points of a
    view follow from the seed, the region and the view alone.

    token: what the text decoder reads: the semantic token, or, for comparison, the mask token.
    point_views: how many prompts of points each region has; 0 leaves the box alone (v1.0).
    max_points: most points of such a prompt.
    box_probability: how often a step takes the token of the box.
    cached: compute all tokens once and keep them on disk; otherwise each step computes its own,
        which are the same numbers. What is kept takes 4 * C bytes a region and view.
    precision: of the frozen stage; bfloat16 is faster where there are units for it.
    """

    token: Literal["semantic", "mask"] = "semantic"
    point_views: int = 4
    max_points: int = 9
    box_probability: float = 0.5
    cached: bool = True
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require_counts(self, ("max_points",))
        require_fractions(self, ("box_probability",))
        if self.point_views < 0:
            raise ValueError(f"point_views: expected at least 0, got {self.point_views}")


@dataclass(frozen=True, kw_only=True)
class CaptionValidationConfig:
    """Regions that are described during training, each from its box, greedily.

    every: how many steps lie between two looks.
    max_regions: at most so many regions are described, spread evenly over the data.
    """

    data: DataConfig
    every: int = 500
    max_regions: int = 1000

    def __post_init__(self) -> None:
        require_counts(self, ("every", "max_regions"))


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Stage 2: captions from frozen semantic tokens.

    init_from: the model of stage 1.
    text_tokenizer: a SentencePiece file.
    image_size: the size to use the model at, its position table resized; None keeps its own.
    fresh_text_decoder: start with a new text decoder, made for the pieces of the tokenizer;
        otherwise that of `init_from` goes on, and the tokenizer must have as many pieces.
    validation: what to describe and score on the way; None for nothing.
    concept_share: of the regions of a step whose token is mixed with that of another and whose text
        is the first concept of the mixture, see `concept_captions`.
    batch_size: regions of a step, over all processes.
    num_steps: length of the learning-rate schedule.
    device: "cpu", "cuda", "mps", or "auto".
    """

    data: DataConfig
    output_folder: str
    init_from: str
    text_tokenizer: str
    image_size: int | None = None
    fresh_text_decoder: bool = False
    tokens: RegionTokenConfig = field(default_factory=RegionTokenConfig)
    validation: CaptionValidationConfig | None = None
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(peak_lr=1e-3, weight_decay=0.05)
    )
    concept_share: float = 0.0
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
        require_counts(self, ("batch_size", "num_steps", "save_every", "log_every"))
        require_fractions(self, ("label_smoothing", "concept_share"))
        validation = self.validation.data if self.validation else self.data
        for name, data in (("data", self.data), ("validation.data", validation)):
            if not data.annotation_files:
                raise ValueError(f"{name}: stage 2 reads annotation_files, got none")
