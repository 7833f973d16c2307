"""Caption text to token ids and back, with a SentencePiece model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

MIN_LENGTH = 2  # start and end token


class TextTokenizer:
    """A SentencePiece model with start and end tokens around every text.

    It holds no mutable state: threads may share one, and it can be pickled (data loader workers).

    Example:
        >>> tokenizer = TextTokenizer.from_file("text_tokenizer.model")
        >>> token_ids, is_real = tokenizer.encode(["a red car"], max_length=40)
        >>> tokenizer.decode(token_ids)
        ['a red car']
    """

    def __init__(self, model: bytes, *, source: str = "model") -> None:
        """Read a serialised SentencePiece model.

        Args:
            model: contents of a `.model` file.
            source: what error messages call it.

        Raises:
            TypeError: `model` is not bytes.
            ValueError: not a SentencePiece model, or one without start or end token.
        """
        self._processor = _load_processor(model, source)
        for name, token_id in (("a start (bos)", self.start_id), ("an end (eos)", self.end_id)):
            if token_id < 0:
                raise ValueError(
                    f"{source}: expected a SentencePiece model with {name} piece, got one "
                    "without; train it with bos_id and eos_id, as TextTokenizer.train does"
                )

    @classmethod
    def from_bytes(cls, data: bytes) -> TextTokenizer:
        """Build from the contents of a `.model` file; raises as the constructor does."""
        return cls(data)

    @classmethod
    def from_file(cls, path: str | Path) -> TextTokenizer:
        """Read a `.model` file.

        Raises:
            FileNotFoundError: no file at `path`.
            ValueError: the file is not a usable SentencePiece model.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"text tokenizer: no file at {path}; expected a SentencePiece .model file, such as "
                "the one published with the weights, or one written from TextTokenizer.train"
            )
        return cls(path.read_bytes(), source=str(path))

    @staticmethod
    def train(texts: Iterable[str], vocabulary_size: int) -> bytes:
        """Learn a unigram vocabulary; the same texts in the same order give the same bytes.

        The ids are unknown 0, start 1, end 2; there is no padding piece.

        Args:
            texts: one sentence each.
            vocabulary_size: upper limit; fewer pieces come out where the texts offer no more.

        Returns:
            A model for `from_bytes`, to be written to a `.model` file as it is.

        Raises:
            ValueError: no text, or fewer pieces asked for than the texts have characters.
        """
        sentences = list(_checked_texts(texts))
        if not any(sentence.strip() for sentence in sentences):
            raise ValueError("texts: expected at least one text that is not blank, got none")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                vocab_size=vocabulary_size,
                model_type="unigram",
                byte_fallback=False,
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                hard_vocab_limit=False,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"vocabulary_size: training with {vocabulary_size} pieces failed; expected more "
                f"pieces than the texts have characters ({error})"
            ) from error
        return model.getvalue()

    def to_bytes(self) -> bytes:
        """Serialise; `from_bytes` reads it back."""
        return bytes(self._processor.serialized_model_proto())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TextTokenizer):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def vocabulary_size(self) -> int:
        """Number of pieces, V."""
        return int(self._processor.vocab_size())

    @property
    def start_id(self) -> int:
        """Token id before the first word (bos)."""
        return int(self._processor.bos_id())

    @property
    def end_id(self) -> int:
        """Token id after the last word (eos)."""
        return int(self._processor.eos_id())

    @property
    def padding_id(self) -> int:
        """Token id behind the end of shorter texts.

        A model without padding piece uses its last piece, which is a real one: tell padding from
        text by the mask of `encode`, never by this id.
        """
        piece = int(self._processor.pad_id())
        return piece if piece >= 0 else self.vocabulary_size - 1

    def encode(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Texts to token ids with start and end tokens.

        Args:
            texts: R texts.
            max_length: longest row, start and end tokens counted; a longer text is cut and its
                last kept token replaced by the end token. None does not cut.

        Returns:
            token_ids (R,L) int64, L the longest row, shorter ones filled with `padding_id`; and
            is_real (R,L) bool, False on the filling. With no texts both are (0,0).

        Raises:
            TypeError: one string instead of a sequence, or an element that is no string.
            ValueError: `max_length` below 2.
        """
        if max_length is not None and max_length < MIN_LENGTH:
            raise ValueError(
                f"max_length: expected at least {MIN_LENGTH}, for the start and the end token, "
                f"got {max_length}"
            )
        words = self._processor.encode(list(_checked_texts(texts)), num_threads=1)
        num_words = None if max_length is None else max_length - MIN_LENGTH
        rows = [[self.start_id, *row[:num_words], self.end_id] for row in words]
        length = max(map(len, rows), default=0)
        token_ids = np.full((len(rows), length), self.padding_id, dtype=np.int64)
        is_real = np.zeros((len(rows), length), dtype=np.bool_)
        for index, row in enumerate(rows):
            token_ids[index, : len(row)] = row
            is_real[index, : len(row)] = True
        return token_ids, is_real

    def decode(self, token_ids: Sequence[Sequence[int]] | NDArray[Any]) -> list[str]:
        """Token ids to texts.

        Args:
            token_ids: R rows of ids, of any lengths, or an (R,L) array or tensor. The first
                end token and all behind it are dropped; a start token has no text.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        rows = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        words = [self._cut([int(token_id) for token_id in row]) for row in rows]
        for index, row in enumerate(words):
            wrong = [token_id for token_id in row if not 0 <= token_id < self.vocabulary_size]
            if wrong:
                raise ValueError(
                    f"token_ids: expected ids from 0 to {self.vocabulary_size - 1}, got {wrong[0]} "
                    f"in row {index}; was the text made with another tokenizer?"
                )
        return [str(text) for text in self._processor.decode(words)]

    def _cut(self, row: list[int]) -> list[int]:
        """One row without the first end token and what follows it."""
        return row[: row.index(self.end_id)] if self.end_id in row else row


def _load_processor(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    if not isinstance(model, bytes):
        raise TypeError(
            f"{source}: expected the bytes of a SentencePiece model, got "
            f"{type(model).__name__}; use TextTokenizer.from_file to read a path"
        )
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise ValueError(
            f"{source}: expected a SentencePiece model, got {len(model)} bytes that are not one; "
            f"the file may be cut short or of another kind ({error})"
        ) from error
    return processor


def _checked_texts(texts: Iterable[str]) -> Iterable[str]:
    """Yield the texts, refusing a lone string, which would pass as a sequence of letters."""
    if isinstance(texts, str):
        raise TypeError(f"texts: expected a sequence of strings, got one string; use [{texts!r}]")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}]: expected a string, got {type(text).__name__}")
        yield text
