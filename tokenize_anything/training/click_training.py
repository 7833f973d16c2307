"""Train the click segmenter of a model; all other weights of the model stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.click_windows import coords_in_windows
from tokenize_anything.config import PointLabel
from tokenize_anything.data.click_dataset import (
    ClickBatch,
    ClickDataset,
    masked_regions,
    repeat_crowded,
)
from tokenize_anything.data.prompt_sampling import PADDING_COORD, PromptSampler, SampledPrompts
from tokenize_anything.image_transform import normalize_pixels
from tokenize_anything.modeling import TAP
from tokenize_anything.modeling.click_segmenter import NUM_WINDOWS, ClickOutputs
from tokenize_anything.training.box_outlines import outline_boxes
from tokenize_anything.training.click_config import ClickConfig
from tokenize_anything.training.epoch_loader import load_epochs
from tokenize_anything.training.outline_losses import outline_losses
from tokenize_anything.training.part_training import (
    PartTrainer,
    choose_records,
    copy_shared,
    start_model,
)
from tokenize_anything.training.step_draws import StepDraws
from tokenize_anything.training.training_data import TrainingData
from tokenize_anything.training.view_variation import vary_clicks

MIN_FILL = 0.07  # of a window's side: that of a square as large as the region, to learn its mask


class ClickTrainer(PartTrainer[ClickConfig, ClickBatch]):
    """One run of the click segmenter; see `PartTrainer`."""

    PART = "click_segmenter"
    LOSSES = ("mask", "dice", "iou", "chosen_iou")

    def start_model(self) -> TAP:
        """The model of `init_from` with a click segmenter, in float32.

        Raises:
            ValueError: a model without a view segmenter.
        """
        model, goes_on = start_model(self.config, self.PART, click_size=self.config.click_size)
        assert model.click_segmenter is not None and model.view_segmenter is not None
        if not goes_on and not self.config.fresh:
            copy_shared(model.click_segmenter, model.view_segmenter)
        return model

    def prepare(self, data: TrainingData) -> None:
        """Clicks on all photos with masks.

        Raises:
            ValueError: there are none.
        """
        config = self.config
        known = data.records
        if config.outline_boxes:
            with self.autocast():
                known = outline_boxes(
                    self.model.eval(), known, min_score=config.min_outline_score,
                    min_side=config.min_outline_side,
                )  # fmt: skip
        records = [record for record in known if masked_regions(record)]
        if not records:
            raise ValueError("data: expected photos with masks, got none")
        records = choose_records(records, config.max_images)
        self.dataset = ClickDataset(
            repeat_crowded(records, config.clicks.clicks_per_image), data.texts, config.click_size,
            config.clicks, self.model.config.pixels, config.seed,
        )  # fmt: skip
        self.sampler = PromptSampler(config.click_size, config.prompts)

    def batches(self) -> Iterator[ClickBatch]:
        """Clicks on `batch_size` photos a step, in another order each epoch."""
        config = self.config
        return load_epochs(
            self.dataset, ClickBatch, batch_size=config.batch_size, seed=config.seed,
            step=self.step, num_workers=config.num_workers,
        )  # fmt: skip

    def names_of(self, batch: ClickBatch) -> Sequence[str]:
        """Names of the photos."""
        return batch.names

    def losses(self, batch: ClickBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch at the current step, and its parts by the names of `LOSSES`."""
        config, batch = self.config, batch.to(self.device)
        generator = torch.Generator(self.device).manual_seed(self.step_seed())
        batch = vary_clicks(batch, config.variation, generator)
        pixels = normalize_pixels(batch.images.flatten(0, 1), self.model.config.pixels)
        pixels = pixels.unflatten(0, (-1, NUM_WINDOWS))
        prompts = self._draw_prompts(batch, pixels, generator)
        outputs = self._segment(pixels, prompts, batch.home)
        parts, ious = window_losses(outputs, batch)
        chosen = outputs.iou_scores.argmax(dim=1, keepdim=True)
        total = (
            config.mask_weight * parts["mask"]
            + config.dice_weight * parts["dice"]
            + config.iou_weight * parts["iou"]
        )
        parts["chosen_iou"] = ious.gather(1, chosen).mean()
        return total, {name: value.detach() for name, value in parts.items()}

    def _segment(self, pixels: Tensor, prompts: SampledPrompts, home: Tensor) -> ClickOutputs:
        coords = coords_in_windows(prompts.coords_xy, home, self.config.click_size)
        with self.autocast():
            outputs: ClickOutputs = self.part(pixels, coords, prompts.labels)
        return outputs

    def _draw_prompts(
        self, batch: ClickBatch, pixels: Tensor, generator: torch.Generator
    ) -> SampledPrompts:
        """The click in the middle; in some steps more clicks on the truth, or corrections.

        All are pixels of the window `batch.home`.
        """
        config = self.config
        draws = StepDraws.at(
            config.seed, self.step, config.prompts, config.second_stage_probability
        )
        first = middle_clicks(len(batch), config.click_size, self.device)
        if not draws.has_second_stage:
            return first
        rows = torch.arange(len(batch), device=self.device)
        truth = batch.masks[rows, batch.home] > 127
        if draws.is_interactive:
            self.part.eval()  # the running statistics take in each photo once
            with torch.no_grad():
                logits = self._segment(pixels, first, batch.home).mask_logits[rows, batch.home]
            self.part.train()
            size = truth.shape[-2:]
            found = F.interpolate(logits.float()[:, None], size=size, mode="bilinear")[:, 0] > 0
            return self.sampler.corrections(first, found, truth, generator, draws.num_clicks)
        more = self.sampler.clicks(truth, generator, draws.num_clicks)
        return SampledPrompts(
            torch.cat([first.coords_xy[:, :1], more.coords_xy], dim=1),
            torch.cat([first.labels[:, :1], more.labels], dim=1),
            first.is_box,
        )


def middle_clicks(count: int, side: int, device: torch.device) -> SampledPrompts:
    """A click in the middle of each window, and a pad."""
    coords = torch.tensor([[(side - 1) / 2] * 2, [PADDING_COORD] * 2], device=device)
    labels = torch.tensor([PointLabel.FOREGROUND, PointLabel.PADDING], device=device)
    is_box = torch.zeros(count, dtype=torch.bool, device=device)
    return SampledPrompts(coords.repeat(count, 1, 1), labels.repeat(count, 1), is_box)


def window_losses(outputs: ClickOutputs, batch: ClickBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Losses of the masks and scores of all windows, and the IoUs (R,P).

    Masks are not learnt from windows in which the region is a speck.
    """
    side = batch.masks.shape[-1]
    weights = (batch.areas.sqrt() >= MIN_FILL * side).float()
    parts, ious = outline_losses(
        outputs.mask_logits.flatten(0, 1), batch.masks.flatten(0, 1).float() / 255,
        batch.areas.flatten(), weights.flatten(),
    )  # fmt: skip
    ious = ious.unflatten(0, (-1, NUM_WINDOWS))
    parts["iou"] = (outputs.iou_scores - ious).square().mean()
    return parts, ious
