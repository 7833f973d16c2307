"""Caption metrics through the field's reference package, row by row and for the whole set.

Published tables use the PTB tokenizer and METEOR, both Java programs. Without Java they are left
out by name: what is computed on plain words then says so in its name.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
JAVA_CURE = (
    "install Java 8 or newer: apt-get install default-jre-headless, brew install openjdk, or "
    "conda install -c conda-forge openjdk"
)
PLAIN_SUFFIX = " (plain words)"
MIN_ROWS_OF_A_BAR = 10_000
_PTB_JAR = "stanford-corenlp-3.4.1.jar"
# What the PTB tokenizer makes of punctuation, and the reference package leaves out.
_PTB_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--",
     "...", ";"]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class CaptionScore:
    """One metric on R captions, on the scale of the reference package (tables print times 100).

    value: of the whole set. rows: (R,) float64, one per caption.
    """

    metric: str
    value: float
    rows: np.ndarray


def score_captions(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    plain_words: bool = False,
    spice: bool = False,
) -> list[CaptionScore]:
    """BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr (CIDEr-D) as published tables compute them.

    The reference package computes them all (pycocoevalcap, the COCO caption scorer); document
    frequencies of CIDEr come from `references`. A perfect caption has 1 everywhere but in CIDEr:
    up to 10, and less under four words, which have no 4-grams.

    Args:
        captions: R texts; an empty one scores nothing.
        references: R rows of one or more texts.
        plain_words: cut texts into words and numbers instead of using the PTB tokenizer, and leave
            out METEOR, so that no Java is needed; the names of the metrics end in PLAIN_SUFFIX.
        spice: SPICE too; it downloads its models on first use and takes long.

    Raises:
        ImportError: the extra is missing.
        RuntimeError: Java is missing and asked for, or fails.
        ValueError: no captions, rows without reference, or numbers of rows that differ.
    """
    _check_rows(captions, references)
    if spice and plain_words:
        raise ValueError("spice: expected False with plain_words, because SPICE is a Java program")
    if plain_words:
        truth = _by_row([[tokenize(text) for text in row] for row in references])
        answers = _by_row([[tokenize(caption)] for caption in captions])
    else:
        truth, answers = _ptb_rows(captions, references)
    scorers = _scorers(plain_words, spice)
    is_quick = len(captions) < MIN_ROWS_OF_A_BAR
    bar = tqdm(scorers, desc="caption metrics", leave=False, disable=is_quick)
    found = [score for names, scorer in bar for score in _run(names, scorer, truth, answers)]
    suffix = PLAIN_SUFFIX if plain_words else ""
    return [CaptionScore(f"{score.metric}{suffix}", score.value, score.rows) for score in found]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of captions against their references (Vedantam et al. 2015); 1.0 prints as 100.

    The reference package computes it; document frequencies come from `references`. Texts are
    lower-cased and cut into words and numbers here, so that no Java is needed; published tables
    use the PTB tokenizer, which keeps a few more marks as words: see `score_captions`.

    Raises:
        ImportError: the extra is missing.
        ValueError: not as many captions as reference rows.
    """
    _check_rows(captions, references)
    truth = _by_row([[tokenize(text) for text in row] for row in references])
    answers = _by_row([[tokenize(caption)] for caption in captions])
    (score,) = _run(["CIDEr"], _load("cider.cider", "Cider")(), truth, answers)
    return score.value


def candidate_constants(references: Sequence[Sequence[str]], count: int = 20) -> list[str]:
    """The most frequent references: the best constant answer is among them or close to one."""
    counts = Counter(text for row in references for text in row)
    return [text for text, _ in counts.most_common(count)]


def tokenize(text: str) -> str:
    """Lower-case words and numbers, separated by single spaces."""
    return " ".join(WORD.findall(text.lower()))


