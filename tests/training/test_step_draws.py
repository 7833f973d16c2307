"""Draws of a step: repeatable, the same for an image whatever its batch, evenly spread."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tokenize_anything.data.prompt_sampling import PromptSamplingConfig
from tokenize_anything.training.step_draws import StepDraws, image_generators, seed_dropout

CPU = torch.device("cpu")


def test_draws_follow_the_seed_and_the_step() -> None:
    config = PromptSamplingConfig()
    draws = [[StepDraws.at(seed, step, config, 0.5) for step in range(50)] for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) > 10


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_stages_come_as_often_as_they_should(probability: float) -> None:
    config = PromptSamplingConfig(interactive_probability=probability)
    draws = [StepDraws.at(0, step, config, probability) for step in range(800)]
    for name in ("has_second_stage", "is_interactive"):
        share = np.mean([getattr(draw, name) for draw in draws])
        assert share == pytest.approx(probability, abs=0.06), name


@pytest.mark.parametrize("interactive, lowest", [(1.0, 1), (0.0, 2)])
def test_one_to_eight_corrections_or_two_to_nine_clicks(interactive: float, lowest: int) -> None:
    config = PromptSamplingConfig(interactive_probability=interactive)
    counts = [StepDraws.at(0, step, config, 1.0).num_clicks for step in range(800)]
    values, frequency = np.unique(counts, return_counts=True)
    assert values.tolist() == list(range(lowest, lowest + 8))
    assert np.abs(frequency - 100).max() < 45
    few = PromptSamplingConfig(interactive_probability=interactive, max_corrections=1)
    assert {StepDraws.at(0, step, few, 1.0).num_clicks for step in range(20)} == {lowest}


def test_an_image_has_the_generator_of_its_place() -> None:
    def numbers(seed: int, step: int, positions: range) -> list[float]:
        generators = image_generators(seed, step, positions, CPU)
        return [float(torch.rand((), generator=one)) for one in generators]

    whole = numbers(1, 2, range(6))
    assert len(set(whole)) == 6
    assert numbers(1, 2, range(4, 6)) == whole[4:]
    assert not set(numbers(1, 3, range(6))) & set(whole)
    assert not set(numbers(2, 2, range(6))) & set(whole)


def test_dropout_differs_by_step_and_process() -> None:
    seen = set()
    for seed, step, rank in itertools.product(range(2), range(3), range(3)):
        seed_dropout(seed, step, rank)
        first = torch.rand(3)
        seed_dropout(seed, step, rank)
        assert torch.equal(torch.rand(3), first)
        seen.add(tuple(first.tolist()))
    assert len(seen) == 18
