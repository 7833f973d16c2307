"""Beam search against the best of all captions and against lists of hypotheses."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.plain_captions import (
    END,
    LONGEST,
    START,
    VOCABULARY,
    assert_scores_are_those_of_teacher_forcing,
    make_decoder,
    make_semantic_tokens,
    plain_log_probs,
    plain_score,
    write,
)
from tokenize_anything import text_generation
from tokenize_anything.modeling import TextDecoder
from tokenize_anything.text_generation import GenerationConfig

SMALL_VOCABULARY, SHORT = 4, 4


def every_caption(words: list[int], longest: int) -> list[list[int]]:
    """All captions of at most `longest` tokens, the end token counted unless there is no room."""
    lengths = range(longest + 1)
    return [list(c) for length in lengths for c in itertools.product(words, repeat=length)]


@pytest.fixture(scope="module")
def all_captions() -> list[dict[tuple[int, ...], tuple[float, int]]]:
    """Per row, log-probability and number of tokens of every caption there can be."""
    decoder, semantic_tokens = make_decoder(SMALL_VOCABULARY), make_semantic_tokens(5)
    captions = every_caption([word for word in range(SMALL_VOCABULARY) if word != END], SHORT)
    return [
        {tuple(words): plain_score(decoder, token, words, SHORT) for words in captions}
        for token in semantic_tokens
    ]


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all_captions(
    length_penalty: float, all_captions: list[dict[tuple[int, ...], tuple[float, int]]]
) -> None:
    decoder, semantic_tokens = make_decoder(SMALL_VOCABULARY), make_semantic_tokens(5)
    config = GenerationConfig(
        num_beams=len(all_captions[0]), length_penalty=length_penalty, max_new_tokens=SHORT
    )
    text = write(decoder, semantic_tokens, config=config)
    for found, captions in zip(text.token_ids, all_captions, strict=True):
        ranks = {words: total / n**length_penalty for words, (total, n) in captions.items()}
        assert tuple(found) == max(ranks, key=lambda words: ranks[words])
    assert_scores_are_those_of_teacher_forcing(decoder, semantic_tokens, text, SHORT)


def plain_beam_search(
    decoder: TextDecoder,
    token: Tensor,
    num_beams: int,
    length_penalty: float,
    *,
    is_forgetful: bool = False,
) -> list[int]:
    """Beam search with lists of (tokens, log-probability); the end token is part of `tokens`."""

    def rank(beam: tuple[list[int], float]) -> float:
        return beam[1] / len(beam[0]) ** length_penalty

    beams: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[list[int], float]] = []
    for _ in range(LONGEST):
        candidates = [beam for beam in beams if END in beam[0]]
        for tokens, total in beams:
            if END in tokens:
                continue
            log_probs = plain_log_probs(decoder, token, tokens)
            candidates += [
                ([*tokens, word], total + float(log_probs[word])) for word in range(VOCABULARY)
            ]
        beams = sorted(candidates, key=rank, reverse=True)[:num_beams]
        finished += [beam for beam in beams if END in beam[0]]
    best, _ = max(beams if is_forgetful else beams + finished, key=rank)
    return [word for word in best if word != END]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3, 7])
def test_a_narrow_beam_equals_a_plain_beam_search(num_beams: int, length_penalty: float) -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(7)
    config = GenerationConfig(num_beams=num_beams, length_penalty=length_penalty)
    text = write(decoder, semantic_tokens, config=config)
    for token, words in zip(semantic_tokens, text.token_ids, strict=True):
        assert words == plain_beam_search(decoder, token, num_beams, length_penalty)
    assert_scores_are_those_of_teacher_forcing(decoder, semantic_tokens, text)


@pytest.mark.parametrize(("row", "num_beams", "length_penalty"), [(388, 2, 1.0), (395, 3, 0.0)])
def test_a_finished_caption_is_not_forgotten_when_its_place_is_taken(
    row: int, num_beams: int, length_penalty: float
) -> None:
    """Rare, hence found by search: the beams that push a finished caption out end up worse."""
    decoder, semantic_token = make_decoder(), make_semantic_tokens(400, seed=9)[row]
    config = GenerationConfig(num_beams=num_beams, length_penalty=length_penalty)
    [words] = write(decoder, semantic_token[None], config=config).token_ids
    plain = [
        plain_beam_search(decoder, semantic_token, num_beams, length_penalty, is_forgetful=forget)
        for forget in (False, True)
    ]
    assert words == plain[0]
    assert words != plain[1]  # or the case shows nothing


def test_one_beam_is_greedy() -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(29)
    plan = text_generation._Plan(GenerationConfig(), START, END, LONGEST, check_interval=1)
    with torch.inference_mode():
        token_ids, totals = text_generation._search_beams(decoder, semantic_tokens, plan)
    greedy = write(decoder, semantic_tokens)
    for row, total, words, score in zip(
        token_ids.tolist(), totals, greedy.token_ids, greedy.scores, strict=True
    ):
        assert row == words + [END] * (LONGEST - len(words))
        length = min(len(words) + 1, LONGEST)
        assert total.item() == pytest.approx(score.item() * length, abs=1e-4)


def test_beams_find_more_probable_captions_than_greedy() -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(29)
    greedy = write(decoder, semantic_tokens)
    beams = write(decoder, semantic_tokens, config=GenerationConfig(num_beams=7))
    assert (beams.scores >= greedy.scores - 1e-5).all()
    assert (beams.scores > greedy.scores + 1e-3).any()
