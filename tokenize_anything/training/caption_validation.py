"""Captions of held-out regions, scored while stage 2 trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.data.region_captions import CaptionedRegion, captioned_regions
from tokenize_anything.modeling import TAP
from tokenize_anything.text_generation import generate
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.training.caption_config import CaptionValidationConfig, RegionTokenConfig
from tokenize_anything.training.caption_tokenizer import drop_long_texts
from tokenize_anything.training.losses import caption_loss
from tokenize_anything.training.region_tokens import RegionTokens
from tokenize_anything.training.semantic_token_cache import fill_cache, read_cache
from tokenize_anything.training.training_data import open_data

# n captions and their n lists of references to a score, higher is better: CIDEr, for instance
ScoreCaptions = Callable[[Sequence[str], Sequence[Sequence[str]]], float]

LOSS_BATCH = 64


class CaptionValidator:
    """Describes regions from their boxes and compares with what people wrote.

    Args:
        model: its first stage makes the tokens, once; its text decoder is looked at again and
            again.
        tokenizer: of the text decoder.
        config: which regions.
        tokens: says which token, as in training; only the box is used.
        folder: where the tokens are kept.
        score: compares captions with references; without it the loss is all that is said.

    Raises:
        ValueError: no region with a text.
    """

    def __init__(
        self,
        model: TAP,
        tokenizer: TextTokenizer,
        config: CaptionValidationConfig,
        *,
        tokens: RegionTokenConfig,
        folder: str | Path,
        score: ScoreCaptions | None = None,
    ) -> None:
        self.model, self.tokenizer, self.score = model, tokenizer, score
        self.max_length = model.config.max_text_length - 1
        files = config.data.annotation_files
        data = open_data(config.data, folder)
        described = captioned_regions(data.records, data.texts)
        regions, _ = drop_long_texts(described, tokenizer, self.max_length)
        if not regions:
            raise ValueError(
                f"validation.data: expected regions with names or captions in {list(files)}, "
                f"got none"
            )
        self.regions = spread_evenly(regions, config.max_regions)
        by_box = RegionTokenConfig(token=tokens.token, point_views=0)
        self.source = RegionTokens(model, data.records, self.regions, by_box, seed=0)
        self.folder = Path(folder)
        self.kept: Tensor | None = None

    def run(self) -> dict[str, float]:
        """Mean loss of the first text of each region, and the score, NaN without a scorer."""
        if self.kept is None:
            fill_cache(self.source, self.folder)
            self.kept = read_cache(self.source, self.folder).tokens[:, 0]
        tokens = self.kept
        decoder = self.model.text_decoder.eval()
        loss = float(np.mean([loss.item() for loss in self._losses(tokens)]))
        if self.score is None:
            return {"loss": loss, "cider": float("nan")}
        with torch.no_grad():
            text = generate(
                decoder, tokens.to(self.model.device), start_id=self.tokenizer.start_id,
                end_id=self.tokenizer.end_id,
            )  # fmt: skip
        captions = self.tokenizer.decode(text.token_ids)
        return {
            "loss": loss,
            "cider": self.score(captions, [region.texts for region in self.regions]),
        }

    @torch.no_grad()
    def _losses(self, tokens: Tensor) -> Iterator[Tensor]:
        """The loss of each region, one by one in batches."""
        for start in range(0, len(self.regions), LOSS_BATCH):
            part = self.regions[start : start + LOSS_BATCH]
            ids, is_real = self.tokenizer.encode([region.texts[0] for region in part])
            token_ids = torch.from_numpy(ids).to(self.model.device)
            mask = torch.from_numpy(is_real).to(self.model.device)
            visual = tokens[start : start + LOSS_BATCH].to(self.model.device)
            logits = self.model.text_decoder(visual, token_ids[:, :-1])
            for row in range(len(part)):
                each = slice(row, row + 1)
                yield caption_loss(logits[each], token_ids[each, 1:], mask[each, 1:])


def spread_evenly(regions: Sequence[CaptionedRegion], count: int) -> list[CaptionedRegion]:
    """At most `count` of the regions, the first and the last among them."""
    if len(regions) <= count:
        return list(regions)
    return [regions[row] for row in np.linspace(0, len(regions) - 1, count).round().astype(int)]
