"""Caption metrics against the reference package, and against plain formulas."""

import math
from collections import Counter

import numpy as np
import pytest

from tokenize_anything.evaluation.caption_scores import (
    cider,
    has_java,
    ptb_tokenize,
    score_captions,
    tokenize,
)
from tokenize_anything.evaluation.captioning import skip_java_metrics

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


needs_java = pytest.mark.skipif(not has_java(), reason="java is not installed: no PTB, no METEOR")
CAPTIONS = [
    "A red car, parked!",
    "the dog's on a (blue) mat",
    "",
    "2 men with café au lait",
    "a man | riding a horse",
    "two\x0blines\nof text",
    "a tall tree near the old house",
]
REFERENCES = [
    ["a red car is parked; there", "The red car."],
    ["a dog is lying on the mat"],
    ["something here", "nothing at all"],
    ["a café au lait for two men", "men drink coffee", "2 men"],
    ["a man rides a horse"],
    ["two lines of text"],
    ["A tall tree, near the old house."],
]


def random_rows(count):
    """Captions and references of a few words and marks, so that many are shared."""
    rng = np.random.default_rng(0)
    words = ["a", "the", "red", "dogs", "dog's", "mat", "on", "run", ",", "2", "(old)", "café", "-"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(4 * count)]
    numbers = rng.integers(1, 4, count)
    return texts[:count], [texts[n * 3 + count :][:number] for n, number in enumerate(numbers)]


@needs_java
def test_equals_the_reference_package_run_as_its_authors_do(monkeypatch):
    """Their tokenizer class and scorers, by hand, on texts without line breaks."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor import meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions, references = random_rows(40)
    captions, references = captions + CAPTIONS, references + REFERENCES
    flat = [" ".join(caption.split()) for caption in captions]
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize(
        {row: [{"caption": text} for text in texts] for row, texts in enumerate(references)}
    )
    answers = tokenizer.tokenize({row: [{"caption": text}] for row, text in enumerate(flat)})
    bleu, bleu_rows = Bleu(4).compute_score(truth, answers, verbose=0)
    wanted = {f"BLEU-{n + 1}": (bleu[n], bleu_rows[n]) for n in range(4)}
    program = meteor.Meteor()
    monkeypatch.setattr(meteor, "Meteor", lambda: program)  # its tables take seconds to load
    for name, scorer in (("METEOR", program), ("ROUGE-L", Rouge()), ("CIDEr", Cider())):
        wanted[name] = scorer.compute_score(truth, answers)

    found = score_captions(captions, references)
    assert [score.metric for score in found] == [*list(wanted)[:4], "METEOR", "ROUGE-L", "CIDEr"]
    for score in found:
        value, rows = wanted[score.metric]
        assert score.value == pytest.approx(value, abs=1e-6), score.metric
        np.testing.assert_allclose(score.rows, rows, rtol=0, atol=1e-6, err_msg=score.metric)
        perfect = 10 if score.metric == "CIDEr" else 1
        assert score.rows[-1] == pytest.approx(perfect, abs=1e-6), score.metric


@needs_java
def test_ptb_tokens_keep_to_their_lines():
    found = ptb_tokenize(["It's a \x0bdog's\u2028toy.", "", "Red-hot (café)!", "  "])
    # Brackets stay, because the reference looks for them in upper case.
    assert found == ["it 's a dog 's toy", "", "red-hot -lrb- café -rrb-", ""]


def test_plain_words_say_so_in_their_names():
    found = score_captions(CAPTIONS, REFERENCES, plain_words=True)
    names = [*(f"BLEU-{n}" for n in range(1, 5)), "ROUGE-L", "CIDEr"]
    assert [score.metric for score in found] == [f"{name} (plain words)" for name in names]
    assert found[-1].value == pytest.approx(cider(CAPTIONS, REFERENCES))
    assert found[-1].rows.mean() == pytest.approx(found[-1].value)
    assert all(len(score.rows) == len(CAPTIONS) for score in found)


def test_bleu_and_rouge_by_hand():
    """Five words of which four are right and in order; the reference is as long."""
    scores = {
        score.metric.removesuffix(" (plain words)"): score.value
        for score in score_captions(["a b c d x"], [["a b c d e"]], plain_words=True)
    }
    parts = [4 / 5, 3 / 4, 2 / 3, 1 / 2]
    for size in range(1, 5):
        assert scores[f"BLEU-{size}"] == pytest.approx(math.prod(parts[:size]) ** (1 / size))
    assert scores["ROUGE-L"] == pytest.approx(4 / 5)  # precision and recall alike


def test_without_java_the_metrics_are_refused_and_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_java()
    with pytest.raises(RuntimeError, match=r"java: the PTB tokenizer and METEOR need it.*install"):
        score_captions(["a"], [["a"]])
    with pytest.warns(
        UserWarning, match=r"no Java: METEOR, and BLEU, ROUGE-L and CIDEr .*left out"
    ):
        assert skip_java_metrics()


def test_a_java_that_only_complains_is_none(monkeypatch, tmp_path):
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\necho 'Unable to locate a Java Runtime' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_java()


@pytest.mark.parametrize(
    ("captions", "references", "options", "message"),
    [
        ([], [], {}, "captions: expected at least one, got none"),
        (["a"], [["a"], ["b"]], {}, "one for each of 2 reference rows, got 1"),
        (["a", "b"], [["a"], []], {}, r"at least one text a row, got none in \[1\]"),
        (["a"], [["a"]], {"spice": True}, "spice: expected False with plain_words"),
    ],
)
def test_bad_rows(captions, references, options, message):
    with pytest.raises(ValueError, match=message):
        score_captions(captions, references, plain_words=True, **options)
