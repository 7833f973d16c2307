"""What a run that trains the click segmenter needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenize_anything.data.click_dataset import ClickSamplingConfig
from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.training.config import require_counts, require_fractions
from tokenize_anything.training.part_config import PartConfig
from tokenize_anything.training.view_variation import VariationConfig


@dataclass(frozen=True, kw_only=True)
class ClickConfig(PartConfig):
    """Train the network that answers clicks (`modeling.click_segmenter`).

    Where `init_from` has a view segmenter and no click segmenter, the latter starts with what both
    networks have.

    click_size: side of each window, pixels, a multiple of 64.
    batch_size: photos of an update; each gives `clicks.clicks_per_image` clicks.
    variation: how windows vary beyond colour.
    prompts: how many clicks follow the first, and how often they correct the network's own mask.
    second_stage_probability: how often a step has more than the first click.
    outline_boxes: whether boxes without a mask get one first, see `box_outlines`; then regions of
        which the model is sure enough are clicked too.
    min_outline_score: lowest IoU score of such a mask.
    min_outline_side: shortest side of such a box, original pixels.
    mask_weight, dice_weight, iou_weight: of the losses: binary cross-entropy and dice of the
        masks, squared error of the IoU scores.
    """

    click_size: int = 64
    clicks: ClickSamplingConfig = field(default_factory=ClickSamplingConfig)
    variation: VariationConfig = field(default_factory=VariationConfig)
    prompts: PromptSamplingConfig = field(default_factory=PromptSamplingConfig)
    batch_size: int = 6
    second_stage_probability: float = 0.4
    outline_boxes: bool = False
    min_outline_score: float = 0.6
    min_outline_side: float = 8.0
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    num_workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, ("click_size", "batch_size"))
        require_fractions(self, ("second_stage_probability", "min_outline_score"))
        if not self.min_outline_side > 0:
            raise ValueError(f"min_outline_side: expected more than 0, got {self.min_outline_side}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers: expected at least 0, got {self.num_workers}")
        if self.click_size % 64:
            raise ValueError(f"click_size: expected a multiple of 64, got {self.click_size}")
