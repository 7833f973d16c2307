"""Caption loop against plain loops that run the whole decoder again at every step."""

from __future__ import annotations

import dataclasses
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

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
from tokenize_anything.text_generation import GeneratedText, GenerationConfig, generate

MODES = {
    "greedy": GenerationConfig(),
    "sampling": GenerationConfig(temperature=1.3, seed=5),
    "nucleus": GenerationConfig(temperature=0.9, top_p=0.8, seed=5),
    "beams": GenerationConfig(num_beams=3),
    "penalised beams": GenerationConfig(num_beams=4, length_penalty=0.3),
}
EVERY_MODE = pytest.mark.parametrize("config", MODES.values(), ids=MODES)


# --- one sequence per row ---


def test_greedy_equals_a_loop_over_full_forwards() -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(29)
    text = write(decoder, semantic_tokens)
    for token, words in zip(semantic_tokens, text.token_ids, strict=True):
        expected: list[int] = []
        while len(expected) < LONGEST:
            best = int(plain_log_probs(decoder, token, expected).argmax())
            if best == END:
                break
            expected.append(best)
        assert words == expected
    lengths = {len(words) for words in text.token_ids}
    assert {0, LONGEST} <= lengths  # the case is no use without short and cut captions
    assert len(lengths) >= 5


@pytest.mark.parametrize("longest", [1, 2, 5, None])
@EVERY_MODE
def test_scores_are_those_of_teacher_forcing(config: GenerationConfig, longest: int | None) -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(11)
    config = dataclasses.replace(config, max_new_tokens=longest)
    text = write(decoder, semantic_tokens, config=config)
    assert all(len(words) <= (longest or LONGEST) for words in text.token_ids)
    assert not any(END in words for words in text.token_ids)
    assert_scores_are_those_of_teacher_forcing(decoder, semantic_tokens, text, longest or LONGEST)


def test_the_longest_caption_fills_every_position_but_two() -> None:
    decoder, semantic_tokens = make_decoder(vocabulary=43), make_semantic_tokens(3)
    free = generate(decoder, semantic_tokens, start_id=0, end_id=2).token_ids
    never_said = min(set(range(43)) - {word for words in free for word in words} - {0, 2})
    text = generate(decoder, semantic_tokens, start_id=0, end_id=never_said)
    assert [len(words) for words in text.token_ids] == [decoder.max_text_length - 2] * 3


# --- rows are independent ---


def keep_all(*_: Any) -> None:
    """Never drop a row."""


def assert_same(actual: GeneratedText, expected: GeneratedText) -> None:
    assert actual.token_ids == expected.token_ids
    torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-5)


