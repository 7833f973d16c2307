"""Text decoder: teacher forcing against a plain one, cached stepping, cache rows."""

from __future__ import annotations

import pytest
import torch

from tests.modeling import reference
from tests.tiny import randomize, tiny_config
from tokenize_anything.modeling.text_decoder import TextDecoder, apply_rotary

CONFIG = tiny_config()
ROWS = 3
MAX_TOKENS = CONFIG.max_text_length - 1


@pytest.fixture
def decoder() -> TextDecoder:
    return randomize(TextDecoder(CONFIG)).eval()


@pytest.fixture
def semantic_tokens() -> torch.Tensor:
    return torch.randn(ROWS, CONFIG.decoder_dim, generator=torch.Generator().manual_seed(1))


def make_token_ids(length: int, rows: int = ROWS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(CONFIG.vocabulary_size, (rows, length), generator=generator)


@pytest.mark.parametrize("length", [1, 5, MAX_TOKENS])
def test_decoder_equals_the_plain_one(
    decoder: TextDecoder, semantic_tokens: torch.Tensor, length: int
) -> None:
    token_ids = make_token_ids(length)
    logits = decoder(semantic_tokens, token_ids)
    assert logits.shape == (ROWS, length, CONFIG.vocabulary_size)
    weights = reference.weights_of(decoder)
    for row in range(ROWS):
        expected = reference.text_decoder(
            semantic_tokens[row].double(), token_ids[row], weights, CONFIG.text_depth
        )
        torch.testing.assert_close(logits[row].double(), expected, rtol=1e-4, atol=2e-5)


def test_rotary_turns_pairs_of_neighbouring_channels() -> None:
    x = torch.randn(2, 3, 5, 64)
    rotated = apply_rotary(x, torch.arange(5))
    for row in range(2):
        for head in range(3):
            expected = reference.rotate(x[row, head].double())
            torch.testing.assert_close(rotated[row, head].double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])  # position 0 does not turn
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 64)
    scores = [
        (apply_rotary(query, torch.tensor([3 + shift])) * apply_rotary(key, torch.tensor([shift])))
        .sum()
        .item()
        for shift in (0, 7, 31)
    ]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)


def test_a_later_word_does_not_change_earlier_logits(
    decoder: TextDecoder, semantic_tokens: torch.Tensor
) -> None:
    token_ids = make_token_ids(7)
    before = decoder(semantic_tokens, token_ids)
    token_ids[:, 4] = (token_ids[:, 4] + 1) % CONFIG.vocabulary_size
    after = decoder(semantic_tokens, token_ids)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(before[:, 4:], after[:, 4:]).all(dim=-1).any()


def test_stepping_with_a_cache_equals_the_full_forward(
    decoder: TextDecoder, semantic_tokens: torch.Tensor
) -> None:
    token_ids = make_token_ids(MAX_TOKENS)
    expected = decoder(semantic_tokens, token_ids)
    cache = decoder.start_cache(semantic_tokens)
    for position in range(MAX_TOKENS):
        assert cache.length == position + 1
        logits = decoder.next_logits(token_ids[:, position], cache)
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([2, 0]),
        torch.tensor([1, 1, 0, 2, 2]),
        torch.tensor([True, False, True]),
        torch.tensor([], dtype=torch.long),
    ],
)
def test_cache_rows_can_be_dropped_and_repeated(
    decoder: TextDecoder, semantic_tokens: torch.Tensor, rows: torch.Tensor
) -> None:
    token_ids = make_token_ids(5)
    cache = decoder.start_cache(semantic_tokens)
    for position in range(2):
        decoder.next_logits(token_ids[:, position], cache)
    selected = cache.select(rows)
    expected = decoder(semantic_tokens[rows], token_ids[rows])
    for position in range(2, 5):
        logits = decoder.next_logits(token_ids[rows][:, position], selected)
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-5, atol=1e-5)
    assert cache.length == 3  # the original stays where it was
    logits = decoder.next_logits(token_ids[:, 2], cache)
    full = decoder(semantic_tokens, token_ids)[:, 2]
    torch.testing.assert_close(logits, full, rtol=1e-5, atol=1e-5)


def test_captions_in_a_batch_do_not_mix(
    decoder: TextDecoder, semantic_tokens: torch.Tensor
) -> None:
    token_ids = make_token_ids(5)
    together = decoder(semantic_tokens, token_ids)
    for row in range(ROWS):
        alone = decoder(semantic_tokens[row : row + 1], token_ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_a_caption_longer_than_the_decoder_is_refused(
    decoder: TextDecoder, semantic_tokens: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="token_ids: expected at most 10 tokens, got 11"):
        decoder(semantic_tokens, make_token_ids(MAX_TOKENS + 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_float32_in_low_precision(dtype: torch.dtype) -> None:
    decoder = randomize(TextDecoder(CONFIG)).eval()
    semantic_tokens, token_ids = torch.randn(ROWS, CONFIG.decoder_dim), make_token_ids(5)
    exact = decoder(semantic_tokens, token_ids)
    decoder.to(dtype)
    logits = decoder(semantic_tokens.to(dtype), token_ids)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 0.08 * exact.abs().max()
    cache = decoder.start_cache(semantic_tokens.to(dtype))
    assert cache.keys.dtype == dtype
    assert decoder.next_logits(token_ids[:, 0], cache).dtype == torch.float32


def test_dropout_acts_in_training_only(semantic_tokens: torch.Tensor) -> None:
    decoder = randomize(TextDecoder(CONFIG, dropout=0.5))
    token_ids = make_token_ids(5)
    decoder.train()
    assert not torch.allclose(
        decoder(semantic_tokens, token_ids), decoder(semantic_tokens, token_ids)
    )
    decoder.eval()
    without = randomize(TextDecoder(CONFIG)).eval()
    assert torch.equal(decoder(semantic_tokens, token_ids), without(semantic_tokens, token_ids))


def test_input_and_output_words_are_not_tied(decoder: TextDecoder) -> None:
    assert decoder.word_embedding.weight is not decoder.word_proj.weight
    assert decoder.visual_proj.bias is None
    assert decoder.word_proj.bias is None
