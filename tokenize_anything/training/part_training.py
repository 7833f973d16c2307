"""Train one part of a trained model; all its other weights stay as they are."""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tokenize_anything.build import build_model, choose_device, load_model, locate_checkpoint
from tokenize_anything.checkpoints import save_state
from tokenize_anything.companions import find_companions
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.modeling import TAP
from tokenize_anything.training.checkpointing import (
    ModelAverage,
    load_training_state,
    save_training_state,
)
from tokenize_anything.training.concept_teacher import ConceptTeacher, EmbedTexts, concept_names
from tokenize_anything.training.config import save_config
from tokenize_anything.training.csv_log import CsvLog
from tokenize_anything.training.gradient_step import GradientStep
from tokenize_anything.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from tokenize_anything.training.part_config import PartConfig
from tokenize_anything.training.region_objective import AUTOCAST_DTYPES
from tokenize_anything.training.step_draws import seed_dropout
from tokenize_anything.training.training_data import TrainingData, open_data

logger = logging.getLogger(__name__)

STATE_FILE, MODEL_FILE = "training_state.pt", "model.safetensors"
CONFIG_FILE, LOG_FILE = "config.yaml", "log.csv"
ConfigT = TypeVar("ConfigT", bound=PartConfig)
BatchT = TypeVar("BatchT")


