"""Stage 2: teach the text decoder to describe frozen region tokens (paper section 4.1)."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from tokenize_anything.build import build_model, load_model, locate_checkpoint
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import find_companions
from tokenize_anything.data.epoch_sampler import BatchShare
from tokenize_anything.data.region_captions import captioned_regions, draw_texts
from tokenize_anything.modeling import TAP
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_tokenizer import drop_long_texts
from tokenize_anything.training.caption_validation import CaptionValidator, ScoreCaptions
from tokenize_anything.training.checkpointing import load_training_state, save_training_state
from tokenize_anything.training.concept_captions import ConceptCaptions
from tokenize_anything.training.config import save_config
from tokenize_anything.training.csv_log import CsvLog
from tokenize_anything.training.distributed import Processes, wrap_data_parallel
from tokenize_anything.training.gradient_step import GradientStep
from tokenize_anything.training.initialize import initialize_from
from tokenize_anything.training.losses import caption_loss
from tokenize_anything.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from tokenize_anything.training.region_objective import AUTOCAST_DTYPES
from tokenize_anything.training.region_tokens import RegionTokens, TokenSource
from tokenize_anything.training.semantic_token_cache import fill_cache, read_cache
from tokenize_anything.training.step_draws import seed_dropout
from tokenize_anything.training.training_data import open_data

logger = logging.getLogger(__name__)

TOKENS_FOLDER = "tokens"
VALIDATION_TOKENS_FOLDER = "validation_tokens"
STATE_FILE = "training_state.pt"
MODEL_FILE = "model.safetensors"
BEST_FILE = "best.safetensors"
LOG_FILE = "log.csv"
VALIDATION_FILE = "validation.csv"
CONFIG_FILE = "config.yaml"


class CaptionTrainer:
    """One stage-2 run. The image side is frozen, so its tokens can be computed once and kept.

    Region captions and whole-image captions are rarer than names; a batch draws a text in
    proportion to the square root of its number of words, so that sentences are not drowned. Texts
    that the decoder has no room for are left out; the log says how many, and which.

    The folder of the run is laid out as `Pretrainer`'s; `model.safetensors` is the whole model.
    With validation there are `validation.csv` and `best.safetensors` too: the model with the best
    score, or the lowest loss where no scorer is given. Under `torchrun` the processes share each
    batch, and the first of them validates and writes.

    Args:
        config: of the run.
        score: compares captions with references during validation, for instance CIDEr.

    Raises:
        FileNotFoundError: annotations, weights or tokenizer are missing.
        ValueError: they are damaged or do not fit each other, or no region has a usable text.
    """

    def __init__(self, config: CaptionConfig, score: ScoreCaptions | None = None) -> None:
        self.config = config
        self.processes = Processes.join(config.device)
        self.device = self.processes.device
        self.share = BatchShare(config.batch_size, self.processes.rank, self.processes.world)
        self.folder = Path(config.output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = CsvLog(self.folder / LOG_FILE, ("loss", "lr"))
        self.validation_log = CsvLog(self.folder / VALIDATION_FILE, ("loss", "cider"))
        torch.manual_seed(config.seed)
        self.tokenizer = TextTokenizer.from_file(config.text_tokenizer)
        self.model = self._initial_model()
        self.model.requires_grad_(False)
        self.model.text_decoder.requires_grad_(True)
        self.max_length = self.model.config.max_text_length - 1
        data = open_data(config.data, self.folder)
        self.records = data.records
        self.regions, self.long_texts = drop_long_texts(
            captioned_regions(data.records, data.texts), self.tokenizer, self.max_length
        )
        self._report_texts()
        self.source = RegionTokens(
            self.model, self.records, self.regions, config.tokens, config.seed
        )
        self.mixtures = self._make_mixtures() if config.concept_share else None
        self.validator = self._make_validator(score)
        self.decoder: nn.Module = self.model.text_decoder
        if self.processes.world > 1:
            self.decoder = wrap_data_parallel(self.decoder, self.processes)
        self.optimizer = build_optimizer(self.model.text_decoder, config.optimizer)
        self.gradients = GradientStep(
            self.optimizer, config.optimizer.max_grad_norm, self.device,
            is_float16=config.precision == "float16",
        )  # fmt: skip
        words = np.array([np.mean([len(t.split()) for t in r.texts]) for r in self.regions])
        self.weights = np.sqrt(words) / np.sqrt(words).sum()
        self.step, self.best = 0, -math.inf

    def run(self) -> Path:
        """Train to the last step, going on from the state found. Returns the model's path."""
        tokens = self.token_source()
        if (self.folder / STATE_FILE).is_file():
            self._load()
        if self.processes.is_first:
            self.log.rewind(self.step)
            if self.validator is not None:
                self.validation_log.rewind(self.step)
            save_config(self.config, self.folder / CONFIG_FILE)
        last = self.config.num_steps
        with tqdm(
            total=last, initial=self.step, desc="stage 2", mininterval=5,
            disable=not self.processes.is_first,
        ) as progress:  # fmt: skip
            while self.step < last:
                row = self.train_step(tokens)
                progress.update()
                if self.processes.is_first:
                    progress.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
                    self._write(row)
        self.processes.wait()
        return self.folder / MODEL_FILE

    def token_source(self) -> TokenSource:
        """Tokens of all regions: kept in the folder, or computed when a step asks for them."""
        if not self.config.tokens.cached:
            return self.source
        folder, processes = self.folder / TOKENS_FOLDER, self.processes
        fill_cache(self.source, folder, rank=processes.rank, world=processes.world)
        processes.wait()
        return read_cache(self.source, folder)

    def train_step(self, tokens: TokenSource) -> dict[str, float]:
        """One update on a batch drawn from (seed, step) alone.

        Args:
            tokens: from `token_source`.

        Returns:
            The values of the log's columns.

        Raises:
            FloatingPointError: loss or gradient is NaN or infinite; the message names the images.
        """
        config = self.config
        seed_dropout(config.seed, self.step, self.processes.rank)
        rng = np.random.default_rng((config.seed, self.step))
        picks = rng.choice(len(self.regions), config.batch_size, p=self.weights)
        views = self._draw_views(rng)
        texts = draw_texts(self.regions, picks, rng)
        count = round(config.concept_share * len(picks))
        if count:
            assert self.mixtures is not None
            mixed = self.mixtures.mix(tokens, picks[:count], views[:count], rng)
            texts[:count] = self.mixtures.describe(mixed)
        token_ids, is_real = self.tokenizer.encode(texts)
        lr = learning_rate(self.step, config.num_steps, config.optimizer)
        set_learning_rate(self.optimizer, lr)
        mine = np.array(self.share.positions)
        visual = tokens.select(picks[mine], views[mine])
        if count:
            visual[mine < count] = mixed[mine[mine < count]]
        loss = self._loss(visual.to(self.device), token_ids[mine], is_real[mine])
        # The processes average their gradients; each counts as much as it has words.
        loss = loss * (is_real[mine, 1:].sum() * self.processes.world / is_real[:, 1:].sum())
        where = self._place(picks[mine])
        self.gradients.add(loss, where)
        self.gradients.update(where)
        self.step += 1
        return {"loss": self.processes.sum(loss).item() / self.processes.world, "lr": lr}

    def validate(self, validator: CaptionValidator) -> dict[str, float]:
        """Score captions of held-out regions, log them, and keep the model if it is the best."""
        scores = validator.run()
        self.validation_log.append(self.step, scores)
        merit = -scores["loss"] if math.isnan(scores["cider"]) else scores["cider"]
        if merit > self.best:
            self.best = merit
            save_model(self.model, self.folder / BEST_FILE)
        return scores

    def save(self) -> None:
        """Write the state to go on from, and the whole model."""
        state = {
            "step": self.step,
            "best": self.best,
            "text_decoder": self.model.text_decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": self.gradients.state_dict(),
        }
        save_training_state(self.folder / STATE_FILE, state)
        save_model(self.model, self.folder / MODEL_FILE)

    def _load(self) -> None:
        state = load_training_state(self.folder / STATE_FILE)
        self.model.text_decoder.load_state_dict(state["text_decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.gradients.load_state_dict(state["gradients"])
        self.step, self.best = state["step"], state["best"]
        logger.info("going on from step %d of %s", self.step, self.folder)

    def _loss(
        self, visual: Tensor, token_ids: NDArray[np.int64], is_real: NDArray[np.bool_]
    ) -> Tensor:
        """Mean next-token loss of texts (n,L) behind their tokens (n,C)."""
        ids = torch.from_numpy(token_ids).to(self.device)
        mask = torch.from_numpy(is_real).to(self.device)
        low = AUTOCAST_DTYPES.get(self.config.precision)
        self.decoder.train()
        with torch.autocast(self.device.type, low, enabled=low is not None):
            logits = self.decoder(visual, ids[:, :-1])
        smoothing = self.config.label_smoothing
        return caption_loss(logits, ids[:, 1:], mask[:, 1:], label_smoothing=smoothing)

    def _write(self, row: dict[str, float]) -> None:
        """Log, validate and save after a step, where each is due."""
        is_last = self.step == self.config.num_steps
        if self.step % self.config.log_every == 0:
            self.log.append(self.step, row)
        if self.validator is not None and (is_last or self._validates_now()):
            self.validate(self.validator)
        if is_last or self.step % self.config.save_every == 0:
            self.save()

    def _draw_views(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Which prompt each region of a batch is known by, (batch_size,)."""
        config, size = self.config.tokens, self.config.batch_size
        if not config.point_views:
            return np.zeros(size, dtype=np.int64)
        views = rng.integers(1, 1 + config.point_views, size)
        return np.where(rng.random(size) < config.box_probability, 0, views)

    def _validates_now(self) -> bool:
        config = self.config.validation
        return config is not None and self.step % config.every == 0

    def _make_mixtures(self) -> ConceptCaptions:
        """Names for mixtures of tokens, by the concepts that the model came with."""
        source, pieces = self.config.init_from, self.model.config.vocabulary_size
        tokenizer = self.config.text_tokenizer
        concepts = find_companions(source, locate_checkpoint(source), tokenizer, pieces).concepts
        if concepts is None:
            raise ValueError(
                f"concept_share: expected a model with concepts, got {source} without; set it to 0"
            )
        return ConceptCaptions(self.model, concepts)

    def _make_validator(self, score: ScoreCaptions | None) -> CaptionValidator | None:
        if self.config.validation is None:
            return None
        return CaptionValidator(
            self.model, self.tokenizer, self.config.validation, tokens=self.config.tokens,
            folder=self.folder / VALIDATION_TOKENS_FOLDER, score=score,
        )  # fmt: skip

    def _report_texts(self) -> None:
        files = list(self.config.data.annotation_files)
        if self.long_texts:
            shown = [f"{text[:60]}..." for text in self.long_texts[:3]]
            logger.warning(
                "left out %d texts of more than %d tokens, the first are %s",
                len(self.long_texts), self.max_length, shown,
            )  # fmt: skip
        if not self.regions:
            more = f"; {len(self.long_texts)} texts are too long" if self.long_texts else ""
            raise ValueError(
                f"annotations: expected regions with names or captions in {files}, got none{more}"
            )

    def _initial_model(self) -> TAP:
        config, pieces = self.config, self.tokenizer.vocabulary_size
        model = load_model(
            config.init_from, device=self.device, dtype="float32", text_dropout=config.text_dropout
        )
        if config.image_size is not None:
            model = self._resized(model, config.image_size)
        if config.fresh_text_decoder:
            sizes = dataclasses.replace(model.config, vocabulary_size=pieces)
            fresh = build_model(sizes, device=self.device, text_dropout=config.text_dropout)
            model.text_decoder, model.config = fresh.text_decoder, sizes
        elif pieces != model.config.vocabulary_size:
            raise ValueError(
                f"text_tokenizer: expected {model.config.vocabulary_size} pieces, as the text "
                f"decoder of {config.init_from} has, got {pieces} in {config.text_tokenizer}; "
                f"choose its own tokenizer, or set fresh_text_decoder to start with a new decoder"
            )
        return model

    def _resized(self, model: TAP, image_size: int) -> TAP:
        sizes = dataclasses.replace(model.config, image_size=image_size)
        resized = build_model(sizes, device=self.device, text_dropout=self.config.text_dropout)
        initialize_from(resized, self.config.init_from)
        return resized

    def _place(self, picks: np.ndarray) -> str:
        """Step and images, for the error of a broken loss."""
        names = sorted({self.records[self.regions[pick].image_index].path.name for pick in picks})
        return f"step {self.step}, images {names}"
