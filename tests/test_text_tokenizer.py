"""Text tokenizer: layout of encoded rows, round trips, bad files."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import TINY_TEXTS, tiny_tokenizer, tiny_tokenizer_model
from tokenize_anything.text_tokenizer import TextTokenizer

BOS, EOS, PAD = 1, 2, 42


def train_model(**options: Any) -> bytes:
    """A model with pieces of the caller's choice, straight from the trainer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TINY_TEXTS), model_writer=model, vocab_size=41,
        hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


def words_of(text: str) -> list[int]:
    """Pieces of a text by the plain SentencePiece call."""
    return sentencepiece.SentencePieceProcessor(model_proto=tiny_tokenizer_model()).encode(text)


def test_special_ids_of_a_trained_model() -> None:
    tokenizer = tiny_tokenizer()
    assert (tokenizer.start_id, tokenizer.end_id) == (BOS, EOS)
    assert tokenizer.vocabulary_size == 43
    assert tokenizer.padding_id == PAD  # no padding piece: the last one stands in
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    assert [processor.id_to_piece(index) for index in range(3)] == ["<unk>", "<s>", "</s>"]
    assert (processor.unk_id(), processor.pad_id()) == (0, -1)


def test_a_padding_piece_is_used_where_the_model_has_one() -> None:
    tokenizer = TextTokenizer.from_bytes(train_model(pad_id=3, bos_id=5, eos_id=4))
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.padding_id) == (5, 4, 3)
    token_ids, is_real = tokenizer.encode(["", "cat"])
    assert token_ids[0, :2].tolist() == [5, 4]
    assert set(token_ids[0, 2:].tolist()) == {3}
    assert is_real.sum(axis=1).tolist()[0] == 2


def test_encode_lays_out_start_words_end_padding() -> None:
    texts = ["a red car", "two small dogs run", ""]
    token_ids, is_real = tiny_tokenizer().encode(texts)
    rows = [[BOS, *words_of(text), EOS] for text in texts]
    longest = max(map(len, rows))
    assert token_ids.shape == is_real.shape == (3, longest)
    assert (token_ids.dtype, is_real.dtype) == (np.int64, np.bool_)
    for row, ids, real in zip(rows, token_ids, is_real, strict=True):
        assert ids.tolist() == row + [PAD] * (longest - len(row))
        assert real.tolist() == [True] * len(row) + [False] * (longest - len(row))


@pytest.mark.parametrize("max_length", [2, 3, 5, 8, 100])
def test_truncation_replaces_the_last_kept_token_by_the_end(max_length: int) -> None:
    texts = ["two small dogs run over green grass", "a cat"]
    token_ids, is_real = tiny_tokenizer().encode(texts, max_length)
    for text, ids, real in zip(texts, token_ids, is_real, strict=True):
        whole = [BOS, *words_of(text), EOS]
        expected = whole[:max_length]
        expected[-1] = EOS
        assert ids[real].tolist() == expected
    assert token_ids.shape[1] <= max_length


def test_a_real_last_piece_is_told_from_padding_by_the_mask() -> None:
    tokenizer = tiny_tokenizer()
    text = tokenizer.decode([[PAD]])[0]
    token_ids, is_real = tokenizer.encode([text, "two small dogs run over green grass"])
    assert PAD in token_ids[0][is_real[0]]


def test_no_texts() -> None:
    token_ids, is_real = tiny_tokenizer().encode([])
    assert token_ids.shape == is_real.shape == (0, 0)
    assert tiny_tokenizer().decode([]) == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([BOS, "a cat", EOS], "a cat"),
        (["a cat", EOS], "a cat"),  # no start token
        (["a cat"], "a cat"),  # no end token
        ([BOS, "a cat", EOS, "dogs", EOS], "a cat"),  # what follows the first end is not text
        ([BOS, "a cat", EOS, PAD, PAD], "a cat"),
        ([EOS, "a cat"], ""),
        ([BOS, EOS], ""),
        ([BOS], ""),
        ([], ""),
    ],
)
def test_decode_strips(row: list[int | str], expected: str) -> None:
    ids = [token for part in row for token in (words_of(part) if isinstance(part, str) else [part])]
    assert tiny_tokenizer().decode([ids]) == [expected]


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_decode_reads_lists_arrays_and_tensors(kind: Any) -> None:
    token_ids, _ = tiny_tokenizer().encode(["a red car", "an old man sits"])
    assert tiny_tokenizer().decode(kind(token_ids)) == ["a red car", "an old man sits"]


LETTERS = sorted(set("".join(TINY_TEXTS)) - {" "})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.text(LETTERS, min_size=1, max_size=7), max_size=5), max_size=4))
def test_round_trip_of_any_words_in_known_letters(sentences: list[list[str]]) -> None:
    texts = [" ".join(words) for words in sentences]
    token_ids, is_real = tiny_tokenizer().encode(texts)
    assert tiny_tokenizer().decode(token_ids) == texts
    assert is_real.sum() == sum(len(words_of(text)) + 2 for text in texts)


