"""Train the view segmenter of a model; all other weights of the model stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.build import load_model
from tokenize_anything.config import PointLabel
from tokenize_anything.data.prompt_sampling import (
    PADDING_COORD,
    PromptSampler,
    SampledPrompts,
)
from tokenize_anything.data.view_dataset import ViewBatch, ViewDataset
from tokenize_anything.image_transform import normalize_pixels
from tokenize_anything.modeling import TAP, ViewOutputs
from tokenize_anything.prompts import NUM_SKETCH_POINTS
from tokenize_anything.training import losses
from tokenize_anything.training.concept_teacher import has_text
from tokenize_anything.training.epoch_loader import load_epochs
from tokenize_anything.training.mask_corrections import (
    choose_rows,
    correct_masks,
    replace_rows,
)
from tokenize_anything.training.outline_losses import outline_losses
from tokenize_anything.training.part_training import (
    PartTrainer,
    choose_records,
    copy_shared,
    mean_where,
    start_model,
)
from tokenize_anything.training.sketch_prompts import draw_sketches
from tokenize_anything.training.step_draws import StepDraws
from tokenize_anything.training.training_data import TrainingData
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_variation import vary_views


class ViewTrainer(PartTrainer[ViewConfig, ViewBatch]):
    """One run of the view segmenter; see `PartTrainer`."""

    PART = "view_segmenter"
    LOSSES = ("mask", "dice", "iou", "concept", "accuracy", "mean_iou")

    def start_model(self) -> TAP:
        """The model of `init_from` with a segmenter of the configuration's width, in float32."""
        config = self.config
        source = load_model(config.init_from, device="cpu", dtype="float32").view_segmenter
        corrects = config.view_corrects or bool(source and source.corrects and not config.fresh)
        sizes = {"view_dim": config.view_dim, "view_size": config.view_size}
        model, goes_on = start_model(config, self.PART, **sizes, view_corrects=corrects)
        segmenter = model.view_segmenter
        assert segmenter is not None
        if not goes_on and not config.fresh and source and source.dims == segmenter.dims:
            copy_shared(segmenter, source)
        return model

    def prepare(self, data: TrainingData) -> None:
        """Views of all photos with regions."""
        config = self.config
        self.teacher = self.make_teacher(data)
        self.dataset = ViewDataset(
            choose_records(data.records, config.max_images), data.texts, config.view_size,
            config.views, self.model.config.pixels, config.seed,
        )  # fmt: skip
        self.sampler = PromptSampler(config.view_size, config.prompts)

    def batches(self) -> Iterator[ViewBatch]:
        """Views of `batch_size` photos a step, in another order each epoch."""
        config = self.config
        return load_epochs(
            self.dataset, ViewBatch, batch_size=config.batch_size, seed=config.seed,
            step=self.step, num_workers=config.num_workers,
        )  # fmt: skip

    def names_of(self, batch: ViewBatch) -> Sequence[str]:
        """Names of the photos."""
        return batch.names

    def losses(self, batch: ViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch at the current step, and its parts by the names of `LOSSES`."""
        config, batch = self.config, batch.to(self.device)
        generator = torch.Generator(self.device).manual_seed(self.step_seed())
        batch = vary_views(batch, config.variation, generator)
        pixels = normalize_pixels(batch.images, self.model.config.pixels)
        prompts, shown = self._draw_prompts(batch, pixels, generator)
        outputs = self._segment(pixels, prompts, shown)
        teacher = self.teacher.log_probs(batch.text_index)
        student = self.teacher.vocabulary.log_probs(outputs.semantic_embeddings.float())
        parts = mask_losses(outputs, batch)
        named = has_text(batch.text_index)
        parts["concept"] = mean_where(losses.concept_loss(student, teacher), named)
        parts["accuracy"] = mean_where((student.argmax(-1) == teacher.argmax(-1)).float(), named)
        total = (
            config.mask_weight * parts["mask"]
            + config.dice_weight * parts["dice"]
            + config.iou_weight * parts["iou"]
            + config.concept_weight * parts["concept"]
        )
        return total, {name: value.detach() for name, value in parts.items()}

    def _segment(
        self, pixels: Tensor, prompts: SampledPrompts, shown: Tensor | None = None
    ) -> ViewOutputs:
        with self.autocast():
            outputs: ViewOutputs = self.part(pixels, prompts.coords_xy, prompts.labels, shown)
        return outputs

    def _draw_prompts(
        self, batch: ViewBatch, pixels: Tensor, generator: torch.Generator
    ) -> tuple[SampledPrompts, Tensor | None]:
        """Boxes or clicks; in some steps clicks on the truth for the boxes, or corrections.

        Returns:
            the prompts, and the masks (R,v,v) that they correct, if they correct any.
        """
        config = self.config
        draws = StepDraws.at(
            config.seed, self.step, config.prompts, config.second_stage_probability
        )
        first = first_prompts(batch, self.sampler, generator)
        if not draws.has_second_stage:
            return first, None
        if not draws.is_interactive:
            return replace_boxes(first, self._draw_clicks(batch, generator, draws.num_clicks)), None
        self.part.eval()  # the running statistics take in each photo once
        drawn = self._correct(batch, pixels, first, generator, draws.num_clicks)
        self.part.train()
        return drawn

    def _draw_clicks(
        self, batch: ViewBatch, generator: torch.Generator, num_clicks: int
    ) -> SampledPrompts:
        """Clicks on the truth; in some steps those of a sketch, where it shows the region."""
        probability = self.config.sketch_probability
        draws_sketches = probability > 0 and bool(
            torch.rand((), generator=generator, device=self.device) < probability
        )
        if not draws_sketches:
            return self.sampler.clicks(batch.masks, generator, num_clicks)
        clicks = self.sampler.clicks(batch.masks, generator, NUM_SKETCH_POINTS)
        sketches, are_good = draw_sketches(batch.boxes_xyxy, batch.masks, generator)
        clicks.coords_xy[are_good, :NUM_SKETCH_POINTS] = sketches[are_good]
        return clicks

    def _correct(
        self,
        batch: ViewBatch,
        pixels: Tensor,
        first: SampledPrompts,
        generator: torch.Generator,
        num_clicks: int,
    ) -> tuple[SampledPrompts, Tensor | None]:
        if not self.model.config.view_corrects:
            with torch.no_grad():
                logits = self._segment(pixels, first).mask_logits.float()
            found = F.interpolate(logits[:, None], size=batch.masks.shape[-2:], mode="bilinear")
            found = found[:, 0] > 0
            return self.sampler.corrections(first, found, batch.masks, generator, num_clicks), None
        coins = torch.rand(len(batch), generator=generator, device=self.device)
        rows = batch.has_mask & (~first.is_box | (coins < 0.5))
        shown = torch.zeros(batch.masks.shape, device=self.device)
        if not rows.any():
            return first, shown
        corrected, shown[rows] = correct_masks(
            lambda prompts, masks: self._segment(pixels[rows], prompts, masks).mask_logits,
            choose_rows(first, rows), batch.masks[rows], generator, sampler=self.sampler,
            num_clicks=num_clicks,
        )  # fmt: skip
        return replace_rows(first, rows, corrected), shown


def first_prompts(
    batch: ViewBatch, sampler: PromptSampler, generator: torch.Generator
) -> SampledPrompts:
    """The box where a view was drawn around one, else the click and a pad."""
    is_box = batch.is_box | ~batch.has_mask
    drawn = sampler.first(batch.boxes_xyxy, batch.masks, is_box, generator)
    clicks = torch.stack([batch.clicks_xy, torch.full_like(batch.clicks_xy, PADDING_COORD)], dim=1)
    coords = torch.where(drawn.is_box[:, None, None], drawn.coords_xy, clicks)
    return SampledPrompts(coords, drawn.labels, drawn.is_box)


def replace_boxes(first: SampledPrompts, clicks: SampledPrompts) -> SampledPrompts:
    """Prompts (R,2) whose boxes give way to clicks (R,n); the others get pads behind them.

    A box of which nothing is known but its corners, whose clicks are all pads, stays.
    """
    missing = clicks.coords_xy.shape[1] - first.coords_xy.shape[1]
    coords = F.pad(first.coords_xy, (0, 0, 0, missing), value=PADDING_COORD)
    labels = F.pad(first.labels, (0, missing), value=int(PointLabel.PADDING))
    has_clicks = (clicks.labels != PointLabel.PADDING).any(dim=1)
    gives_way = first.is_box & has_clicks
    return SampledPrompts(
        torch.where(gives_way[:, None, None], clicks.coords_xy, coords),
        torch.where(gives_way[:, None], clicks.labels, labels),
        first.is_box & ~gives_way,
    )


def mask_losses(outputs: ViewOutputs, batch: ViewBatch) -> dict[str, Tensor]:
    """Losses of masks and IoU scores, means over the views with a mask, and the mean IoU."""
    parts, ious = outline_losses(
        outputs.mask_logits, batch.masks.float(), batch.areas, batch.has_mask
    )
    parts["iou"] = mean_where((outputs.iou_scores - ious).square(), batch.has_mask)
    parts["mean_iou"] = mean_where(ious, batch.has_mask)
    return parts
