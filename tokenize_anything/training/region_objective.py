"""The loss of a batch as one module, so that data-parallel wrappers see a single forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.data.prompt_sampling import PromptSampler, SampledPrompts
from tokenize_anything.data.samples import RegionBatch
from tokenize_anything.image_transform import normalize_pixels
from tokenize_anything.modeling import TAP, ImageContext, RegionOutputs
from tokenize_anything.training.config import PretrainConfig
from tokenize_anything.training.region_losses import RegionLosses, RegionTargets, region_losses
from tokenize_anything.training.step_draws import StepDraws

PARTS = ("mask", "iou", "concept", "mean_iou")
AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True, eq=False)
class BatchTargets:
    """Truth of a batch for both stages of prompts; the second leaves out what has no mask."""

    first: RegionTargets
    second: RegionTargets


class RegionObjective(nn.Module):
    """Draws prompts for a batch, decodes them with a model and compares with the truth.

    Args:
        model: trained through this.
        vocabulary: the student's classifier, see `region_losses`.
        config: weights of the losses, prompts, precision, and whether to compile.
    """

    def __init__(
        self, model: TAP, vocabulary: ConceptVocabulary | None, config: PretrainConfig
    ) -> None:
        super().__init__()
        self.model, self.vocabulary, self.config = model, vocabulary, config
        self.prompts = PromptSampler(config.model.image_size, config.prompts)
        self.encode: Callable[..., Tensor] = model.encode_images
        self.decode: Callable[..., RegionOutputs] = model.decode_regions
        self.compare: Callable[..., RegionLosses] = region_losses
        if config.compile_model:
            self.encode = torch.compile(self.encode)
            self.decode = torch.compile(self.decode)
            self.compare = torch.compile(self.compare)

    def forward(
        self,
        batch: RegionBatch,
        targets: BatchTargets,
        draws: StepDraws,
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """Decode one or two stages of prompts.

        Args:
            batch: B images with P regions each, on the model's device.
            targets: of its R = B * P regions.
            draws: what all images have in common.
            generators: one for each image.

        Returns:
            The loss, the mean of the stages; and the parts of the first stage, detached, in the
            order of `PARTS`.
        """
        boxes, masks = batch.boxes_xyxy.flatten(0, 1), targets.first.masks
        is_box = self.prompts.draw_is_box(boxes, generators)
        prompts = self.prompts.first(boxes, masks, is_box, generators)
        with self._autocast():
            pixels = normalize_pixels(batch.images, self.config.model.pixels)
            context = self.model.prepare_regions(self.encode(pixels))
        first, logits = self._stage(context, prompts, targets.first, batch.has_mask.shape)
        loss = self._weighted(first)
        if draws.has_second_stage:
            prompts = self.second_prompts(prompts, logits, masks, draws, generators)
            second, _ = self._stage(context, prompts, targets.second, batch.has_mask.shape)
            loss = (loss + self._weighted(second)) / 2
        return loss, torch.stack([getattr(first, name) for name in PARTS]).detach()

    def second_prompts(
        self,
        first: SampledPrompts,
        logits: Tensor,
        masks: Tensor,
        draws: StepDraws,
        generators: Sequence[torch.Generator],
    ) -> SampledPrompts:
        """Prompts of the second stage: corrections of the first, or clicks on the true masks.

        Args:
            first: prompts of the first stage.
            logits: (R,4h,4w) mask logits that answered them.
            masks: (R,m,m) bool truth.
            draws: what all images have in common.
            generators: one for each image.
        """
        if not draws.is_interactive:
            return self.prompts.clicks(masks, generators, draws.num_clicks)
        size = masks.shape[-2:]
        predicted = F.interpolate(
            logits.float().unsqueeze(1), size=size, mode="bilinear", align_corners=False
        )
        return self.prompts.corrections(
            first, predicted[:, 0] > 0, masks, generators, draws.num_clicks
        )

    def _stage(
        self,
        context: ImageContext,
        prompts: SampledPrompts,
        targets: RegionTargets,
        shape: tuple[int, ...],
    ) -> tuple[RegionLosses, Tensor]:
        """Losses of one stage of prompts, and the supervised mask logits (R,4h,4w), detached."""
        coords, labels = prompts.coords_xy.unflatten(0, shape), prompts.labels.unflatten(0, shape)
        with self._autocast():
            outputs = self.decode(context, coords, labels)
        stage = self.compare(
            outputs, targets, prompts.is_box, self.vocabulary,
            dice_weight=self.config.dice_weight, concept_loss=self.config.concept_loss,
        )  # fmt: skip
        rows = torch.arange(len(outputs), device=stage.slot.device)
        return stage, outputs.mask_logits.detach()[rows, stage.slot]

    def _weighted(self, stage: RegionLosses) -> Tensor:
        config = self.config
        return (
            config.mask_weight * stage.mask
            + config.iou_weight * stage.iou
            + config.concept_weight * stage.concept
        )

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST_DTYPES.get(self.config.precision)
        device_type = self.model.device.type
        return torch.autocast(device_type, dtype or torch.bfloat16, enabled=dtype is not None)