def test_training_is_deterministic_and_bounded() -> None:
    model = TextTokenizer.train(TINY_TEXTS, 37)
    assert model == TextTokenizer.train(iter(TINY_TEXTS), 37)
    assert TextTokenizer.from_bytes(model).vocabulary_size == 37
    assert TextTokenizer.from_bytes(TextTokenizer.train(TINY_TEXTS, 9999)).vocabulary_size < 200


def test_an_unknown_letter_becomes_the_unknown_piece() -> None:
    token_ids, _ = tiny_tokenizer().encode(["д"])
    assert 0 in token_ids[0]


def test_bytes_files_and_pickles_carry_the_whole_tokenizer(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.to_bytes() == tiny_tokenizer_model()
    path = tmp_path / "text_tokenizer.model"
    path.write_bytes(tokenizer.to_bytes())
    for copy in (
        TextTokenizer.from_bytes(tokenizer.to_bytes()),
        TextTokenizer.from_file(path),
        TextTokenizer.from_file(str(path)),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy == tokenizer
        assert hash(copy) == hash(tokenizer)
        assert copy.encode(["a red car"])[0].tolist() == tokenizer.encode(["a red car"])[0].tolist()
    assert tokenizer != TextTokenizer.from_bytes(train_model())
    assert tokenizer != "text_tokenizer.model"


def test_threads_share_one_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    expected = [tokenizer.encode([text])[0].tolist() for text in TINY_TEXTS]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda text: tokenizer.encode([text])[0].tolist(), TINY_TEXTS * 20))
    assert results == expected * 20


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "got 0 bytes that are not one"),
        (b"no tokenizer at all", "expected a SentencePiece model, got 19 bytes"),
        (tiny_tokenizer_model()[:-1], "may be cut short"),
        (tiny_tokenizer_model()[:1000], "may be cut short"),
        (train_model(bos_id=-1), r"expected a SentencePiece model with a start \(bos\) piece"),
        (train_model(eos_id=-1), r"an end \(eos\) piece, got one without; train it with"),
    ],
)
def test_a_broken_model_is_refused(contents: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.model"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message) as caught:
        TextTokenizer.from_file(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=message):
        TextTokenizer.from_bytes(contents)


def test_a_missing_file_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file at .*absent\.model; expected a Sentence"):
        TextTokenizer.from_file(tmp_path / "absent.model")
    with pytest.raises(FileNotFoundError, match="no file at"):
        TextTokenizer.from_file(tmp_path)


def test_a_path_is_not_a_model() -> None:
    with pytest.raises(
        TypeError, match=r"expected the bytes .* got str; use TextTokenizer.from_fi"
    ):
        TextTokenizer.from_bytes("text_tokenizer.model")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "max_length", "raises"),
    [
        ("a red car", None, pytest.raises(TypeError, match=r"got one string; use \['a red car'\]")),
        (["a", 7], None, pytest.raises(TypeError, match=r"texts\[1\]: expected a string, got int")),
        (["a", None], None, pytest.raises(TypeError, match=r"texts\[1\]: .* got NoneType")),
        (["a"], 1, pytest.raises(ValueError, match=r"max_length: expected at least 2, .* got 1")),
        (["a"], 2, nullcontext()),
        ((), 2, nullcontext()),
    ],
)
def test_encode_checks_its_input(
    texts: Sequence[Any], max_length: int | None, raises: AbstractContextManager[Any]
) -> None:
    with raises:
        tiny_tokenizer().encode(texts, max_length)


@pytest.mark.parametrize("token_id", [-1, 43])
def test_decode_refuses_ids_of_another_vocabulary(token_id: int) -> None:
    with pytest.raises(ValueError, match=f"expected ids from 0 to 42, got {token_id} in row 1"):
        tiny_tokenizer().decode([[BOS, EOS], [5, token_id]])


@pytest.mark.parametrize(
    ("texts", "size", "raises"),
    [
        ([], 43, pytest.raises(ValueError, match=r"texts: expected at least one text .* got none")),
        (["", "  "], 43, pytest.raises(ValueError, match="not blank, got none")),
        (TINY_TEXTS, 5, pytest.raises(ValueError, match="vocabulary_size: training with 5 pieces")),
        (TINY_TEXTS, 0, pytest.raises(ValueError, match="vocabulary_size: training with 0 pieces")),
        ("a cat", 43, pytest.raises(TypeError, match="expected a sequence of strings, got one st")),
    ],
)
def test_train_checks_its_input(
    texts: Sequence[str], size: int, raises: AbstractContextManager[Any]
) -> None:
    with raises:
        TextTokenizer.train(texts, size)
