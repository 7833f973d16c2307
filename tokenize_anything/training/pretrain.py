"""Stage 1: learn masks, IoU and concepts from annotated photos (paper section 4.1)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from tokenize_anything.build import build_model, choose_device
from tokenize_anything.checkpoints import save_model
from tokenize_anything.config import PixelConfig
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.prompt_sampling import PromptSampler, SampledPrompts
from tokenize_anything.data.region_dataset import EpochSampler, RegionDataset, collate
from tokenize_anything.data.samples import RegionBatch
from tokenize_anything.modeling import ImageContext, RegionOutputs
from tokenize_anything.training.checkpointing import (
    ModelAverage,
    load_training_state,
    random_state,
    save_training_state,
    set_random_state,
)
from tokenize_anything.training.concept_teacher import (
    ConceptTeacher,
    EmbedTexts,
    concept_names,
    has_text,
)
from tokenize_anything.training.config import PretrainConfig, save_config
from tokenize_anything.training.csv_log import CsvLog
from tokenize_anything.training.initialize import add_sine_positions, initialize_from
from tokenize_anything.training.optimizer import (
    build_optimizer,
    descend,
    learning_rate,
    set_learning_rate,
)
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

    The folder of the run holds `config.yaml`, `log.csv`, `concepts.safetensors`,
    `training_state.pt` (to go on) and `model.safetensors` (the averaged model, to use). `run` goes
    on from the state it finds.

    Args:
        config: of the run.
        embed: text encoder that spans the concept space, n texts to (n,D).

    Raises:
        FileNotFoundError: annotations or initial weights are missing.
        ValueError: they are damaged or do not fit the configuration.
    """

    def __init__(self, config: PretrainConfig, embed: EmbedTexts) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self.folder = Path(config.output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = CsvLog(self.folder / LOG_FILE, LOG_COLUMNS)
        torch.manual_seed(config.seed)
        records, texts = read_regions(config.data.annotation_files, config.data.image_folder)
        self.dataset = RegionDataset(
            records, texts, config.model.image_size, config.augment, config.sampling,
            config.model.pixels, config.seed, keep_images=True,
        )  # fmt: skip
        self.teacher = ConceptTeacher(
            texts.texts, concept_names(config.data.annotation_files, texts.texts), embed,
            teacher_scale=config.teacher_scale, student_scale=config.student_scale,
        )  # fmt: skip
        self._check_concept_space()
        self.model = build_model(
            config.model, device=self.device, drop_path=config.drop_path,
            decoder_dropout=config.decoder_dropout,
        )  # fmt: skip
        for part in (*config.freeze, "text_decoder"):
            self.model.get_submodule(part).requires_grad_(False)
        if config.init_from is not None:
            initialize_from(self.model, config.init_from, fresh=config.fresh)
        if config.sine_positions:
            add_sine_positions(self.model, config.sine_positions)
        self.average = ModelAverage(self.model, config.ema_decay)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.prompts = PromptSampler(config.model.image_size, config.prompts)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.encode: Callable[..., Tensor] = self.model.encode_images
        self.decode: Callable[..., RegionOutputs] = self.model.decode_regions
        self.compare: Callable[..., RegionLosses] = region_losses
        if config.compile_model:
            self.encode = torch.compile(self.encode)
            self.decode = torch.compile(self.decode)
            self.compare = torch.compile(self.compare)
        self.step = 0

    def run(self) -> Path:
        """Train to the last step. Returns the path of the averaged model."""
        if (self.folder / STATE_FILE).is_file():
            self._load()
        self.log.rewind(self.step)
        save_config(self.config, self.folder / CONFIG_FILE)
        self.teacher.vocabulary.save(self.folder / CONCEPTS_FILE)
        batches, last = iter(self._loader()), self.config.last_step
        with tqdm(total=last, initial=self.step, desc="stage 1", mininterval=5) as progress:
            while self.step < last:
                row = self.train_step(next(batches).to(self.device))
                progress.update()
                if self.step % self.config.log_every == 0:
                    self.log.append(self.step, row)
                    progress.set_postfix({key: f"{row[key]:.3f}" for key in ("loss", "mean_iou")})
                if self.step % self.config.save_every == 0 or self.step == last:
                    self.save()
        return self.folder / MODEL_FILE

    def train_step(self, batch: RegionBatch) -> dict[str, float]:
        """One update on a batch on the model's device. Returns the values of the log's columns.

        Raises:
            FloatingPointError: loss or gradient is NaN or infinite; the message names the images.
        """
        self.model.train()
        for part in self.config.freeze:
            self.model.get_submodule(part).eval()
        lr = learning_rate(self.step, self.config.num_steps, self.config.optimizer)
        set_learning_rate(self.optimizer, lr)
        loss, parts = self.losses(batch)
        names = [self.dataset.records[index].path.name for index in batch.indices.tolist()]
        where = f"step {self.step}, images {names}"
        grad_norm = descend(self.optimizer, loss, self.config.optimizer.max_grad_norm, where)
        self.average.update(self.model)
        self.step += 1
        return {**parts, "loss": loss.item(), "grad_norm": grad_norm, "lr": lr}

    def losses(self, batch: RegionBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch, the mean of its prompt stages, and the parts of the first by name."""
        targets, shape = self._targets(batch), batch.has_mask.shape
        boxes = batch.boxes_xyxy.flatten(0, 1)
        probability = self.config.prompts.box_probability
        draws = torch.rand(len(boxes), generator=self.generator, device=self.device)
        prompts = self.prompts.first(boxes, targets.masks, draws < probability, self.generator)
        with self._autocast():
            pixels = normalize_pixels(batch.images, self.config.model.pixels)
            context = self.model.prepare_regions(self.encode(pixels))
        first, logits = self._stage(context, prompts, targets, shape)
        totals = [self._weighted(first)]
        if self._coin(self.config.second_stage_probability):
            prompts = self._second_prompts(prompts, logits, targets.masks)
            # A region known by its box alone offers no mask to click on, so no second prompt.
            targets = dataclasses.replace(targets, has_text=targets.has_text & targets.has_mask)
            totals.append(self._weighted(self._stage(context, prompts, targets, shape)[0]))
        return torch.stack(totals).mean(), {
            "mask": first.mask.item(), "iou": first.iou.item(),
            "concept": first.concept.item(), "mean_iou": first.mean_iou.item(),
        }  # fmt: skip

    def save(self) -> None:
        """Write the state to go on from, and the averaged model."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "num_updates": self.average.num_updates,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "random": random_state(self.device),
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
        set_random_state(state["random"], self.device)
        self.step = state["step"]
        logger.info("going on from step %d of %s", self.step, self.folder)

    def _check_concept_space(self) -> None:
        width = self.teacher.vocabulary.weights.shape[0]
        if width != self.config.model.semantic_dim:
            raise ValueError(
                f"model.semantic_dim: expected {width}, the width of the text embeddings, got "
                f"{self.config.model.semantic_dim}"
            )

    def _autocast(self) -> torch.autocast:
        is_low = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_low)

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
        shape: tuple[int, ...],
    ) -> tuple[RegionLosses, Tensor]:
        """Losses of one stage of prompts, and the supervised mask logits (R,4h,4w), detached."""
        coords, labels = prompts.coords_xy.unflatten(0, shape), prompts.labels.unflatten(0, shape)
        with self._autocast():
            outputs = self.decode(context, coords, labels)
        stage = self.compare(
            outputs, targets, prompts.is_box, self.teacher.vocabulary,
            dice_weight=self.config.dice_weight,
        )  # fmt: skip
        rows = torch.arange(len(outputs), device=self.device)
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
        draw = torch.rand((), generator=self.generator, device=self.device)
        return float(draw) < probability

    def _loader(self) -> DataLoader[Any]:
        start = self.step * self.config.batch_size
        return DataLoader(
            self.dataset,
            batch_size=self.config.batch_size,
            sampler=EpochSampler(len(self.dataset), seed=self.config.seed, start=start),
            collate_fn=collate,
            num_workers=self.config.num_workers,
            prefetch_factor=4 if self.config.num_workers else None,
            # Its own, because the loader would draw from the one that dropout uses.
            generator=torch.Generator(),
        )