class PartTrainer(ABC, Generic[ConfigT, BatchT]):
    """One run; it goes on from the state it finds in its folder.

    The folder holds `config.yaml`, `log.csv`, `training_state.pt` and `model.safetensors`, the
    whole model with the averaged part, and with the concepts and the tokenizer it came with.

    Args:
        config: of the run.
        embed: text encoder that spans the concept space of the model, n texts to (n,D); for parts
            that learn concepts.

    Raises:
        FileNotFoundError: annotations or the model are missing.
        ValueError: they are damaged or do not fit the configuration.
    """

    PART: ClassVar[str]  # name of the part in the model
    LOSSES: ClassVar[tuple[str, ...]]  # names of what `losses` returns beside the sum

    def __init__(self, config: ConfigT, embed: EmbedTexts | None = None) -> None:
        self.config, self.device, self.embed = config, choose_device(config.device), embed
        self.folder = Path(config.output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        data = open_data(config.data, self.folder)
        self.model = self.start_model().to(self.device)
        self.part: nn.Module = self.model.get_submodule(self.PART)
        self.companions = find_companions(
            config.init_from, locate_checkpoint(config.init_from), None,
            self.model.config.vocabulary_size,
        )  # fmt: skip
        self.average = ModelAverage(self.part, config.ema_decay)
        self.optimizer = build_optimizer(self.part, config.optimizer)
        self.gradients = GradientStep(self.optimizer, config.optimizer.max_grad_norm, self.device)
        self.log = CsvLog(self.folder / LOG_FILE, ("loss", *self.LOSSES, "grad_norm", "lr"))
        self.step = 0
        self.prepare(data)

    def make_teacher(self, data: TrainingData) -> ConceptTeacher:
        """What the names of the data say about each concept."""
        assert self.embed is not None
        config, texts = self.config, data.texts.texts
        names = concept_names(config.data.annotation_files, texts)
        scales = {"teacher_scale": config.teacher_scale, "student_scale": config.student_scale}
        return ConceptTeacher(texts, names, self.embed, **scales)

    @abstractmethod
    def start_model(self) -> TAP:
        """The model of `init_from` with the part as the run starts it, in float32."""

    @abstractmethod
    def prepare(self, data: TrainingData) -> None:
        """Make ready what batches are drawn from."""

    @abstractmethod
    def batches(self) -> Iterator[BatchT]:
        """Batches of the steps from the current one on."""

    @abstractmethod
    def losses(self, batch: BatchT) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch at the current step, and its parts by the names of `LOSSES`."""

    @abstractmethod
    def names_of(self, batch: BatchT) -> Sequence[str]:
        """Names of the photos of a batch, for error messages."""

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
        batches, last = self.batches(), self.config.num_steps
        shown = ("loss", self.LOSSES[-1])
        with tqdm(total=last, initial=self.step, desc=self.PART, mininterval=5) as progress:
            while self.step < last:
                row = self.train_step(next(batches))
                progress.update()
                if self.step % self.config.log_every == 0:
                    self.log.append(self.step, row)
                    progress.set_postfix({key: f"{row[key]:.3f}" for key in shown})
                if self.step == last or self.step % self.config.save_every == 0:
                    self.save()
        return self.folder / MODEL_FILE

    def train_step(self, batch: BatchT) -> dict[str, float]:
        """One update. Returns the values of the log's columns.

        Raises:
            FloatingPointError: loss or gradient is NaN or infinite; the message names the images.
        """
        self.part.train()
        seed_dropout(self.config.seed, self.step, 0)
        lr = learning_rate(self.step, self.config.num_steps, self.config.optimizer)
        set_learning_rate(self.optimizer, lr)
        loss, parts = self.losses(batch)
        where = f"step {self.step}, images {sorted(set(self.names_of(batch)))}"
        self.gradients.add(loss, where)
        grad_norm = self.gradients.update(where)
        self.average.update(self.part)
        self.step += 1
        values = {name: float(value) for name, value in parts.items()}
        return {"loss": loss.item(), **values, "grad_norm": grad_norm, "lr": lr}

    def save(self) -> None:
        """Write the state to go on from, and the model with the averaged part.

        Raises:
            OSError: the disk is full; what was saved before is unchanged.
        """
        average = self.average.model.state_dict()
        state = {
            "step": self.step,
            "part": self.part.state_dict(),
            "average": average,
            "num_updates": self.average.num_updates,
            "optimizer": self.optimizer.state_dict(),
        }
        save_training_state(self.folder / STATE_FILE, state)
        whole = self.model.state_dict()
        whole |= {f"{self.PART}.{name}": value for name, value in average.items()}
        tensors, metadata = self.companions.pack()
        save_state(
            self.model.config, whole, self.folder / MODEL_FILE, metadata=metadata,
            extra_tensors=tensors,
        )  # fmt: skip

    def autocast(self) -> torch.autocast:
        """The precision that networks run in."""
        precision = AUTOCAST_DTYPES.get(self.config.precision)
        return torch.autocast(self.device.type, precision, enabled=precision is not None)

    def step_seed(self) -> int:
        """Of what the current step draws."""
        return int(np.random.SeedSequence((self.config.seed, self.step)).generate_state(1)[0])

    def _load(self) -> None:
        state = load_training_state(self.folder / STATE_FILE)
        self.part.load_state_dict(state["part"])
        self.average.model.load_state_dict(state["average"])
        self.average.num_updates = state["num_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        logger.info("going on from step %d of %s", self.step, self.folder)


def start_model(config: PartConfig, part: str, **sizes: Any) -> tuple[TAP, bool]:
    """The model of `init_from` with a part of given sizes, in float32; whether the part goes on.

    Args:
        config: of the run; its seed fills a part that starts from noise.
        part: name of the part in the model.
        sizes: fields of `TAPConfig` that say how large the part is. Where the model has others, or
            `config.fresh` is set, the part starts from noise.
    """
    source = load_model(config.init_from, device="cpu", dtype="float32")
    torch.manual_seed(config.seed)
    model = build_model(dataclasses.replace(source.config, **sizes))
    own, state = model.state_dict(), source.state_dict()
    is_alike = all(
        name in state and state[name].shape == own[name].shape
        for name in own
        if name.startswith(f"{part}.")
    )
    goes_on = is_alike and not config.fresh
    if not goes_on:
        state = {n: value for n, value in state.items() if not n.startswith(f"{part}.")}
        state |= {n: value for n, value in own.items() if n.startswith(f"{part}.")}
    model.load_state_dict(state)
    return model, goes_on


@torch.no_grad()
def copy_shared(network: nn.Module, source: nn.Module) -> None:
    """Copy the weights that two networks for views both have.

    Where one has more maps beside the pixels, these are the last; they say nothing at first.
    """
    theirs = source.state_dict()
    for name, value in network.state_dict().items():
        if name == "stem.0.weight":
            shared = min(value.shape[1], theirs[name].shape[1])
            value.zero_()[:, :shared] = theirs[name][:, :shared]
        elif name in theirs:
            value.copy_(theirs[name])


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


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of those values (R,) that count, 0 where none does."""
    return (values * where).sum() / where.sum().clamp(min=1)
