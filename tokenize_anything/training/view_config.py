"""What a run that trains the view segmenter needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.data.view_dataset import ViewSamplingConfig
from tokenize_anything.training.config import require_counts, require_fractions
from tokenize_anything.training.part_config import PartConfig
from tokenize_anything.training.view_variation import VariationConfig


@dataclass(frozen=True, kw_only=True)
class ViewConfig(PartConfig):
    """Train the network that outlines regions in views (`modeling.view_segmenter`).

    view_dim: width of the segmenter, see `TAPConfig`.
    view_size: side of a view, pixels.
    view_corrects: teach it to correct masks it is shown, see `TAPConfig`; one that does so goes on
        doing so, unless `fresh`. Corrections then go in rounds, of all views drawn around clicks
        and of half of those around boxes.
    batch_size: photos of an update; each gives `views.views_per_image` views.
    variation: how views vary beyond colour.
    prompts: how boxes are jittered and how many clicks follow; its probabilities say how often a
        step corrects the segmenter's own masks instead of taking clicks from the truth.
    second_stage_probability: how often a step has more than the first box or click.
    sketch_probability: how often the clicks that a step takes from the truth lie on a line across
        each region, which may leave it, see `sketch_prompts`.
    mask_weight, dice_weight, iou_weight, concept_weight: of the losses: binary cross-entropy and
        dice of the masks, squared error of the IoU scores, KL divergence of the concepts.
    """

    view_dim: int = 24
    view_size: int = 128
    view_corrects: bool = False
    views: ViewSamplingConfig = field(default_factory=ViewSamplingConfig)
    variation: VariationConfig = field(default_factory=VariationConfig)
    prompts: PromptSamplingConfig = field(default_factory=PromptSamplingConfig)
    batch_size: int = 12
    second_stage_probability: float = 0.5
    sketch_probability: float = 0.0
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    concept_weight: float = 0.2
    num_workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, ("view_dim", "view_size", "batch_size"))
        require_fractions(self, ("second_stage_probability", "sketch_probability"))
        if self.num_workers < 0:
            raise ValueError(f"num_workers: expected at least 0, got {self.num_workers}")
        if self.view_size % 32:
            raise ValueError(f"view_size: expected a multiple of 32, got {self.view_size}")