@EVERY_MODE
def test_dropping_finished_rows_changes_nothing(
    config: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(29)
    usual = write(decoder, semantic_tokens, config=config)
    drop = text_generation._rows_to_keep
    with monkeypatch.context() as patch:
        patch.setattr(text_generation, "_rows_to_keep", keep_all)
        assert_same(write(decoder, semantic_tokens, config=config), usual)
    with monkeypatch.context() as patch:
        patch.setattr(text_generation, "_DROP_FRACTION", 0.0)  # at once
        assert_same(write(decoder, semantic_tokens, config=config), usual)
    with monkeypatch.context() as patch:  # every third step, as on an accelerator every fourth

        def drop_rarely(is_done: Tensor, step: int, plan: Any) -> Tensor | None:
            return drop(is_done, step, dataclasses.replace(plan, check_interval=3))

        patch.setattr(text_generation, "_rows_to_keep", drop_rarely)
        assert_same(write(decoder, semantic_tokens, config=config), usual)


def test_finished_rows_are_dropped() -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(29)
    batches: list[int] = []
    step = decoder.next_logits

    def count_rows(token_ids: Tensor, cache: Any) -> Tensor:
        batches.append(len(token_ids))
        return step(token_ids, cache)

    decoder.next_logits = count_rows  # type: ignore[method-assign]
    lengths = [len(words) for words in write(decoder, semantic_tokens).token_ids]
    assert len(batches) == min(max(lengths) + 1, LONGEST)
    for index, rows in enumerate(batches):
        needed = sum(length >= index for length in lengths)
        assert needed <= rows <= needed / (1 - text_generation._DROP_FRACTION)


@pytest.mark.parametrize("max_batch", [1, 2, 3, 7, 28, 29, 1000])
@EVERY_MODE
def test_turns_change_nothing(config: GenerationConfig, max_batch: int) -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(29)
    usual = write(decoder, semantic_tokens, config=config)
    sizes: list[int] = []
    start = decoder.start_cache
    decoder.start_cache = lambda x: sizes.append(len(x)) or start(x)  # type: ignore
    assert_same(write(decoder, semantic_tokens, config=config, max_batch=max_batch), usual)
    assert max(sizes) <= max(max_batch, config.num_beams)
    assert sum(sizes) == 29 * config.num_beams


@EVERY_MODE
def test_a_row_does_not_depend_on_the_others(config: GenerationConfig) -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(7)
    usual = write(decoder, semantic_tokens, config=config)
    others = make_semantic_tokens(11, seed=2)
    others[3] = semantic_tokens[3]
    changed = write(decoder, others, config=config)
    assert changed.token_ids[3] == usual.token_ids[3]
    assert changed.scores[3].item() == pytest.approx(usual.scores[3].item(), abs=1e-5)
    assert changed.token_ids[:7] != usual.token_ids


@EVERY_MODE
def test_no_rows(config: GenerationConfig) -> None:
    text = write(make_decoder(), make_semantic_tokens(0), config=config)
    assert text.token_ids == []
    assert text.scores.shape == (0,)
    assert text.scores.dtype == torch.float32
    assert len(text) == 0


# --- sampling ---


def test_a_seed_fixes_the_draws_and_another_changes_them() -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(11)
    texts = []
    for seed in (5, 5, 6):
        torch.rand(3)  # the global generator plays no part
        config = GenerationConfig(temperature=1.0, seed=seed)
        texts.append(write(decoder, semantic_tokens, config=config).token_ids)
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_without_seed_the_global_generator_decides() -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(11)
    config = GenerationConfig(temperature=1.0)
    texts = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        texts.append(write(decoder, semantic_tokens, config=config).token_ids)
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_a_seed_leaves_the_global_generator_alone() -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(3)
    state = torch.get_rng_state()
    for config in MODES.values():
        write(decoder, semantic_tokens, config=config)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("temperature", "top_p"),
    [(1.0, 1.0), (2.5, 1.0), (0.4, 1.0), (2.5, 0.7), (1.0, 0.9), (1, 0.01)],
)
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    decoder, draws = make_decoder(), 4000
    semantic_token = make_semantic_tokens(1, seed=4)
    config = GenerationConfig(max_new_tokens=1, temperature=temperature, top_p=top_p, seed=0)
    text = write(decoder, semantic_token.expand(draws, -1), config=config, max_batch=draws)
    first = [words[0] if words else END for words in text.token_ids]
    probs = (plain_log_probs(decoder, semantic_token[0], []) / temperature).softmax(-1).tolist()
    kept: list[int] = []
    for word in sorted(range(VOCABULARY), key=lambda word: -probs[word]):
        if sum(probs[other] for other in kept) < top_p:
            kept.append(word)
    mass = sum(probs[word] for word in kept)
    for word in range(VOCABULARY):
        p = probs[word] / mass if word in kept else 0.0
        spread = math.sqrt(p * (1 - p) / draws)
        assert abs(first.count(word) / draws - p) <= 4 * spread


def test_later_words_follow_the_distribution_too() -> None:
    decoder, draws = make_decoder(), 4000
    semantic_token = make_semantic_tokens(1, seed=4)
    config = GenerationConfig(max_new_tokens=2, temperature=1.5, seed=0)
    text = write(decoder, semantic_token.expand(draws, -1), config=config, max_batch=draws)

    def next_probs(words: list[int]) -> Tensor:
        return (plain_log_probs(decoder, semantic_token[0], words) / 1.5).softmax(-1)

    for pair in itertools.product(set(range(VOCABULARY)) - {END}, repeat=2):
        p = float(next_probs([])[pair[0]] * next_probs([pair[0]])[pair[1]])
        share = text.token_ids.count(list(pair)) / draws
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"temperature": 1.0, "top_p": 1e-6}])
def test_sampling_becomes_greedy_at_its_limits(options: dict[str, float]) -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(11)
    greedy = write(decoder, semantic_tokens)
    config = GenerationConfig(seed=3, **options)  # type: ignore[arg-type]
    assert_same(write(decoder, semantic_tokens, config=config), greedy)


# --- border ---


@EVERY_MODE
def test_inputs_and_decoder_stay_as_they_were(config: GenerationConfig) -> None:
    decoder, semantic_tokens = make_decoder(), make_semantic_tokens(7)
    state = {name: value.clone() for name, value in decoder.state_dict().items()}
    copy = semantic_tokens.clone()
    write(decoder, semantic_tokens, config=config)
    assert torch.equal(semantic_tokens, copy)
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, state[name])


def test_scores_are_ordinary_tensors_without_gradient() -> None:
    decoder = make_decoder().requires_grad_(True)
    semantic_tokens = make_semantic_tokens(3).requires_grad_(True)
    scores = write(decoder, semantic_tokens).scores
    assert not scores.requires_grad
    assert not scores.is_inference()
    weight = torch.ones(3, requires_grad=True)
    (scores * weight).sum().backward()
    torch.testing.assert_close(weight.grad, scores)


