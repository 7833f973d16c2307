"""The naming head, trained alone on tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.tiny import tiny_tap
from tests.tiny_predictor import NAMES, tiny_vocabulary
from tokenize_anything.data.region_captions import CaptionedRegion
from tokenize_anything.training.concept_head import fit_concept_head, name_indices
from tokenize_anything.training.token_heads import HeadConfig

CONFIG = HeadConfig(batch_size=17, num_epochs=40, token_noise=0.05, token_dropout=0.0)
BOX = (0.0, 0.0, 5.0, 7.0)


def make_tokens(width: int) -> tuple[torch.Tensor, np.ndarray]:
    """Tokens that lie around one place for each name."""
    generator = torch.Generator().manual_seed(3)
    places = torch.randn(len(NAMES), width, generator=generator) * 2
    names = torch.arange(70) % len(NAMES)
    return places[names] + 0.1 * torch.randn(70, width, generator=generator), names.numpy()


def accuracy(model, tokens, names) -> float:
    with torch.no_grad():
        log_probs = tiny_vocabulary().log_probs(model.image_decoder.semantic_head(tokens))
    return float((log_probs.argmax(dim=1).numpy() == names).mean())


def test_learns_the_names_and_changes_the_head_alone():
    model = tiny_tap()
    tokens, names = make_tokens(model.config.decoder_dim)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = tokens.clone()
    assert accuracy(model, tokens, names) < 0.5
    fit_concept_head(model, tokens, names, tiny_vocabulary(), CONFIG)
    assert accuracy(model, tokens, names) == 1.0
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert changed == {name for name in before if "semantic_head" in name}
    assert torch.equal(tokens, given)


def test_the_same_seed_gives_the_same_and_another_differs():
    heads = []
    for seed in (1, 1, 2):
        model = tiny_tap()
        tokens, names = make_tokens(model.config.decoder_dim)
        config = dataclasses.replace(CONFIG, num_epochs=2, seed=seed)
        fit_concept_head(model, tokens, names, tiny_vocabulary(), config)
        heads.append(model.image_decoder.semantic_head.layers[-1].weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_regions_without_a_name_are_left_out():
    with_more, alone = tiny_tap(), tiny_tap()
    tokens, names = make_tokens(alone.config.decoder_dim)
    config = dataclasses.replace(CONFIG, num_epochs=2)
    fit_concept_head(alone, tokens[::2], names[::2], tiny_vocabulary(), config)
    hidden = np.where(np.arange(70) % 2, -1, names)
    fit_concept_head(with_more, tokens, hidden, tiny_vocabulary(), config)
    weights = [m.image_decoder.semantic_head.layers[-1].weight for m in (with_more, alone)]
    assert torch.equal(*weights)


def test_names_of_regions():
    texts = [("a cup",), ("a red cup on a table",), ("a spoon", "metal"), ("an ufo",)]
    regions = [CaptionedRegion(0, BOX, text) for text in texts]
    assert name_indices(regions, tiny_vocabulary()).tolist() == [0, -1, 1, -1]


@pytest.mark.parametrize(
    ("width", "names", "message"),
    [
        (31, [0, 1], "tokens: expected .2,.*got .2, 31."),
        (None, [0, 1, 2], "tokens: expected .3,"),
        (None, [-1, -1], "names: expected at least one region that a concept names"),
    ],
)
def test_bad_input(width, names, message):
    model = tiny_tap()
    tokens = torch.zeros(2, width or model.config.decoder_dim)
    with pytest.raises(ValueError, match=message):
        fit_concept_head(model, tokens, np.array(names), tiny_vocabulary())
