"""Train the view segmenter of a model; all other weights of the model stay as they are."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from tokenize_anything.build import (
    build_model,
    choose_device,
    load_model,
    locate_checkpoint,
)
from tokenize_anything.checkpoints import save_state
from tokenize_anything.companions import find_companions
from tokenize_anything.config import PointLabel
from tokenize_anything.data.epoch_sampler import EpochSampler
from tokenize_anything.data.prompt_sampling import (
    PADDING_COORD,
    PromptSampler,
    SampledPrompts,
)
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.data.view_dataset import ViewBatch, ViewDataset, join_views
from tokenize_anything.modeling import TAP, ViewOutputs, ViewSegmenter
from tokenize_anything.training import losses
from tokenize_anything.training.checkpointing import (
    ModelAverage,
    load_training_state,
    save_training_state,
)
from tokenize_anything.training.concept_teacher import (
    ConceptTeacher,
    EmbedTexts,
    concept_names,
    has_text,
)
from tokenize_anything.training.config import save_config
from tokenize_anything.training.csv_log import CsvLog
from tokenize_anything.training.gradient_step import GradientStep
from tokenize_anything.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from tokenize_anything.training.region_objective import AUTOCAST_DTYPES, normalize_pixels
from tokenize_anything.training.step_draws import StepDraws
from tokenize_anything.training.training_data import open_data
from tokenize_anything.training.view_config import ViewConfig

logger = logging.getLogger(__name__)

STATE_FILE, MODEL_FILE = "training_state.pt", "model.safetensors"
CONFIG_FILE, LOG_FILE = "config.yaml", "log.csv"
PARTS = ("mask", "dice", "iou", "concept", "mean_iou", "accuracy")
LOG_COLUMNS = ("loss", *PARTS, "grad_norm", "lr")


class ViewTrainer:
    """One run; it goes on from the state it finds in its folder.

    The folder holds `config.yaml`, `log.csv`, `training_state.pt` and `model.safetensors`, the
    whole model with the averaged segmenter, and with the concepts and the tokenizer it came with.

    Args:
        config: of the run.
        embed: text encoder that spans the concept space of the model, n texts to (n,D).

    Raises:
        FileNotFoundError: annotations or the model are missing.
        ValueError: they are damaged or do not fit the configuration.
    """

    def __init__(self, config: ViewConfig, embed: EmbedTexts) -> None:
        self.config, self.device = config, choose_device(config.device)
        self.folder = Path(config.output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        data = open_data(config.data, self.folder)
        self.model = start_model(config).to(self.device)
        assert self.model.view_segmenter is not None
        self.segmenter: ViewSegmenter = self.model.view_segmenter
        self.dataset = ViewDataset(
            choose_records(data.records, config.max_images), data.texts, config.view_size,
            config.views, self.model.config.pixels, config.seed,
        )  # fmt: skip
        self.teacher = ConceptTeacher(
            data.texts.texts, concept_names(config.data.annotation_files, data.texts.texts), embed,
            teacher_scale=config.teacher_scale, student_scale=config.student_scale,
        )  # fmt: skip
        self.companions = find_companions(
            config.init_from, locate_checkpoint(config.init_from), None,
            self.model.config.vocabulary_size,
        )  # fmt: skip
        self.average = ModelAverage(self.segmenter, config.ema_decay)
        self.optimizer = build_optimizer(self.segmenter, config.optimizer)
        self.gradients = GradientStep(self.optimizer, config.optimizer.max_grad_norm, self.device)
        self.sampler = PromptSampler(config.view_size, config.prompts)
        self.log = CsvLog(self.folder / LOG_FILE, LOG_COLUMNS)
        self.step = 0

    def run(self) -> Path:
        """Train to the last step. Returns the path of the model.

        Raises:
            FloatingPointError: loss or gradient is NaN or infinite; the message names the images.
            OSError: the disk is full; what was saved before is unchanged.
            FileNotFoundError, ValueError: bad data, named.
        """
        if (self.folder / STATE_FILE).is_file():
            self._load()
        self.log.rewind(self.step)
        save_config(self.config, self.folder / CONFIG_FILE)
        batches, last = iter(self._loader()), self.config.num_steps
        with tqdm(total=last, initial=self.step, desc="views", mininterval=5) as progress:
            while self.step < last:
                row = self.train_step(next(batches))
                progress.update()
                if self.step % self.config.log_every == 0:
                    self.log.append(self.step, row)
                    progress.set_postfix({key: f"{row[key]:.3f}" for key in ("loss", "mean_iou")})
                if self.step == last or self.step % self.config.save_every == 0:
                    self.save()
        return self.folder / MODEL_FILE

    def train_step(self, batch: ViewBatch) -> dict[str, float]:
        """One update. Returns the values of the log's columns.

        Raises:
            FloatingPointError: loss or gradient is NaN or infinite; the message names the images.
        """
        self.segmenter.train()
        lr = learning_rate(self.step, self.config.num_steps, self.config.optimizer)
        set_learning_rate(self.optimizer, lr)
        batch = batch.to(self.device)
        loss, parts = self.losses(batch)
        where = f"step {self.step}, images {sorted(set(batch.names))}"
        self.gradients.add(loss, where)
        grad_norm = self.gradients.update(where)
        self.average.update(self.segmenter)
        self.step += 1
        values = {name: float(value) for name, value in parts.items()}
        return {"loss": loss.item(), **values, "grad_norm": grad_norm, "lr": lr}

    def losses(self, batch: ViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch at the current step, and its parts by the names of `PARTS`."""
        config = self.config
        pixels = normalize_pixels(batch.images, self.model.config.pixels)
        generator = torch.Generator(self.device).manual_seed(
            int(np.random.SeedSequence((config.seed, self.step)).generate_state(1)[0])
        )
        prompts = self._draw_prompts(batch, pixels, generator)
        outputs = self._segment(pixels, prompts)
        teacher = self.teacher.log_probs(batch.text_index)
        student = self.teacher.vocabulary.log_probs(outputs.semantic_embeddings.float())
        parts = mask_losses(outputs, batch)
        named = has_text(batch.text_index)
        parts["concept"] = _mean(losses.concept_loss(student, teacher), named)
        parts["accuracy"] = _mean((student.argmax(-1) == teacher.argmax(-1)).float(), named)
        total = (
            config.mask_weight * parts["mask"]
            + config.dice_weight * parts["dice"]
            + config.iou_weight * parts["iou"]
            + config.concept_weight * parts["concept"]
        )
        return total, {name: value.detach() for name, value in parts.items()}

    def save(self) -> None:
        """Write the state to go on from, and the model with the averaged segmenter.

        Raises:
            OSError: the disk is full; what was saved before is unchanged.
        """
        average = self.average.model.state_dict()
        state = {
            "step": self.step,
            "segmenter": self.segmenter.state_dict(),
            "average": average,
            "num_updates": self.average.num_updates,
            "optimizer": self.optimizer.state_dict(),
        }
        save_training_state(self.folder / STATE_FILE, state)
        whole = self.model.state_dict()
        whole |= {f"view_segmenter.{name}": value for name, value in average.items()}
        tensors, metadata = self.companions.pack()
        save_state(
            self.model.config, whole, self.folder / MODEL_FILE, metadata=metadata,
            extra_tensors=tensors,
        )  # fmt: skip

    def _load(self) -> None:
        state = load_training_state(self.folder / STATE_FILE)
        self.segmenter.load_state_dict(state["segmenter"])
        self.average.model.load_state_dict(state["average"])
        self.average.num_updates = state["num_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        logger.info("going on from step %d of %s", self.step, self.folder)

    def _segment(self, pixels: Tensor, prompts: SampledPrompts) -> ViewOutputs:
        precision = AUTOCAST_DTYPES.get(self.config.precision)
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            outputs: ViewOutputs = self.segmenter(pixels, prompts.coords_xy, prompts.labels)
        return outputs

    def _draw_prompts(
        self, batch: ViewBatch, pixels: Tensor, generator: torch.Generator
    ) -> SampledPrompts:
        """Boxes or clicks; in some steps clicks on the truth for the boxes, or corrections."""
        config = self.config
        draws = StepDraws.at(
            config.seed, self.step, config.prompts, config.second_stage_probability
        )
        first = first_prompts(batch, self.sampler, generator)
        if not draws.has_second_stage:
            return first
        if draws.is_interactive:
            self.segmenter.eval()  # the running statistics take in each photo once
            with torch.no_grad():
                logits = self._segment(pixels, first).mask_logits.float()
            self.segmenter.train()
            found = F.interpolate(logits[:, None], size=batch.masks.shape[-2:], mode="bilinear")
            return self.sampler.corrections(
                first, found[:, 0] > 0, batch.masks, generator, draws.num_clicks
            )
        clicks = self.sampler.clicks(batch.masks, generator, draws.num_clicks)
        return replace_boxes(first, clicks)

    def _loader(self) -> DataLoader[ViewBatch]:
        config = self.config
        start = self.step * config.batch_size
        return DataLoader(
            self.dataset,
            batch_size=config.batch_size,
            sampler=EpochSampler(len(self.dataset), seed=config.seed, start=start),
            collate_fn=join_views,
            num_workers=config.num_workers,
            prefetch_factor=4 if config.num_workers else None,
            generator=torch.Generator(),
        )


def start_model(config: ViewConfig) -> TAP:
    """The model of `init_from` with a segmenter of the configuration's width, in float32."""
    source = load_model(config.init_from, device="cpu", dtype="float32")
    sizes = dataclasses.replace(source.config, view_dim=config.view_dim, view_size=config.view_size)
    torch.manual_seed(config.seed)
    model = build_model(sizes)
    state = source.state_dict()
    if config.fresh or source.config.view_dim != config.view_dim:
        state = {name: value for name, value in state.items() if not _is_segmenters(name)}
        state |= {name: v for name, v in model.state_dict().items() if _is_segmenters(name)}
    model.load_state_dict(state)
    return model


def choose_records(records: Sequence[ImageRecord], max_images: int) -> list[ImageRecord]:
    """Photos with regions of their own, at most `max_images` of them, 0 for all.

    Raises:
        ValueError: there are none.
    """
    usable = [r for r in records if any(not region.is_whole_image for region in r.regions)]
    if not usable:
        raise ValueError("data: expected photos with regions, got none")
    order = np.random.default_rng(0).permutation(len(usable))
    return [usable[i] for i in order[: max_images or None].tolist()]


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
    """Losses of masks and IoU scores, means over the views with a mask, and the mean IoU.

    The true masks are averaged over the area of each logit. The IoU is that with the whole region:
    what the view cuts off counts as missed.
    """
    logits = outputs.mask_logits.float()
    truth = F.adaptive_avg_pool2d(batch.masks.float()[:, None], logits.shape[-1])[:, 0]
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
    with torch.no_grad():
        found = logits > 0
        cell = (batch.masks.shape[-1] / logits.shape[-1]) ** 2
        shared = (truth * found).sum((1, 2)) * cell
        union = found.sum((1, 2)) * cell + batch.areas - shared
        ious = shared / union.clamp(min=1)
    return {
        "mask": _mean(entropy, batch.has_mask),
        "dice": _mean(losses.dice_loss(logits, truth), batch.has_mask),
        "iou": _mean((outputs.iou_scores - ious).square(), batch.has_mask),
        "mean_iou": _mean(ious, batch.has_mask),
    }


def _is_segmenters(name: str) -> bool:
    return name.startswith("view_segmenter.")


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
