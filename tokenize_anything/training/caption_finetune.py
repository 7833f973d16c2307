"""Stage 2: teach the text decoder to describe frozen semantic tokens (paper section 4.1)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_captions import captioned_regions, draw_texts
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.training.checkpointing import load_training_state, save_training_state
from tokenize_anything.training.config import CaptionConfig, save_config
from tokenize_anything.training.losses import caption_loss
from tokenize_anything.training.optimizer import build_optimizer, learning_rate
from tokenize_anything.training.semantic_token_cache import compute_semantic_tokens, save_tokens

TOKENS_FILE = "semantic_tokens.safetensors"
STATE_FILE = "training_state.pt"
MODEL_FILE = "model.safetensors"
LOG_FILE = "log.csv"


class CaptionTrainer:
    """One stage-2 run. The image side is frozen, so its tokens are computed once and kept.

    Region captions and whole-image captions are rarer than names; a batch draws a text in
    proportion to the square root of its number of words, so that sentences are not drowned.
    """

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config
        self.folder = Path(config.output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.records, texts = read_regions(config.data.annotation_files, config.data.image_folder)
        self.regions = captioned_regions(self.records, texts)
        self.tokenizer = TextTokenizer.from_file(config.text_tokenizer)
        self.model = load_model(
            config.init_from, device="cpu", dtype="float32", text_dropout=config.text_dropout
        )
        self.model.requires_grad_(False)
        self.model.text_decoder.requires_grad_(True)
        self.optimizer = build_optimizer(self.model.text_decoder, config.optimizer)
        words = np.array([np.mean([len(t.split()) for t in r.texts]) for r in self.regions])
        self.weights = np.sqrt(words) / np.sqrt(words).sum()
        self.step = 0

    def run(self) -> Path:
        """Train to the last step, going on from the state found. Returns the model's path."""
        tokens = self._tokens()
        if (self.folder / STATE_FILE).is_file():
            self._load()
        save_config(self.config, self.folder / "config.yaml")
        num_steps = self.config.num_steps
        with tqdm(total=num_steps, initial=self.step, desc="stage 2", mininterval=5) as progress:
            while self.step < num_steps:
                loss = self.train_step(tokens)
                progress.update()
                if self.step % self.config.log_every == 0:
                    self._log(loss)
                    progress.set_postfix(loss=f"{loss:.3f}")
                if self.step % self.config.save_every == 0 or self.step == num_steps:
                    self.save()
        return self.folder / MODEL_FILE

    def train_step(self, tokens: Tensor) -> float:
        """One update on a batch drawn from (seed, step) alone."""
        rng = np.random.default_rng((self.config.seed, self.step))
        picks = rng.choice(len(self.regions), self.config.batch_size, p=self.weights)
        captions = draw_texts(self.regions, picks, rng)
        token_ids, is_real = self.tokenizer.encode(
            captions, max_length=self.model.config.max_text_length - 1
        )
        lr = learning_rate(self.step, self.config.num_steps, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        decoder = self.model.text_decoder.train()
        ids, mask = torch.as_tensor(token_ids), torch.as_tensor(is_real)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            logits = decoder(tokens[torch.from_numpy(picks)], ids[:, :-1])
        loss = caption_loss(
            logits, ids[:, 1:], mask[:, 1:], label_smoothing=self.config.label_smoothing
        )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}: {captions[:3]}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def _tokens(self) -> Tensor:
        path = self.folder / TOKENS_FILE
        if path.is_file():
            tokens = load_file(path)["semantic_tokens"]
            if len(tokens) == len(self.regions):
                return tokens
        tokens = compute_semantic_tokens(self.model, self.records, self.regions)
        save_tokens(path, tokens)
        return tokens

    def save(self) -> None:
        """Write the state to go on from, and the whole model."""
        state = {
            "step": self.step,
            "text_decoder": self.model.text_decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        save_training_state(self.folder / STATE_FILE, state)
        save_model(self.model, self.folder / MODEL_FILE)

    def _load(self) -> None:
        state = load_training_state(self.folder / STATE_FILE)
        self.model.text_decoder.load_state_dict(state["text_decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        self.step = state["step"]

    def _log(self, loss: float) -> None:
        path = self.folder / LOG_FILE
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(("step", "loss"))
            writer.writerow((self.step, f"{loss:.6g}"))
