"""Stage 1: learn masks, IoU and concepts from annotated photos (paper section 4.1)."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from tokenize_anything.build import build_model
from tokenize_anything.checkpoints import save_state
from tokenize_anything.data.epoch_sampler import BatchShare, EpochSampler
from tokenize_anything.data.region_dataset import RegionDataset, collate
from tokenize_anything.data.region_embeddings import RegionEmbeddings
from tokenize_anything.data.samples import RegionBatch
from tokenize_anything.modeling import TAP
from tokenize_anything.training.checkpointing import (
    ModelAverage,
    keep_copy,
    load_training_state,
    save_training_state,
)
from tokenize_anything.training.concept_teacher import EmbedTexts
from tokenize_anything.training.config import PretrainConfig, save_config
from tokenize_anything.training.distributed import (
    Processes,
    exchange_gradients,
    wrap_data_parallel,
)
from tokenize_anything.training.gradient_step import GradientStep
from tokenize_anything.training.initialize import add_sine_positions, initialize_from
from tokenize_anything.training.mask_validation import MaskValidator
from tokenize_anything.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from tokenize_anything.training.region_losses import RegionTargets
from tokenize_anything.training.region_objective import (
    AUTOCAST_DTYPES,
    PARTS,
    BatchTargets,
    RegionObjective,
)
from tokenize_anything.training.region_teacher import make_teacher
from tokenize_anything.training.run_logs import RunLogs
from tokenize_anything.training.sharded import (
    full_state,
    load_module_state,
    load_optimizer_state,
    shard_module,
)
from tokenize_anything.training.step_draws import StepDraws, image_generators, seed_dropout
from tokenize_anything.training.training_data import TrainingData, check_region_ids, open_data
from tokenize_anything.training.vit_weights import initialize_encoder

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
MODEL_FILE = "model.safetensors"
BEST_FILE = "best.safetensors"
CONCEPTS_FILE = "concepts.safetensors"
CONFIG_FILE = "config.yaml"
INDEX_FOLDER = "shard_index"
LOG_COLUMNS = ("loss", *PARTS, "grad_norm", "lr", "skipped")


class Pretrainer:
    """One stage-1 run: owns model, optimiser, schedule, average and random state.

    The folder of the run holds `config.yaml`, `log.csv`, `concepts.safetensors`,
    `training_state.pt` (to go on) and `model.safetensors` (the averaged model, to use); where the
    configuration asks for them `validation.csv`, `best.safetensors` and `checkpoints`; and
    `skipped.csv` where bad data was left out. `run` goes on from the state it finds.

    Under `torchrun` each process makes one of these, with the same arguments, and all use one
    folder. What is learnt does not depend on how many processes share a batch, but for rounding
    and for what dropout draws.

    Args:
        config: of the run.
        embed: text encoder that spans the concept space, n texts to (n,D); teaches from texts.
        embeddings: stored vectors of the regions; teaches from them, with the vocabularies of the
            configuration.

    Raises:
        FileNotFoundError: annotations or initial weights are missing.
        ValueError: they are damaged or do not fit the configuration.
    """

    def __init__(
        self,
        config: PretrainConfig,
        embed: EmbedTexts | None = None,
        embeddings: RegionEmbeddings | None = None,
    ) -> None:
        self.config = config
        self.processes = Processes.join(config.device)
        self.device = self.processes.device
        self.share = BatchShare(config.batch_size, self.processes.rank, self.processes.world)
        if len(self.share.positions) % config.accumulate:
            raise ValueError(
                f"accumulate: expected a divisor of the {len(self.share.positions)} images of a "
                f"process, got {config.accumulate}"
            )
        self.folder = Path(config.output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self._open_data(embeddings)
        self.dataset = RegionDataset(
            self.data.records, self.data.texts, config.model.image_size, config.augment,
            config.sampling, config.model.pixels, config.seed,
            keep_images=bool(config.data.annotation_files), embeddings=embeddings,
            embedding_dim=config.model.semantic_dim, on_bad_data=config.data.on_bad_data,
        )  # fmt: skip
        self.teacher = make_teacher(config, self.data, embed)
        self.model = self._initial_model()
        self.average = ModelAverage(self.model, config.ema_decay)
        self.objective = self._parallel_objective()
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.gradients = GradientStep(
            self.optimizer, config.optimizer.max_grad_norm, self.device,
            is_float16=config.precision == "float16",
        )  # fmt: skip
        self.validator = None
        if config.validation is not None:
            self.validator = MaskValidator(config.validation, self.processes)
        self.logs = RunLogs(
            self.folder, LOG_COLUMNS, rank=self.processes.rank,
            has_validation=config.validation is not None, has_tensorboard=config.tensorboard,
        )  # fmt: skip
        self.step, self.num_skipped, self.best = 0, 0.0, -math.inf

    def run(self) -> Path:
        """Train to the last step. Returns the path of the averaged model.

        Raises:
            FloatingPointError: loss or gradient is NaN or infinite; the message names the images.
            OSError: the disk is full; what was saved before is unchanged.
            FileNotFoundError, ValueError: bad data, named; see `DataConfig.on_bad_data`.
        """
        if (self.folder / STATE_FILE).is_file():
            self._load()
        self.logs.rewind(self.step)
        if self.processes.is_first:
            save_config(self.config, self.folder / CONFIG_FILE)
            if self.teacher.vocabulary is not None:
                self.teacher.vocabulary.save(self.folder / CONCEPTS_FILE)
        batches, last = iter(self._loader()), self.config.last_step
        with tqdm(
            total=last, initial=self.step, desc="stage 1", mininterval=5,
            disable=not self.processes.is_first,
        ) as progress:  # fmt: skip
            while self.step < last:
                row = self.train_step(*itertools.islice(batches, self.config.accumulate))
                progress.update()
                if self.step % self.config.log_every == 0:
                    self.logs.add_training(self.step, row)
                    progress.set_postfix({key: f"{row[key]:.3f}" for key in ("loss", "mean_iou")})
                self._look_and_save()
        self.logs.close()
        self.processes.wait()
        return self.folder / MODEL_FILE

    def train_step(self, *batches: RegionBatch) -> dict[str, float]:
        """One update on a batch, given whole or in parts. Returns the values of the log's columns.

        Raises:
            FloatingPointError: loss or gradient is NaN or infinite; the message names the images.
        """
        self.model.train()
        for part in self.config.freeze:
            self.model.get_submodule(part).eval()
        lr = learning_rate(self.step, self.config.num_steps, self.config.optimizer)
        set_learning_rate(self.optimizer, lr)
        seed_dropout(self.config.seed, self.step, self.processes.rank)
        totals = torch.zeros(1 + len(PARTS), device=self.device)
        prepared = self._prepare(batches)
        for number, (batch, targets) in enumerate(prepared):
            with exchange_gradients(self.objective, number + 1 == len(prepared)):
                loss, parts = self._forward(batch, targets, number)
                # The mean over the processes follows; their losses are to be added up.
                self.gradients.add(loss * self.processes.world, self._place([batch]))
            totals += torch.cat([loss.detach()[None], parts])
        grad_norm = self.gradients.update(self._place(batches))
        self.average.update(self.model)
        self.step += 1
        skipped = [line for batch in batches for line in batch.skipped]
        self.logs.add_skipped(self.step, skipped)
        values = self.processes.sum(torch.cat([totals, totals.new_tensor([len(skipped)])])).tolist()
        self.num_skipped += values[-1]
        row = dict(zip(("loss", *PARTS), values[:-1], strict=True))
        return {**row, "grad_norm": grad_norm, "lr": lr, "skipped": self.num_skipped}

    def losses(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """Loss of a batch at the current step, and its parts, see `RegionObjective.forward`."""
        ((batch, targets),) = self._prepare([batch])
        return self._forward(batch, targets, 0)

    def validate(self) -> dict[str, float]:
        """Score the averaged model, and keep it if it is the best so far."""
        assert self.validator is not None
        model, state = self._whole_average()
        scores = self.validator.run(model, AUTOCAST_DTYPES.get(self.config.precision))
        if scores["mean_iou"] > self.best:
            self.best = scores["mean_iou"]
            if self.processes.is_first:
                save_state(self.config.model, state, self.folder / BEST_FILE)
        self.logs.add_validation(self.step, scores)
        return scores

    def save(self) -> None:
        """Write the state to go on from, and the averaged model.

        Raises:
            OSError: the disk is full; what was saved before is unchanged.
        """
        average = full_state(self.average.model.state_dict())
        state = {
            "step": self.step,
            "model": full_state(self.model.state_dict()),
            "average": average,
            "num_updates": self.average.num_updates,
            "optimizer": full_state(self.optimizer.state_dict()),
            "loss_scale": self.gradients.state_dict(),
            "num_skipped": self.num_skipped,
            "best": self.best,
        }
        if self.processes.is_first:
            save_training_state(self.folder / STATE_FILE, state)
            save_state(self.config.model, average, self.folder / MODEL_FILE)
            files = [STATE_FILE, MODEL_FILE, CONFIG_FILE]
            keep_copy(self.folder, files, self.step, self.config.keep_last)
        self.processes.wait()

    def _look_and_save(self) -> None:
        """Validate and save where it is time to."""
        is_last, every = self.step == self.config.last_step, self.config.validation
        if every is not None and (is_last or self.step % every.every == 0):
            self.validate()
        if is_last or self.step % self.config.save_every == 0:
            self.save()

    def _load(self) -> None:
        state = load_training_state(self.folder / STATE_FILE)
        load_module_state(self.model, state["model"])
        load_module_state(self.average.model, state["average"])
        self.average.num_updates = state["num_updates"]
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.gradients.load_state_dict(state["loss_scale"])
        self.step, self.num_skipped = state["step"], state["num_skipped"]
        self.best = state["best"]
        logger.info("going on from step %d of %s", self.step, self.folder)

    def _open_data(self, embeddings: RegionEmbeddings | None) -> TrainingData:
        """Open the data; the first process before the others, which then find shards indexed."""
        config, folder = self.config, self.folder / INDEX_FOLDER
        if not self.processes.is_first:
            self.processes.wait()
        data = open_data(config.data, folder)
        if self.processes.is_first:
            self.processes.wait()
        if bool(config.embeddings) != (embeddings is not None):
            raise ValueError(
                f"embeddings: the configuration names {config.embeddings}, the caller gave "
                f"{'none' if embeddings is None else 'some'}; a store needs both"
            )
        if embeddings is not None and config.data.annotation_files:
            check_region_ids(data.records, config.data.annotation_files)
        return data

    def _initial_model(self) -> TAP:
        config = self.config
        torch.manual_seed(config.seed)
        model = build_model(
            config.model, device=self.device, drop_path=config.drop_path,
            decoder_dropout=config.decoder_dropout,
        )  # fmt: skip
        untaught = ["image_decoder.semantic_head"] if config.concept_loss == "none" else []
        for part in (*config.freeze, "text_decoder", *untaught):
            model.get_submodule(part).requires_grad_(False)
        if config.init_from is not None:
            initialize_from(model, config.init_from, fresh=config.fresh)
        if config.init_encoder_from is not None:
            initialize_encoder(model, config.init_encoder_from)
        if config.sine_positions:
            add_sine_positions(model, config.sine_positions)
        return model

    def _parallel_objective(self) -> nn.Module:
        objective = RegionObjective(self.model, self.teacher.vocabulary, self.config)
        if self.processes.world == 1:
            return objective
        if self.config.parallel == "ddp":
            return wrap_data_parallel(objective, self.processes)
        shard_module(objective, self.model, self.processes)
        shard_module(self.average.model, self.average.model, self.processes)
        return objective

    def _whole_average(self) -> tuple[TAP, dict[str, Tensor]]:
        """The averaged model for use by this process, and its weights; all processes call it."""
        state = full_state(self.average.model.state_dict())
        if self.processes.world == 1 or self.config.parallel == "ddp":
            return self.average.model, state
        model = build_model(self.config.model, device=self.device)
        model.load_state_dict(state)
        return model, state

    def _prepare(self, batches: Sequence[RegionBatch]) -> list[tuple[RegionBatch, BatchTargets]]:
        """The parts of a batch on the device, with targets that know the size of the whole."""
        batches = [batch.to(self.device) for batch in batches]
        taught = [self.teacher.targets(batch) for batch in batches]
        counts = torch.zeros(3, device=self.device)  # regions with a mask, with a text, with both
        for batch, (_, has_text) in zip(batches, taught, strict=True):
            has_mask = batch.has_mask.flatten()
            flags = torch.stack([has_mask, has_text, has_mask & has_text])
            counts += flags.sum(dim=1)
        num_masks, num_texts, num_both = self.processes.sum(counts)
        targets = []
        for batch, (teacher, has_text) in zip(batches, taught, strict=True):
            masks, has_mask = batch.masks.flatten(0, 1), batch.has_mask.flatten()
            first = RegionTargets(masks, has_mask, teacher, has_text, num_masks, num_texts)
            # A region known by its box alone offers no mask to click on, so no second prompt.
            second = dataclasses.replace(first, has_text=has_text & has_mask, text_count=num_both)
            targets.append(BatchTargets(first, second))
        return list(zip(batches, targets, strict=True))

    def _forward(
        self, batch: RegionBatch, targets: BatchTargets, number: int
    ) -> tuple[Tensor, Tensor]:
        """Loss and parts of part `number` of a batch."""
        config, count = self.config, len(batch)
        start = self.share.positions.start + number * count
        draws = StepDraws.at(
            config.seed, self.step, config.prompts, config.second_stage_probability
        )
        generators = image_generators(
            config.seed, self.step, range(start, start + count), self.device
        )
        return self.objective(batch, targets, draws, generators)

    def _place(self, batches: Sequence[RegionBatch]) -> str:
        names = [name for batch in batches for name in batch.names]
        return f"step {self.step}, images {names}"

    def _loader(self) -> DataLoader[Any]:
        config = self.config
        sampler = EpochSampler(
            len(self.dataset), seed=config.seed, start=self.step * config.batch_size,
            share=self.share, shard_sizes=self.data.shard_sizes,
        )  # fmt: skip
        # The store of the embeddings does not survive a fork.
        context = "forkserver" if config.num_workers and self.dataset.embeddings else None
        return DataLoader(
            self.dataset,
            batch_size=len(self.share.positions) // config.accumulate,
            sampler=sampler,
            collate_fn=collate,
            num_workers=config.num_workers,
            prefetch_factor=4 if config.num_workers else None,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context=context,
            # Its own, because the loader would draw from the one that dropout uses.
            generator=torch.Generator(),
        )
