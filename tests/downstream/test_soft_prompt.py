"""A region token in front of the words of a real language model, made from its config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenize_anything.downstream.soft_prompt import IGNORED_LABEL, SoftPrompt
from tokenize_anything.torchvision_operators import ensure_torchvision_operators

C, E, P, R, L, V = 13, 24, 3, 2, 5, 43


@pytest.fixture
def language_model() -> Any:
    transformers = pytest.importorskip("transformers", reason="needs tokenize-anything[lm]")
    ensure_torchvision_operators()
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=E, vocab_size=V, n_positions=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture
def prompt() -> SoftPrompt:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SoftPrompt(C, E, P)


def draw(seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (R,C), word ids (R,L), and a mask that pads the second text by two."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (R, L), generator=generator)
    mask = torch.ones(R, L, dtype=torch.int64)
    mask[1, 3:] = 0
    return 9 * torch.randn(R, C, generator=generator), ids, mask


def test_vectors_are_the_projection_of_each_token(prompt: SoftPrompt) -> None:
    tokens, _, _ = draw()
    found = prompt(tokens)
    assert found.shape == (R, P, E)
    for row in range(R):
        mean, deviation = tokens[row].mean(), tokens[row].std(correction=0)
        hidden = prompt.hidden.weight @ ((tokens[row] - mean) / deviation) + prompt.hidden.bias
        wanted = prompt.output.weight @ F.gelu(hidden) + prompt.output.bias
        for place in range(P):
            part = wanted[place * E : (place + 1) * E]
            torch.testing.assert_close(found[row, place], part, atol=1e-5, rtol=1e-4)


def test_vectors_come_before_the_words(prompt: SoftPrompt, language_model: Any) -> None:
    tokens, ids, mask = draw()
    words = language_model.get_input_embeddings()
    text = prompt.build_inputs(tokens, words, ids, mask)
    assert text.inputs_embeds.shape == (R, P + L, E)
    torch.testing.assert_close(text.inputs_embeds[:, :P], prompt(tokens))
    torch.testing.assert_close(text.inputs_embeds[:, P:], words(ids))
    assert text.attention_mask.tolist() == [[1] * 8, [1] * 6 + [0] * 2]
    first, second = ids.tolist()
    none = [IGNORED_LABEL] * P
    assert text.labels.tolist() == [none + first, none + second[:3] + [IGNORED_LABEL] * 2]
    whole = prompt.build_inputs(tokens, words, ids)
    assert whole.attention_mask.tolist() == [[1] * 8] * 2
    assert whole.labels.tolist() == [none + first, none + second]


def test_the_loss_is_that_of_the_words_and_reaches_tokens_and_projection(
    prompt: SoftPrompt, language_model: Any
) -> None:
    tokens, ids, mask = draw()
    tokens.requires_grad_()
    language_model.requires_grad_(False)
    text = prompt.build_inputs(tokens, language_model.get_input_embeddings(), ids, mask)
    answer = language_model(
        inputs_embeds=text.inputs_embeds, attention_mask=text.attention_mask, labels=text.labels
    )
    assert answer.logits.shape == (R, P + L, V)
    losses = [
        F.cross_entropy(answer.logits[row, P - 1 + place], ids[row, place])
        for row, count in enumerate([5, 3])
        for place in range(count)  # the last prompt vector says the first word
    ]
    torch.testing.assert_close(answer.loss, torch.stack(losses).mean())
    answer.loss.backward()
    for name, value in [("tokens", tokens), *prompt.named_parameters()]:
        assert value.grad is not None and value.grad.abs().max() > 0, name
    assert all(value.grad is None for value in language_model.parameters())


def test_a_frozen_model_learns_to_say_what_the_token_means(
    prompt: SoftPrompt, language_model: Any
) -> None:
    tokens, ids, _ = draw()
    language_model.requires_grad_(False)
    optimizer = torch.optim.Adam(prompt.parameters(), 0.02)
    for _ in range(60):
        text = prompt.build_inputs(tokens, language_model.get_input_embeddings(), ids[:, :1])
        logits = language_model(inputs_embeds=text.inputs_embeds).logits[:, P - 1]
        optimizer.zero_grad()
        F.cross_entropy(logits, ids[:, 0]).backward()
        optimizer.step()
    assert logits.argmax(dim=1).tolist() == ids[:, 0].tolist()


def test_padding_changes_nothing(prompt: SoftPrompt, language_model: Any) -> None:
    tokens, ids, mask = draw()
    words = language_model.get_input_embeddings()
    text = prompt.build_inputs(tokens, words, ids, mask)
    alone = prompt.build_inputs(tokens[1:], words, ids[1:, :3])
    with torch.no_grad():
        logits = language_model(
            inputs_embeds=text.inputs_embeds, attention_mask=text.attention_mask
        ).logits
        wanted = language_model(inputs_embeds=alone.inputs_embeds).logits
    torch.testing.assert_close(logits[1:, : P + 3], wanted, atol=1e-5, rtol=1e-4)


def test_words_decide_the_dtype(prompt: SoftPrompt) -> None:
    tokens, ids, _ = draw()
    words = torch.nn.Embedding(V, E, dtype=torch.bfloat16)
    assert prompt.build_inputs(tokens, words, ids).inputs_embeds.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["token_dim", "embedding_dim", "num_vectors"])
def test_sizes(name: str) -> None:
    sizes = {"token_dim": C, "embedding_dim": E, "num_vectors": P, name: 0}
    with pytest.raises(ValueError, match=rf"{name}: expected at least 1, got 0"):
        SoftPrompt(**sizes)


@pytest.mark.parametrize(
    "tokens, ids, mask, width, message",
    [
        ((R, C + 1), (R, L), None, E, r"tokens: expected \(R,13\), got \(2, 14\)"),
        ((C,), (C, L), None, E, r"tokens: expected \(R,13\), got \(13,\)"),
        ((R, C), (R + 1, L), None, E, r"token_ids: expected \(2,L\), a text for each token, got"),
        ((R, C), (L,), None, E, r"token_ids: expected \(2,L\), a text for each token, got \(5,\)"),
        ((R, C), (R, L), (R, P + L), E, r"attention_mask: expected \(2, 5\), as token_ids, got"),
        ((R, C), (R, L), None, E + 1, r"word_embeddings: expected width 24, got 25"),
    ],
)
def test_shapes_that_do_not_fit(
    prompt: SoftPrompt, tokens: Any, ids: Any, mask: Any, width: int, message: str
) -> None:
    words = torch.nn.Embedding(V, width)
    is_word = None if mask is None else torch.ones(mask)
    with pytest.raises(ValueError, match=message):
        prompt.build_inputs(torch.ones(tokens), words, torch.zeros(ids, dtype=torch.long), is_word)
