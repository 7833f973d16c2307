"""Captions the slow way, one full forward of the decoder per word, and a decoder to try it on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import randomize, tiny_config
from tokenize_anything.modeling import TextDecoder
from tokenize_anything.text_generation import GeneratedText, generate

VOCABULARY, START, END = 5, 3, 1
LONGEST = 9


def make_decoder(vocabulary: int = VOCABULARY) -> TextDecoder:
    """Few words and large logits, so that captions of every length occur."""
    config = tiny_config(vocabulary_size=vocabulary, max_text_length=LONGEST + 2, text_depth=2)
    decoder = randomize(TextDecoder(config)).eval().requires_grad_(False)
    decoder.word_proj.weight.mul_(2.0)
    return decoder


def make_semantic_tokens(rows: int, seed: int = 1) -> Tensor:
    return 2.0 * torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))


def write(decoder: TextDecoder, semantic_tokens: Tensor, **options: Any) -> GeneratedText:
    return generate(decoder, semantic_tokens, start_id=START, end_id=END, **options)


def plain_log_probs(decoder: TextDecoder, semantic_token: Tensor, words: list[int]) -> Tensor:
    """Log-probabilities (V,) of the word after `words`, from one full forward."""
    logits = decoder(semantic_token[None], torch.tensor([[START, *words]]))
    return logits[0, -1].double().log_softmax(-1)


def plain_score(
    decoder: TextDecoder, semantic_token: Tensor, words: list[int], longest: int = LONGEST
) -> tuple[float, int]:
    """Log-probability of a caption by teacher forcing, and the number of tokens it has."""
    tokens = words if len(words) == longest else [*words, END]
    logits = decoder(semantic_token[None], torch.tensor([[START, *tokens[:-1]]]))
    log_probs = logits[0].double().log_softmax(-1)
    return sum(float(log_probs[i, token]) for i, token in enumerate(tokens)), len(tokens)


def assert_scores_are_those_of_teacher_forcing(
    decoder: TextDecoder, semantic_tokens: Tensor, text: GeneratedText, longest: int = LONGEST
) -> None:
    assert text.scores.shape == (len(semantic_tokens),)
    assert text.scores.dtype == torch.float32
    for token, words, score in zip(semantic_tokens, text.token_ids, text.scores, strict=True):
        total, length = plain_score(decoder, token, words, longest)
        assert score.item() == pytest.approx(total / length, abs=1e-5)
