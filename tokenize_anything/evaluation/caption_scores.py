"""Caption metrics through the field's reference package."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of captions against their references (Vedantam et al. 2015); 1.0 prints as 100.

    The reference package computes it; document frequencies come from `references`. Texts are
    lower-cased and cut into words and numbers here, so that no Java is needed; published tables
    use the PTB tokenizer, which keeps a few more marks as words.

    Raises:
        ImportError: the extra is missing.
        ValueError: not as many captions as reference rows.
    """
    if len(captions) != len(references):
        raise ValueError(
            f"captions: expected one for each of {len(references)} reference rows, "
            f"got {len(captions)}"
        )
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ImportError("caption metrics need: pip install tokenize-anything[eval]") from error
    truth = {row: [tokenize(text) for text in texts] for row, texts in enumerate(references)}
    answers = {row: [tokenize(caption)] for row, caption in enumerate(captions)}
    score, _ = Cider().compute_score(truth, answers)
    return float(score)


def tokenize(text: str) -> str:
    """Lower-case words and numbers, separated by single spaces."""
    return " ".join(WORD.findall(text.lower()))
