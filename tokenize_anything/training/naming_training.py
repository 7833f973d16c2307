"""Train the view namer of a model; all other weights of the model stay as they are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.build import load_model
from tokenize_anything.image_transform import normalize_pixels
from tokenize_anything.modeling import TAP, ViewNamer, ViewSegmenter
from tokenize_anything.modeling.folded_views import fold_network
from tokenize_anything.training import losses
from tokenize_anything.training.named_views import (
    Looks,
    NamedViews,
    RegionCrops,
    choose_windows,
    crop_regions,
    draw_looks,
    named_tokens,
    outline_crops,
)
from tokenize_anything.training.naming_config import NameSamplingConfig, NamingConfig
from tokenize_anything.training.part_training import PartTrainer, choose_records, start_model
from tokenize_anything.training.training_data import TrainingData

ERASED = (0.1, 0.45)  # sides of what is blotted out, of the view's


@dataclass(frozen=True, eq=False)
class NamedBatch:
    """R views; the second names are those of what is mixed in.

    looks: the views.
    tokens: (R,C) semantic tokens of the regions.
    names, other_names: (R,) rows of the text table.
    share: of the first names.
    photos: for error messages.
    wide: the wider views, if the namer has them.
    """

    looks: Looks
    tokens: Tensor
    names: Tensor
    other_names: Tensor
    share: float
    photos: tuple[str, ...]
    wide: Looks | None = None


class NamerTrainer(PartTrainer[NamingConfig, NamedBatch]):
    """One run of the view namer; see `PartTrainer`. The crops of all regions stay in memory."""

    PART = "view_namer"
    LOSSES = ("concept", "advice", "accuracy")

    def start_model(self) -> TAP:
        """The model of `init_from` with a namer, in float32.

        Raises:
            ValueError: a model without a view segmenter.
        """
        config = self.config
        sizes = {"namer_size": config.namer_size, "wide_size": config.wide_size}
        if config.namer_dim:
            sizes["namer_dim"] = config.namer_dim
        model, goes_on = start_model(config, self.PART, **sizes)
        assert model.view_namer is not None and model.view_segmenter is not None
        if not goes_on and not config.fresh:
            source = load_model(config.init_from, device="cpu", dtype="float32")
            network = source.view_namer or model.view_segmenter
            if network.dims == model.view_namer.dims:
                start_namer(model.view_namer, network)
        model.view_namer.dropout = config.dropout
        return model

    def prepare(self, data: TrainingData) -> None:
        """Make views and teachers, and weigh the regions."""
        config = self.config
        self.teacher = self.make_teacher(data)
        self.advisers = load_advisers(config, self.model)
        self.views = self.make_views(data)
        counts = torch.bincount(self.views.names)[self.views.names].float()
        self.weights = torch.where(self.views.has_mask, 1.0, config.box_only_weight)
        self.weights = self.weights * counts**-config.views.rarity_power

    def make_views(self, data: TrainingData) -> NamedViews:
        """Cut out and outline all named regions, and decode their boxes."""
        config = self.config
        records = choose_records(data.records, config.max_images)
        names = self.teacher.vocabulary.names
        views = crop_regions(
            records, data.texts, names, self.model, config.crop_size,
            wide_size=config.wide_crop_size if config.wide_size else 0,
        )  # fmt: skip
        views = outline_crops(self.model, views, self.autocast())
        with self.autocast():
            tokens = named_tokens(self.model.eval(), records, data.texts, names)
        return dataclasses.replace(views, tokens=tokens)

    def batches(self) -> Iterator[NamedBatch]:
        """Views of regions drawn at random, with replacement."""
        while True:
            yield self.draw_batch()

    def draw_batch(self) -> NamedBatch:
        """The batch of the current step, which depends on the seed and the step alone."""
        config = self.config
        generator = torch.Generator().manual_seed(self.step_seed())
        rows = torch.multinomial(
            self.weights, config.batch_size, replacement=True, generator=generator
        )
        side = config.view_size or config.namer_size
        looks = draw_training_looks(self.views, rows, side, config.views, generator)
        wide = None
        if self.views.wide is not None:
            wide_side = config.wide_size
            wide = draw_training_looks(self.views.wide, rows, wide_side, config.views, generator)
        names, tokens = self.views.names[rows], self.views.tokens[rows]
        share, order = 1.0, torch.arange(len(rows))
        rng = np.random.default_rng((config.seed, self.step))
        if config.views.mix and rng.random() < 0.5:
            order = torch.randperm(len(rows), generator=generator)
            if config.views.cut and rng.random() < config.views.cut:
                rectangle, share = draw_rectangle(rng)
                looks, wide = looks.paste(rectangle, order), wide and wide.paste(rectangle, order)
            else:
                share = float(rng.beta(config.views.mix, config.views.mix))
                looks, wide = looks.mix(share, order), wide and wide.mix(share, order)
            tokens = share * tokens + (1 - share) * tokens[order]
        photos = tuple(self.views.photos[row] for row in rows.tolist())
        return NamedBatch(looks, tokens, names, names[order], share, photos, wide)

    def losses(self, batch: NamedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """KL divergence from what the names, and the advisers, say about each concept.

        The parts: of the names, of the advisers, and how often the first concept is right.

        Returns:
            the loss, and its parts by the names of `LOSSES`.
        """
        device = self.device
        assert isinstance(self.part, ViewNamer)
        student = self._log_probs(self.part, batch)
        loss = torch.zeros((), device=device)
        for share, names in ((batch.share, batch.names), (1 - batch.share, batch.other_names)):
            teacher = self.teacher.log_probs(names).to(device)
            loss = loss + share * losses.concept_loss(student, teacher).mean()
        parts = {"concept": loss.detach(), "advice": torch.zeros_like(loss)}
        if self.advisers:
            with torch.no_grad():
                said = torch.stack([self._log_probs(each, batch) for each in self.advisers])
            advice = losses.concept_loss(student, said.logsumexp(0) - math.log(len(said))).mean()
            loss = torch.lerp(loss, advice, self.config.distill_share)
            parts["advice"] = advice.detach()
        right = student.argmax(-1) == self.teacher.log_probs(batch.names).to(device).argmax(-1)
        return loss, {**parts, "accuracy": right.float().mean()}

    def _log_probs(self, namer: ViewNamer, batch: NamedBatch) -> Tensor:
        """What a namer says of each view about each concept, (R,K)."""
        looks = batch.looks.to(self.device)
        with self.autocast():
            features = namer.look(self._pixels(looks), looks.boxes, looks.masks)
            if namer.wide is not None and batch.wide is not None:
                wide = batch.wide.to(self.device)
                around = namer.look_around(self._pixels(wide), wide.boxes)
                features = torch.cat([features, around], dim=1)
            tokens = namer.fuse(features, batch.tokens.to(self.device))
            embeddings = namer.semantic_head(tokens)
        return self.teacher.vocabulary.log_probs(embeddings.float())

    def _pixels(self, looks: Looks) -> Tensor:
        return normalize_pixels(looks.images.movedim(1, -1), self.model.config.pixels)

    def names_of(self, batch: NamedBatch) -> Sequence[str]:
        """Names of the photos."""
        return batch.photos


def load_advisers(config: NamingConfig, student: TAP) -> list[ViewNamer]:
    """The namers to distil, as inference runs them.

    Raises:
        ValueError: a model without a namer, or with one that wants other tokens, speaks of another
            concept space or wants wider views than the run has.
    """
    advisers = []
    known = (student.config.decoder_dim, student.config.semantic_dim)
    for name in config.distill_from:
        model = load_model(name, device=student.device, dtype="float32")
        if model.view_namer is None:
            raise ValueError(f"distill_from: expected models with a view namer, {name} has none")
        sizes = (model.config.decoder_dim, model.config.semantic_dim)
        if sizes != known:
            raise ValueError(
                f"distill_from: expected tokens and concepts of {known} dimensions, as "
                f"{config.init_from} has, got {sizes} in {name}"
            )
        if model.config.wide_size and not config.wide_size:
            raise ValueError(
                f"distill_from: the namer of {name} wants wider views of "
                f"{model.config.wide_size} pixels, got wide_size 0"
            )
        advisers.append(fold_network(model.view_namer))
    return advisers


def draw_rectangle(rng: np.random.Generator) -> tuple[tuple[float, ...], float]:
    """A rectangle of any area about any point, and the share of the unit square it leaves.

    Returns:
        left, top, right, bottom in [0, 1]; and the share.
    """
    side, middle = np.sqrt(rng.random()), rng.random(2)
    low, high = (middle - side / 2).clip(0, 1), (middle + side / 2).clip(0, 1)
    return (*low.tolist(), *high.tolist()), float(1 - (high - low).prod())


def draw_training_looks(
    views: RegionCrops,
    rows: Tensor,
    side: int,
    config: NameSamplingConfig,
    generator: torch.Generator,
) -> Looks:
    """Views of some regions, varied."""
    count = len(rows)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def normal(deviation: float, *shape: int) -> Tensor:
        return deviation * torch.randn(count, *shape, generator=generator)

    low, high = np.log(config.zoom_range).tolist()
    zoom = uniform(low, high).exp()
    shifts = uniform(-config.max_shift, config.max_shift, 2)
    windows = choose_windows(views, zoom, shifts)
    warps = {
        "flip": torch.where(uniform(0, 1) < config.flip, -1.0, 1.0),
        "turn": normal(config.turn),
        "stretch": normal(config.stretch).exp(),
    }
    looks = draw_looks(views, rows, windows, side, warps)
    colour = config.colour
    images = looks.images * uniform(1 - colour, 1 + colour, 1, 1, 1)
    for axes, strength in (((1, 2, 3), colour), ((1,), 5 / 3 * colour)):  # contrast, saturation
        mean = images.mean(axes, keepdim=True)
        images = mean + (images - mean) * uniform(1 - strength, 1 + strength, 1, 1, 1)
    images = (images * (1 + normal(colour / 4, 3, 1, 1))).clamp(0, 255)
    spots = side * torch.cat([uniform(0, 1, 2), uniform(*ERASED, 2)], dim=1)
    for place in torch.nonzero(uniform(0, 1) < config.erase).flatten().tolist():
        left, top, width, height = spots[place].round().int().tolist()
        x0, y0 = left * (side - width) // side, top * (side - height) // side
        images[place, :, y0 : y0 + height, x0 : x0 + width] = images[place].mean()
    is_shown = (uniform(0, 1) >= config.hide_mask).float()
    return Looks(images, looks.boxes, looks.masks * is_shown[:, None, None])


@torch.no_grad()
def start_namer(namer: ViewNamer, network: ViewNamer | ViewSegmenter) -> None:
    """Copy what a namer has in common with one that looks once, or with a segmenter.

    The mask enters where the segmenter's clicks do. What a wider view adds to the tokens of a namer
    without one starts at 0; what it added is dropped where there is none any more.
    """
    state, source = namer.state_dict(), network.state_dict()
    for name, value in state.items():
        origin = name if name in source else name.removeprefix("wide.")
        if origin == "stem.0.weight":
            value.copy_(source[origin][:, : value.shape[1]])
        elif name == "token_head.weight" and name in source:
            shared = min(value.shape[1], source[name].shape[1])
            value.zero_()[:, :shared] = source[name][:, :shared]
        elif origin in source and (
            isinstance(network, ViewNamer) or not name.startswith("semantic_head.")
        ):
            value.copy_(source[origin])
