"""CIDEr against a plain implementation of its formula."""

import math
from collections import Counter

import pytest

from tokenize_anything.evaluation.caption_scores import cider, tokenize

pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")


def ngrams(text, size):
    words = text.split()
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def plain_cider(captions, references):
    """Vedantam et al. 2015, equations 1 to 4, with the length penalty of CIDEr-D (sigma 6)."""
    total = len(references)
    score = 0.0
    for caption, texts in zip(captions, references, strict=True):
        for size in (1, 2, 3, 4):
            frequency = Counter()
            for row in references:
                frequency.update({gram for text in row for gram in ngrams(text, size)})

            def vector(text, size=size, frequency=frequency):
                weight = {
                    g: math.log(total) - math.log(max(1, frequency[g])) for g in ngrams(text, size)
                }
                return {g: count * weight[g] for g, count in ngrams(text, size).items()}

            candidate = vector(caption)
            for text in texts:
                reference = vector(text)
                dot = sum(
                    min(candidate[g], reference.get(g, 0)) * reference.get(g, 0) for g in candidate
                )
                norms = math.sqrt(sum(v * v for v in candidate.values()))
                norms *= math.sqrt(sum(v * v for v in reference.values()))
                gap = len(caption.split()) - len(text.split())
                if norms:
                    score += dot / norms * math.exp(-gap * gap / 72) / len(texts) / 4
    return 10 * score / total


def test_equals_the_formula():
    captions = ["a red car", "a dog on a red mat", "blue sky"]
    references = [["a red car parked", "the red car"], ["a dog on the mat"], ["a grey sky"]]
    assert cider(captions, references) == pytest.approx(plain_cider(captions, references), abs=1e-6)


def test_perfect_captions_score_ten_and_wrong_ones_nothing():
    references = [["one two three four five"], ["six seven eight nine ten"]]
    assert cider([row[0] for row in references], references) == pytest.approx(10.0)
    assert cider([row[0] for row in references[::-1]], references) == pytest.approx(0.0)


def test_counts_must_agree():
    with pytest.raises(
        ValueError, match=r"captions: expected one for each of 2 reference rows, got 1"
    ):
        cider(["a"], [["a"], ["b"]])


def test_tokenize_keeps_words_and_numbers():
    assert tokenize("A dog's  toy, (2 cm)!") == "a dog's toy 2 cm"
