"""What a training step draws at random, from the seed and the step alone.

So a run that was stopped goes on with the same numbers, and a batch that is spread over processes
or accumulated in parts draws what it would draw in one piece: some things once for all images, the
rest for each image by its position in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tokenize_anything.data.prompt_sampling import PromptSamplingConfig

_DROPOUT, _IMAGE, _STEP = range(3)


@dataclass(frozen=True)
class StepDraws:
    """What all images of a step have in common.

    has_second_stage: whether a second stage of prompts follows the first.
    is_interactive: whether that stage corrects the first prediction.
    num_clicks: how many clicks it adds: 1 to 8 corrections, or 2 to 9 clicks on the true mask.
    """

    has_second_stage: bool
    is_interactive: bool
    num_clicks: int

    @classmethod
    def at(
        cls, seed: int, step: int, config: PromptSamplingConfig, second_stage_probability: float
    ) -> StepDraws:
        """The draws of a step."""
        rng = np.random.default_rng((seed, step, _STEP))
        has_second_stage = bool(rng.random() < second_stage_probability)
        is_interactive = bool(rng.random() < config.interactive_probability)
        corrections = int(rng.integers(1, config.max_corrections, endpoint=True))
        return cls(has_second_stage, is_interactive, corrections + (not is_interactive))


def image_generators(
    seed: int, step: int, positions: range, device: torch.device
) -> list[torch.Generator]:
    """A generator for each image, by its position in the batch of the step."""
    return [
        torch.Generator(device).manual_seed(_number(seed, step, _IMAGE, position))
        for position in positions
    ]


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's own generators, which dropout and drop path use, on every device."""
    torch.manual_seed(_number(seed, step, _DROPOUT, rank))


def _number(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