def test_threads_share_one_decoder() -> None:
    decoder = make_decoder()
    batches = [make_semantic_tokens(rows, seed=rows) for rows in (3, 5, 7, 11)]
    expected = [write(decoder, batch).token_ids for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda batch: write(decoder, batch).token_ids, batches * 3))
    assert results == expected * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY_MODE
def test_low_precision(dtype: torch.dtype, config: GenerationConfig) -> None:
    decoder, semantic_tokens = make_decoder().to(dtype), make_semantic_tokens(5)
    text = write(decoder, semantic_tokens, config=config)  # float32 tokens are cast
    same = write(decoder, semantic_tokens.to(dtype), config=config)
    assert text.token_ids == same.token_ids
    assert text.scores.dtype == torch.float32
    decoder.float()
    for token, words, score in zip(semantic_tokens, text.token_ids, text.scores, strict=True):
        total, length = plain_score(decoder, token, words)
        assert score.item() == pytest.approx(total / length, abs=0.1)


def test_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"text_decoder: expected eval mode.*call .*\.eval\(\)"):
        write(make_decoder().train(), make_semantic_tokens(3))


@pytest.mark.parametrize(
    ("semantic_tokens", "options", "raises"),
    [
        (torch.zeros(3, 64), {}, nullcontext()),
        (torch.zeros(3, 63), {}, pytest.raises(ValueError, match=r"\(R,64\), got \(3, 63\)")),
        (torch.zeros(3, 4, 64), {}, pytest.raises(ValueError, match="choose one of the four")),
        (torch.zeros(64), {}, pytest.raises(ValueError, match=r"semantic_tokens: .* got \(64,\)")),
        (torch.zeros(3, 64), {"start_id": 5},
         pytest.raises(ValueError, match="start_id: expected a token id from 0 to 4, got 5")),
        (torch.zeros(3, 64), {"end_id": -1},
         pytest.raises(ValueError, match="end_id: expected a token id from 0 to 4, got -1")),
        (torch.zeros(3, 64), {"max_batch": 0},
         pytest.raises(ValueError, match="max_batch: expected a positive integer, got 0")),
        (torch.zeros(3, 64), {"config": GenerationConfig(max_new_tokens=LONGEST)}, nullcontext()),
        (torch.zeros(0, 64), {"config": GenerationConfig(max_new_tokens=LONGEST + 1)},
         pytest.raises(ValueError, match=r"max_new_tokens: expected at most 9, .* 11 positions")),
    ],
)  # fmt: skip
def test_generate_checks_its_input(
    semantic_tokens: Tensor, options: dict[str, Any], raises: AbstractContextManager[Any]
) -> None:
    ids = {"start_id": START, "end_id": END}
    with raises:
        generate(make_decoder(), semantic_tokens, **(ids | options))


def refused(match: str) -> AbstractContextManager[Any]:
    return pytest.raises(ValueError, match=match)


@pytest.mark.parametrize(
    ("options", "raises"),
    [
        ({}, nullcontext()),
        ({"max_new_tokens": 0}, refused("max_new_tokens: expected a positive integer, got 0")),
        ({"max_new_tokens": 2.0}, refused("max_new_tokens: expected a positive integer, got 2.0")),
        ({"num_beams": 0}, refused("num_beams: expected a positive integer, got 0")),
        ({"num_beams": True}, refused("num_beams: expected a positive integer, got True")),
        ({"temperature": -0.1}, refused("temperature: expected 0 or a positive number, got -0.1")),
        ({"temperature": math.nan}, refused("temperature: expected 0 or a .* got nan")),
        ({"temperature": math.inf}, refused("temperature: expected 0 or a .* got inf")),
        ({"temperature": 1.0, "top_p": 0.0}, refused("top_p: expected a probability .* got 0.0")),
        ({"temperature": 1.0, "top_p": 1.1}, refused("top_p: expected a probability .* got 1.1")),
        ({"top_p": 0.9}, refused("top_p: 0.9 has no effect without sampling; set temperature")),
        ({"num_beams": 2, "temperature": 1.0}, refused("num_beams: beam search does not sample")),
        ({"length_penalty": 0.5}, refused("length_penalty: 0.5 has no effect on a single beam")),
        ({"num_beams": 2, "length_penalty": -1.0}, refused("length_penalty: expected 0 or a pos")),
        ({"num_beams": 2, "length_penalty": math.nan}, refused("length_penalty: .* got nan")),
        ({"num_beams": 2, "length_penalty": 0.0}, nullcontext()),
        ({"temperature": 1.0, "seed": -1}, refused("seed: expected None or an integer from 0")),
        (
            {"temperature": 1.0, "seed": 0.5},
            refused("seed: expected None or an integer .* got 0.5"),
        ),
    ],
)
def test_generation_config_is_checked(
    options: dict[str, Any], raises: AbstractContextManager[Any]
) -> None:
    with raises:
        GenerationConfig(**options)
