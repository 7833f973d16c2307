"""What a run that trains the view namer needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenize_anything.training.config import require_counts, require_fractions
from tokenize_anything.training.part_config import PartConfig


@dataclass(frozen=True, kw_only=True)
class NameSamplingConfig:
    """How the views of named regions vary.

    zoom_range: long side of the box as a share of the view's side, log-uniform; a crop that is kept
        shows no more than the lowest, half of the side; over 1 a view may cut the region off.
    max_shift: of the view's middle from that of the box, as a share of the view's side.
    turn, stretch: standard deviations of the angle, radians, and of the logarithm of the ratio of
        the sides.
    colour: strength in [0, 1]: brightness and contrast change by up to this fraction, the
        saturation by up to 5/3 of it, the gain of each channel with a quarter of it as its standard
        deviation.
    flip: probability of a horizontal flip.
    erase: probability that a rectangle of a tenth to 0.45 of each side is blotted out.
    hide_mask: probability that the mask is not shown, and the box counts in its place.
    mix: both parameters of the beta distribution of how two views are mixed (Zhang et al. 2018,
        "mixup"), in half of the steps; 0 for none.
    cut: share of these steps in which a rectangle of the other view is pasted instead (Yun et al.
        2019, "CutMix").
    rarity_power: a region is drawn in proportion to (how often its name occurs) ** -rarity_power.
    """

    zoom_range: tuple[float, float] = (0.5, 1.0)
    max_shift: float = 0.12
    turn: float = 0.1
    stretch: float = 0.08
    colour: float = 0.3
    flip: float = 0.5
    erase: float = 0.25
    hide_mask: float = 0.15
    mix: float = 0.3
    cut: float = 0.0
    rarity_power: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.zoom_range
        if not 0.5 <= low <= high <= 2:
            raise ValueError(f"zoom_range: expected 0.5 <= low <= high <= 2, got {(low, high)}")
        require_fractions(self, ("max_shift", "colour", "flip", "erase", "hide_mask", "cut"))
        for name in ("turn", "stretch", "mix", "rarity_power"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class NamingConfig(PartConfig):
    """Train the network that names outlined regions (`modeling.view_namer`).

    Where `init_from` has a segmenter and no namer, the namer starts with what both networks have.

    namer_size: side of a view at inference, see `TAPConfig`.
    namer_dim: width of the network; 0 for that of the namer of `init_from`, or of its segmenter.
        One of another width starts from noise.
    view_size: side of a view in this run, pixels, 0 for the same; small ones are fast at first.
    crop_size: side of the crops that are kept in memory, 3 bytes a pixel.
    wide_size: side of a second, wider view, see `TAPConfig`.
    wide_crop_size: side of the crops for it that are kept in memory.
    batch_size: views of an update.
    box_only_weight: how often a region that has a box and no mask is drawn, beside one with a mask.
    dropout: of the features.
    distill_from: models whose namers are asked the same, in evaluation mode, with the tokens of
        `init_from`, whose first look they share; the mean of what they say is learnt beside the
        names (Hinton et al. 2015, "Distilling the knowledge in a neural
        network"; that all see one and the same varied view, Beyer et al. 2022, section 3.1).
    distill_share: of that mean in the loss.
    """

    namer_size: int = 96
    namer_dim: int = 0
    view_size: int = 0
    crop_size: int = 160
    wide_size: int = 0
    wide_crop_size: int = 96
    views: NameSamplingConfig = field(default_factory=NameSamplingConfig)
    batch_size: int = 64
    box_only_weight: float = 0.6
    dropout: float = 0.2
    distill_from: tuple[str, ...] = ()
    distill_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, ("namer_size", "crop_size", "wide_crop_size", "batch_size"))
        if self.namer_dim < 0:
            raise ValueError(f"namer_dim: expected at least 0, got {self.namer_dim}")
        require_fractions(self, ("box_only_weight", "dropout", "distill_share"))
        if not self.box_only_weight:
            raise ValueError("box_only_weight: expected more than 0, got 0")
        for name in ("namer_size", "view_size", "crop_size", "wide_size", "wide_crop_size"):
            value = getattr(self, name)
            if value < 0 or value % 32:
                raise ValueError(f"{name}: expected a multiple of 32, got {value}")
