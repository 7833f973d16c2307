"""Stage 1: learn masks, IoU and concepts from annotated photos (paper section 4.1)."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from tokenize_anything.checkpoints import save_model
from tokenize_anything.config import PixelConfig
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.prompt_sampling import PromptSampler, SampledPrompts
from tokenize_anything.data.region_dataset import EpochSampler, RegionDataset, collate
from tokenize_anything.data.samples import RegionBatch
from tokenize_anything.modeling import TAP, ImageContext
from tokenize_anything.training.checkpointing import (
    ModelAverage,
    load_training_state,
    save_training_state,
)
from tokenize_anything.training.concept_teacher import ConceptTeacher, concept_names, has_text
from tokenize_anything.training.config import PretrainConfig, save_config
from tokenize_anything.training.initialize import initialize_from
from tokenize_anything.training.optimizer import build_optimizer, learning_rate
from tokenize_anything.training.region_losses import RegionLosses, RegionTargets, region_losses

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
MODEL_FILE = "model.safetensors"
CONCEPTS_FILE = "concepts.safetensors"
LOG_FILE = "log.csv"
CONFIG_FILE = "config.yaml"
LOG_COLUMNS = ("loss", "mask", "iou", "concept", "mean_iou", "grad_norm", "lr")


def normalize_pixels(images: Tensor, pixels: PixelConfig) -> Tensor:
    """(B,S,S,3) uint8 RGB to (B,3,S,S) float32 in the model's channel order."""
    if pixels.channel_order == "BGR":
        images = images.flip(-1)
    mean = torch.tensor(pixels.mean, device=images.device)
    std = torch.tensor(pixels.std, device=images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


class Pretrainer:
    """One stage-1 run: owns model, optimiser, schedule, average and random state.

    The folder of the run holds `config.yaml`, `log.csv`, `training_state.pt` (to go on) and
    `model.safetensors` (the averaged model, to use). `run` goes on from the state it finds.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.folder = Path(config.output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        records, texts = read_regions(config.data.annotation_files, config.data.image_folder)
        self.dataset = RegionDataset(
            records, texts, config.model.image_size, config.augment, config.sampling,
            config.model.pixels, config.seed, keep_images=True,
        )  # fmt: skip
        names = concept_names(config.data.annotation_files, texts.texts)
        self.teacher = ConceptTeacher(
            texts.texts, names, self.folder / "text_embeddings.safetensors",
            teacher_scale=config.teacher_scale, student_scale=config.student_scale,
        )  # fmt: skip
        self.model = TAP(
            config.model, drop_path=config.drop_path, decoder_dropout=config.decoder_dropout
        )
        self.model.text_decoder.requires_grad_(False)
        if config.init_from is not None:
            initialize_from(self.model, config.init_from)
        self.average = ModelAverage(self.model, config.ema_decay)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.prompts = PromptSampler(config.model.image_size, config.prompts)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.encode = self.model.encode_images
        if config.compile_encoder:
            self.encode = torch.compile(self.encode)
        self.step = 0

    def run(self) -> Path:
        """Train to the last step. Returns the path of the averaged model."""
        if (self.folder / STATE_FILE).is_file():
            self._load()
        save_config(self.config, self.folder / CONFIG_FILE)
        self.teacher.vocabulary.save(self.folder / CONCEPTS_FILE)
        batches = iter(self._loader())
        progress = tqdm(total=self.config.num_steps, initial=self.step, desc="stage 1", mininterval=5)
        try:
            while self.step < self.config.num_steps:
                row = self.train_step(next(batches))
                progress.update()
                if self.step % self.config.log_every == 0:
                    self._log(row)
                    progress.set_postfix({key: f"{row[key]:.3f}" for key in ("loss", "mean_iou")})
                if self.step % self.config.save_every == 0 or self.step == self.config.num_steps:
                    self.save()
        finally:
            progress.close()
        return self.folder / MODEL_FILE

    def train_step(self, batch: RegionBatch) -> dict[str, float]:
        """One update. Raises FloatingPointError with the images' places when the loss breaks."""
        self.model.train()
        lr = learning_rate(self.step, self.config.num_steps, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, parts = self.losses(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {self.step}, images {batch.indices.tolist()}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.optimizer.max_grad_norm
        )
        self.optimizer.step()
        self.average.update(self.model)
        self.step += 1
        return {**parts, "loss": loss.item(), "grad_norm": grad_norm.item(), "lr": lr}

    def losses(self, batch: RegionBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch over both prompt stages, and its parts by name."""
        batch_size, per_image = batch.has_mask.shape
        targets = self._targets(batch)
        boxes, masks = batch.boxes_xyxy.flatten(0, 1), batch.masks.flatten(0, 1)
        probability = self.config.prompts.box_probability
        is_box = torch.rand(len(boxes), generator=self.generator) < probability
        prompts = self.prompts.first(boxes, masks, is_box, self.generator)
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"
        ):
            pixels = normalize_pixels(batch.images, self.config.model.pixels)
            context = self.model.prepare_regions(self.encode(pixels))
            first, logits = self._stage(context, prompts, targets, (batch_size, per_image))
            stages = [first]
            if self._coin(self.config.second_stage_probability):
                prompts = self._second_prompts(prompts, logits, masks)
                stages.append(self._stage(context, prompts, targets, (batch_size, per_image))[0])
        total = sum((self._weighted(stage) for stage in stages), torch.zeros(()))
        return total / len(stages), {
            "mask": first.mask.item(), "iou": first.iou.item(),
            "concept": first.concept.item(), "mean_iou": first.mean_iou.item(),
        }  # fmt: skip

    def _weighted(self, stage: RegionLosses) -> Tensor:
        config = self.config
        return (
            config.mask_weight * stage.mask
            + config.iou_weight * stage.iou
            + config.concept_weight * stage.concept
        )

    def _stage(
        self,
        context: ImageContext,
        prompts: SampledPrompts,
        targets: RegionTargets,
        shape: tuple[int, int],
    ) -> tuple[RegionLosses, Tensor]:
        outputs = self.model.decode_regions(
            context, prompts.coords_xy.unflatten(0, shape), prompts.labels.unflatten(0, shape)
        )
        stage = region_losses(outputs, targets, prompts.is_box, self.teacher.vocabulary)
        rows = torch.arange(len(outputs))
        return stage, outputs.mask_logits.detach()[rows, stage.slot]

    def _second_prompts(
        self, first: SampledPrompts, logits: Tensor, masks: Tensor
    ) -> SampledPrompts:
        if not self._coin(self.config.prompts.interactive_probability):
            return self.prompts.clicks(masks, self.generator)
        size = masks.shape[-2:]
        predicted = F.interpolate(
            logits.float().unsqueeze(1), size=size, mode="bilinear", align_corners=False
        )
        return self.prompts.corrections(first, predicted[:, 0] > 0, masks, self.generator)

    def _targets(self, batch: RegionBatch) -> RegionTargets:
        text_index = batch.text_index.flatten()
        return RegionTargets(
            masks=batch.masks.flatten(0, 1),
            has_mask=batch.has_mask.flatten(),
            teacher_log_probs=self.teacher.log_probs(text_index),
            has_text=has_text(text_index),
        )

    def _coin(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < probability

    def _loader(self) -> DataLoader[Any]:
        start = self.step * self.config.batch_size
        return DataLoader(
            self.dataset,
            batch_size=self.config.batch_size,
            sampler=EpochSampler(len(self.dataset), seed=self.config.seed, start=start),
            collate_fn=collate,
            num_workers=self.config.num_workers,
            prefetch_factor=4 if self.config.num_workers else None,
        )

    def save(self) -> None:
        """Write the state to go on from, and the averaged model."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "num_updates": self.average.num_updates,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
        }
        save_training_state(self.folder / STATE_FILE, state)
        save_model(self.average.model, self.folder / MODEL_FILE)

    def _load(self) -> None:
        state = load_training_state(self.folder / STATE_FILE)
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.num_updates = state["num_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        self.step = state["step"]
        logger.info("going on from step %d of %s", self.step, self.folder)

    def _log(self, row: dict[str, float]) -> None:
        path = self.folder / LOG_FILE
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(("step", *LOG_COLUMNS))
            values = (row[column] for column in LOG_COLUMNS)
            writer.writerow((self.step, *(f"{v:.6g}" if math.isfinite(v) else v for v in values)))
