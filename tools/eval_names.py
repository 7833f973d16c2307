"""Names that were found beside the true ones; for eval_downstream and the curves of tap_tiny."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tokenize_anything.data.region_captions import name_to_caption
from tokenize_anything.evaluation.caption_scores import cider
from tokenize_anything.evaluation.region_truth import TrueRegion

Row = tuple[str, str, float]  # subject, metric, value
FIRST_NAME_CIDER = "caption CIDEr of the first name, val"


def few_rows(names: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows of each name, drawn with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(names))
    return np.concatenate([order[names[order] == name][:count] for name in np.unique(names)])


def accuracies(subject: str, found: list[str], names: np.ndarray) -> Iterator[Row]:
    is_right = np.array(found) == names
    yield subject, "top-1", is_right.mean()
    yield (
        subject,
        "mean of names' top-1",
        np.mean([is_right[names == n].mean() for n in set(names)]),
    )


def vocabulary_rows(subject: str, log_probs: np.ndarray, names: np.ndarray) -> Iterator[Row]:
    """Of (R,K) and true rows (R,), -1 for names that are not in the vocabulary and count as wrong.

    How often the first, and one of the first five, is right, of all names and of those in it.
    """
    is_right = np.argsort(-log_probs) == names[:, None]
    for kind, rows in (("of those in the vocabulary, ", names >= 0), ("", names >= -1)):
        for count in (1, 5):
            yield (
                subject,
                f"concept top-{count} {kind}val",
                is_right[rows, :count].any(axis=1).mean(),
            )


def name_rows(
    subject: str, log_probs: np.ndarray, regions: list[TrueRegion], names: Sequence[str]
) -> list[Row]:
    """How often names are right, and CIDEr of the first of K names with an article, as captions.

    Args:
        subject: of the rows.
        log_probs: (R,K).
        regions: R; those without a name count for captions alone.
        names: K.
    """
    position = {name: row for row, name in enumerate(names)}
    is_named = np.array([region.name is not None for region in regions])
    truths = [position.get(region.name, -1) for region in regions if region.name is not None]
    described = [row for row, region in enumerate(regions) if region.references]
    captions = [name_to_caption(names[row]) for row in log_probs[described].argmax(axis=1)]
    score = cider(captions, [regions[row].references for row in described])
    known = vocabulary_rows(subject, log_probs[is_named], np.array(truths))
    return [*known, (subject, FIRST_NAME_CIDER, score)]
