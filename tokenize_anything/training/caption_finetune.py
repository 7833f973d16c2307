"""Stage 2: teach the text decoder to describe frozen semantic tokens (paper section 4.1)."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.build import build_model, choose_device, load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_captions import captioned_regions, draw_texts
from tokenize_anything.modeling import TAP
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.training.checkpointing import (
    load_training_state,
    random_state,
    save_training_state,
    set_random_state,
)
from tokenize_anything.training.config import CaptionConfig, save_config
from tokenize_anything.training.csv_log import CsvLog
from tokenize_anything.training.initialize import initialize_from
from tokenize_anything.training.losses import caption_loss
from tokenize_anything.training.optimizer import (
    build_optimizer,
    descend,
    learning_rate,
    set_learning_rate,
)
from tokenize_anything.training.semantic_token_cache import (
    compute_semantic_tokens,
    load_tokens,
    save_tokens,
    tokens_key,
)

logger = logging.getLogger(__name__)

TOKENS_FILE = "semantic_tokens.safetensors"
STATE_FILE = "training_state.pt"
MODEL_FILE = "model.safetensors"
LOG_FILE = "log.csv"
CONFIG_FILE = "config.yaml"


class CaptionTrainer:
    """One stage-2 run. The image side is frozen, so its tokens are computed once and kept.

    Region captions and whole-image captions are rarer than names; a batch draws a text in
    proportion to the square root of its number of words, so that sentences are not drowned. The
    folder of the run is laid out as `Pretrainer`'s; `model.safetensors` is the whole model.

    Raises:
        FileNotFoundError: annotations, weights or tokenizer are missing.
        ValueError: they are damaged or do not fit each other, or no region has a text.
    """

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self.folder = Path(config.output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = CsvLog(self.folder / LOG_FILE, ("loss", "lr"))
        torch.manual_seed(config.seed)
        self.records, texts = read_regions(config.data.annotation_files, config.data.image_folder)
        self.regions = captioned_regions(self.records, texts)
        if not self.regions:
            raise ValueError(
                f"annotations: expected regions with names or captions in "
                f"{list(config.data.annotation_files)}, got none"
            )
        self.tokenizer = TextTokenizer.from_file(config.text_tokenizer)
        self.model = self._initial_model()
        self.model.requires_grad_(False)
        self.model.text_decoder.requires_grad_(True)
        self.optimizer = build_optimizer(self.model.text_decoder, config.optimizer)
        words = np.array([np.mean([len(t.split()) for t in r.texts]) for r in self.regions])
        self.weights = np.sqrt(words) / np.sqrt(words).sum()
        self.step = 0

    def run(self) -> Path:
        """Train to the last step, going on from the state found. Returns the model's path."""
        tokens = self.semantic_tokens()
        if (self.folder / STATE_FILE).is_file():
            self._load()
        self.log.rewind(self.step)
        save_config(self.config, self.folder / CONFIG_FILE)
        num_steps = self.config.num_steps
        with tqdm(total=num_steps, initial=self.step, desc="stage 2", mininterval=5) as progress:
            while self.step < num_steps:
                row = self.train_step(tokens)
                progress.update()
                if self.step % self.config.log_every == 0:
                    self.log.append(self.step, row)
                    progress.set_postfix(loss=f"{row['loss']:.3f}")
                if self.step % self.config.save_every == 0 or self.step == num_steps:
                    self.save()
        return self.folder / MODEL_FILE

    def train_step(self, tokens: Tensor) -> dict[str, float]:
        """One update on a batch drawn from (seed, step) alone.

        Args:
            tokens: (regions,C) semantic tokens of all regions.

        Returns:
            The values of the log's columns.

        Raises:
            FloatingPointError: loss or gradient is NaN or infinite; the message names the images.
        """
        rng = np.random.default_rng((self.config.seed, self.step))
        picks = rng.choice(len(self.regions), self.config.batch_size, p=self.weights)
        captions = draw_texts(self.regions, picks, rng)
        token_ids, is_real = self.tokenizer.encode(
            captions, max_length=self.model.config.max_text_length - 1
        )
        lr = learning_rate(self.step, self.config.num_steps, self.config.optimizer)
        set_learning_rate(self.optimizer, lr)
        decoder = self.model.text_decoder.train()
        ids = torch.from_numpy(token_ids).to(self.device)
        mask = torch.from_numpy(is_real).to(self.device)
        is_low = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_low):
            logits = decoder(tokens[torch.from_numpy(picks)].to(self.device), ids[:, :-1])
        loss = caption_loss(
            logits, ids[:, 1:], mask[:, 1:], label_smoothing=self.config.label_smoothing
        )
        descend(self.optimizer, loss, self.config.optimizer.max_grad_norm, self._place(picks))
        self.step += 1
        return {"loss": loss.item(), "lr": lr}

    def semantic_tokens(self) -> Tensor:
        """(regions,C) tokens of all regions: those kept in the folder, else computed and kept."""
        path, key = self.folder / TOKENS_FILE, tokens_key(self.model, self.records, self.regions)
        tokens = load_tokens(path, key)
        if tokens is None:
            tokens = compute_semantic_tokens(self.model, self.records, self.regions)
            save_tokens(path, tokens, key)
        return tokens

    def save(self) -> None:
        """Write the state to go on from, and the whole model."""
        state = {
            "step": self.step,
            "text_decoder": self.model.text_decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(self.device),
        }
        save_training_state(self.folder / STATE_FILE, state)
        save_model(self.model, self.folder / MODEL_FILE)

    def _load(self) -> None:
        state = load_training_state(self.folder / STATE_FILE)
        self.model.text_decoder.load_state_dict(state["text_decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"], self.device)
        self.step = state["step"]
        logger.info("going on from step %d of %s", self.step, self.folder)

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