def has_java() -> bool:
    """Whether a Java that runs is on the path; some systems have a `java` that only complains."""
    if shutil.which("java") is None:
        return False
    return subprocess.run(["java", "-version"], capture_output=True, check=False).returncode == 0


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Texts as the COCO caption scorer compares them: PTB tokens in lower case, no punctuation.

    The Java tokenizer of the reference package cuts the texts; all go through one process.

    Raises:
        ImportError: the extra is missing.
        RuntimeError: Java is missing, or fails.
    """
    lines = [" ".join(text.split()) for text in texts]  # line breaks of any kind would shift rows
    folder = Path(_load("tokenizer.ptbtokenizer", "__file__")).parent
    command = ["java", "-cp", _PTB_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase"]
    _require_java()
    done = subprocess.run(
        command,
        cwd=folder,
        input="".join(f"{line}\n" for line in lines).encode(),
        capture_output=True,
        check=False,
    )
    found = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(found) != len(lines):
        raise RuntimeError(
            f"PTB tokenizer: expected {len(lines)} lines, got {len(found)}, exit code "
            f"{done.returncode}; it said {done.stderr.decode(errors='replace')[-300:]!r}"
        )
    return [
        " ".join(word for word in line.split(" ") if word and word not in _PTB_PUNCTUATION)
        for line in found
    ]


def _ptb_rows(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and captions by row, cut by one run of the tokenizer."""
    flat = [text for row in references for text in row]
    cut = iter(ptb_tokenize([*flat, *captions]))
    truth = _by_row([[next(cut) for _ in row] for row in references])
    return truth, _by_row([[text] for text in cut])


def _by_row(rows: Iterable[list[str]]) -> dict[int, list[str]]:
    return dict(enumerate(rows))


def _scorers(plain_words: bool, spice: bool) -> list[tuple[list[str], Any]]:
    scorers: list[tuple[list[str], Any]] = [
        ([f"BLEU-{size}" for size in range(1, 5)], _load("bleu.bleu", "Bleu")(4)),
        (["ROUGE-L"], _load("rouge.rouge", "Rouge")()),
        (["CIDEr"], _load("cider.cider", "Cider")()),
    ]
    if not plain_words:
        scorers.insert(1, (["METEOR"], _load("meteor.meteor", "Meteor")()))
    if spice:
        scorers.append((["SPICE"], _load("spice.spice", "Spice")()))
    return scorers


def _run(
    names: Sequence[str], scorer: Any, truth: dict[int, list[str]], answers: dict[int, list[str]]
) -> list[CaptionScore]:
    compute: Callable[..., tuple[Any, Any]] = scorer.compute_score
    options = {"verbose": 0} if len(names) > 1 else {}
    try:
        values, rows = compute(truth, answers, **options)
    except (OSError, ValueError) as error:
        if names == ["METEOR"]:
            raise RuntimeError(
                f"METEOR: its Java program failed ({error}); it needs 2 GB of memory"
            ) from error
        raise
    if len(names) == 1:
        values, rows = [values], [[_f_score(row) for row in rows]]
    return [
        CaptionScore(name, float(value), np.asarray(row, dtype=np.float64))
        for name, value, row in zip(names, values, rows, strict=True)
    ]


def _f_score(row: Any) -> float:
    """A row's score; SPICE gives a score for every kind of tuple."""
    return float(row["All"]["f"] if isinstance(row, dict) else row)


def _load(module: str, name: str) -> Any:
    """A name of the reference package."""
    import importlib

    try:
        return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)
    except ImportError as error:
        raise ImportError("caption metrics need: pip install tokenize-anything[eval]") from error


def _require_java() -> None:
    if not has_java():
        raise RuntimeError(
            f"java: the PTB tokenizer and METEOR need it, and it does not run here; {JAVA_CURE}; "
            "or take plain_words=True"
        )


def _check_rows(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(captions) != len(references):
        raise ValueError(
            f"captions: expected one for each of {len(references)} reference rows, "
            f"got {len(captions)}"
        )
    if not captions:
        raise ValueError("captions: expected at least one, got none")
    empty = [row for row, texts in enumerate(references) if not texts]
    if empty:
        raise ValueError(f"references: expected at least one text a row, got none in {empty[:5]}")
