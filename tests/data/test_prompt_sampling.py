"""Training prompts: layout, counts, labels, places, and what the generator decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenize_anything.config import PointLabel
from tokenize_anything.data.prompt_sampling import (
    PromptSampler,
    PromptSamplingConfig,
    SampledPrompts,
    jitter_boxes,
    pixels_to_coords,
    sample_mask_pixels,
)

BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT, PADDING = map(int, PointLabel)
SIDE, SIZE = 13, 52  # masks of a quarter of the frame's resolution
CONFIG = PromptSamplingConfig()
SAMPLER = PromptSampler(SIZE, CONFIG)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


EMPTY = torch.zeros(SIDE, SIDE, dtype=torch.bool)
LEFT, MIDDLE = rectangle(1, 2, 5, 11), rectangle(4, 3, 9, 8)


def pixels_of(coords_xy: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and rows of the mask pixels whose centres the coordinates are."""
    xy = (coords_xy + 0.5) * SIDE / SIZE - 0.5
    torch.testing.assert_close(xy, xy.round())
    return xy[..., 0].round().long(), xy[..., 1].round().long()


def value_at(mask: Tensor, coords_xy: Tensor) -> Tensor:
    columns, rows = pixels_of(coords_xy)
    return mask[rows, columns]


# --- pixels --------------------------------------------------------------------------------------


def test_pixels_are_drawn_from_the_mask_without_replacement() -> None:
    masks = torch.stack([LEFT, MIDDLE])
    positions = sample_mask_pixels(masks, 9, generator())
    assert positions.shape == (2, 9)
    assert masks.flatten(1).gather(1, positions).all()
    assert all(len(set(row)) == 9 for row in positions.tolist())


@pytest.mark.parametrize("num_pixels", [1, 2, 5])
def test_a_small_mask_gives_each_pixel_before_any_twice(num_pixels: int) -> None:
    mask = rectangle(3, 4, 3 + num_pixels, 5)
    (row,) = sample_mask_pixels(torch.stack([mask]), 7, generator()).tolist()
    own = set(np.flatnonzero(mask.numpy().ravel()).tolist())
    assert set(row) == own
    counts = [row.count(position) for position in own]
    assert max(counts) - min(counts) <= 1


def test_more_draws_than_pixels_in_the_whole_mask() -> None:
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    (row,) = sample_mask_pixels(mask, 9, generator()).tolist()
    assert sorted(row[:4]) == [0, 1, 2, 3] and sorted(row[4:8]) == [0, 1, 2, 3]


def test_pixels_are_drawn_uniformly() -> None:
    mask = rectangle(2, 3, 6, 5)  # 8 pixels
    positions = sample_mask_pixels(mask.expand(4000, -1, -1), 3, generator(1))
    for column in positions.T:  # each draw by itself
        _, counts = column.unique(return_counts=True)
        assert len(counts) == 8
        assert (counts - 500).abs().max() < 100  # 4.8 standard deviations


def test_coordinates_are_pixel_centres_in_the_model_frame() -> None:
    positions = torch.tensor([[0, 1, SIDE, 3 * SIDE + 7]])
    coords = pixels_to_coords(positions, SIDE, SIZE)
    expected = [[(p + 0.5) * 4 - 0.5 for p in xy] for xy in [(0, 0), (1, 0), (0, 1), (7, 3)]]
    torch.testing.assert_close(coords, torch.tensor([expected]))


# --- boxes ---------------------------------------------------------------------------------------


def test_boxes_grow_by_the_cut_noise_and_never_shrink() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]]).expand(5000, -1)
    moved = jitter_boxes(boxes, CONFIG, generator()) - boxes
    assert (moved[:, :2] <= 0).all() and (moved[:, 2:] >= 0).all()
    for side, sigma in enumerate((2.0, 4.0, 2.0, 4.0)):  # a tenth of width, height
        shift = moved[:, side].abs()
        assert float((shift == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
        assert float(shift.square().mean()) ** 0.5 == pytest.approx(sigma / 2**0.5, rel=0.06)


def test_corners_move_20_pixels_at_most() -> None:
    boxes = torch.tensor([[0.0, 0.0, 900.0, 700.0]]).expand(500, -1)
    moved = (jitter_boxes(boxes, CONFIG, generator()) - boxes).abs()
    assert moved.max() == 20
    assert float((moved == 20).float().mean()) == pytest.approx(0.40, abs=0.05)


def test_no_noise_keeps_boxes() -> None:
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
    config = PromptSamplingConfig(box_noise=0.0)
    torch.testing.assert_close(jitter_boxes(boxes, config, generator()), boxes, rtol=0, atol=0)


# --- first stage ---------------------------------------------------------------------------------


MASKS = torch.stack([LEFT, MIDDLE, EMPTY])
BOXES = torch.tensor([[4.0, 8.0, 20.0, 44.0], [16.0, 12.0, 36.0, 32.0], [3.0, 5.0, 40.0, 50.0]])


def first_stage(is_box: list[bool], seed: int = 0) -> SampledPrompts:
    return SAMPLER.first(BOXES, MASKS, torch.tensor(is_box), generator(seed))


def test_first_stage_is_two_corners_or_a_click_and_a_pad() -> None:
    prompts = first_stage([True, False, False])
    assert prompts.labels.tolist() == [
        [TOP_LEFT, BOTTOM_RIGHT], [FOREGROUND, PADDING], [TOP_LEFT, BOTTOM_RIGHT],
    ]  # fmt: skip
    assert prompts.is_box.tolist() == [True, False, True]  # no mask to click on: its box
    assert (prompts.coords_xy[0, 0] <= BOXES[0, :2]).all()
    assert (prompts.coords_xy[0, 1] >= BOXES[0, 2:]).all()
    assert value_at(MIDDLE, prompts.coords_xy[1, :1]).all()
    assert prompts.coords_xy[1, 1].tolist() == [-0.5, -0.5]


# --- corrections ---------------------------------------------------------------------------------


def corrected(predicted: Tensor, seed: int = 0) -> tuple[SampledPrompts, SampledPrompts]:
    first = first_stage([True, False, False], seed)
    return first, SAMPLER.corrections(first, predicted, MASKS, generator(seed + 100))


def test_corrections_keep_the_first_prompt_and_their_layout() -> None:
    first, second = corrected(torch.stack([MIDDLE, LEFT, MIDDLE]))
    num_clicks = second.labels.shape[1] - 2
    assert second.coords_xy.shape == (3, 2 + num_clicks, 2)
    assert second.is_box.tolist() == first.is_box.tolist() == [True, False, True]
    torch.testing.assert_close(second.coords_xy[[0, 2], :2], first.coords_xy[[0, 2]])
    assert second.labels[0, :2].tolist() == [TOP_LEFT, BOTTOM_RIGHT]
    torch.testing.assert_close(second.coords_xy[1, 0], first.coords_xy[1, 0])
    assert second.coords_xy[1, -1].tolist() == [-0.5, -0.5]
    assert second.labels[1, [0, -1]].tolist() == [FOREGROUND, PADDING]
    clicks = torch.cat([second.labels[0, 2:], second.labels[1, 1:-1]])
    assert set(clicks.tolist()) <= {BACKGROUND, FOREGROUND}


@pytest.mark.parametrize("seed", range(5))
def test_clicks_lie_in_the_error_region_with_the_label_of_the_truth(seed: int) -> None:
    predicted = torch.stack([MIDDLE, LEFT, MIDDLE])
    _, second = corrected(predicted, seed)
    rows = [(0, slice(2, None)), (1, slice(1, -1)), (2, slice(2, None))]
    for region, clicks in rows:
        coords, labels = second.coords_xy[region, clicks], second.labels[region, clicks]
        truth = value_at(MASKS[region], coords)
        assert (truth ^ value_at(predicted[region], coords)).all()
        assert labels.tolist() == truth.long().tolist()


def test_both_kinds_of_error_are_clicked() -> None:
    labels = torch.cat([
        corrected(torch.stack([MIDDLE, LEFT, EMPTY]), seed)[1].labels[0, 2:] for seed in range(40)
    ])  # fmt: skip
    # 36 pixels of LEFT and 25 of MIDDLE, 5 shared: 31 missed, 20 false
    assert float(labels.float().mean()) == pytest.approx(31 / 51, abs=0.1)


def test_without_errors_the_truth_is_clicked_and_without_truth_nothing() -> None:
    _, second = corrected(MASKS)
    assert set(second.labels[0, 2:].tolist()) == {FOREGROUND}
    assert value_at(LEFT, second.coords_xy[0, 2:]).all()
    assert set(second.labels[1, 1:-1].tolist()) == {FOREGROUND}
    assert set(second.labels[2, 2:].tolist()) == {PADDING}
    assert (second.coords_xy[2, 2:] == -0.5).all()


def test_one_to_eight_corrections_equally_often() -> None:
    first = first_stage([True, True, True])
    shared = generator(3)
    counts = [
        SAMPLER.corrections(first, ~MASKS, MASKS, shared).labels.shape[1] - 2 for _ in range(800)
    ]
    values, frequency = np.unique(counts, return_counts=True)
    assert values.tolist() == list(range(1, 9))
    assert np.abs(frequency - 100).max() < 45


# --- fresh clicks --------------------------------------------------------------------------------


def test_two_to_nine_fresh_clicks_and_a_pad() -> None:
    shared = generator(4)
    counts = []
    for _ in range(400):
        prompts = SAMPLER.clicks(MASKS, shared)
        counts.append(prompts.labels.shape[1] - 1)
        assert (prompts.labels[:2, :-1] == FOREGROUND).all()
        assert (prompts.labels[:, -1] == PADDING).all() and (prompts.labels[2] == PADDING).all()
        assert (prompts.coords_xy[:, -1] == -0.5).all() and (prompts.coords_xy[2] == -0.5).all()
        assert value_at(LEFT, prompts.coords_xy[0, :-1]).all()
        assert value_at(MIDDLE, prompts.coords_xy[1, :-1]).all()
        assert not prompts.is_box.any()
    values, frequency = np.unique(counts, return_counts=True)
    assert values.tolist() == list(range(2, 10))
    assert np.abs(frequency - 50).max() < 32


# --- all of it -----------------------------------------------------------------------------------


def test_the_seed_decides_everything_and_inputs_stay() -> None:
    boxes, masks, predicted = BOXES.clone(), MASKS.clone(), torch.stack([MIDDLE, LEFT, EMPTY])
    draws = []
    for _ in range(2):
        shared = generator(5)
        first = SAMPLER.first(BOXES, MASKS, torch.tensor([True, False, True]), shared)
        second = SAMPLER.corrections(first, predicted, MASKS, shared)
        draws.append((first, second, SAMPLER.clicks(MASKS, shared)))
    for left, right in zip(*draws, strict=True):
        assert torch.equal(left.coords_xy, right.coords_xy)
        assert torch.equal(left.labels, right.labels)
    assert torch.equal(boxes, BOXES) and torch.equal(masks, MASKS)
    assert not torch.equal(first_stage([True] * 3, 1).coords_xy, first_stage([True] * 3).coords_xy)


def test_an_image_draws_the_same_alone_as_in_a_batch() -> None:
    """Three images of two regions each; every image has a generator of its own."""
    masks = torch.stack([LEFT, MIDDLE, EMPTY, LEFT, MIDDLE | LEFT, LEFT])
    boxes = BOXES.repeat(2, 1)
    predicted = masks.roll(1, dims=0)

    def draw(rows: slice, seeds: range) -> list[Tensor]:
        generators = [generator(seed) for seed in seeds]
        is_box = SAMPLER.draw_is_box(boxes[rows], generators)
        first = SAMPLER.first(boxes[rows], masks[rows], is_box, generators)
        second = SAMPLER.corrections(first, predicted[rows], masks[rows], generators, 5)
        fresh = SAMPLER.clicks(masks[rows], generators, 4)
        return [is_box, *(getattr(p, n) for p in (first, second, fresh) for n in FIELDS)]

    together = draw(slice(0, 6), range(3))
    for image in range(3):
        alone = draw(slice(2 * image, 2 * image + 2), range(image, image + 1))
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one, all_of_them[2 * image : 2 * image + 2])
    assert together[1].shape == (6, 2, 2) and together[4].shape == (6, 7, 2)
    assert together[7].shape == (6, 5, 2)
    others = draw(slice(0, 6), range(7, 10))
    assert not torch.equal(others[1], together[1])


FIELDS = ("coords_xy", "labels", "is_box")


def test_a_box_or_a_click_by_its_probability() -> None:
    sampler = PromptSampler(SIZE, PromptSamplingConfig(box_probability=0.3))
    boxes = torch.zeros(4000, 4)
    assert float(sampler.draw_is_box(boxes, generator()).float().mean()) == pytest.approx(
        0.3, abs=0.03
    )


@pytest.mark.parametrize("count", [1, 8])
def test_the_number_of_clicks_may_be_given(count: int) -> None:
    first = first_stage([True, True, True])
    second = SAMPLER.corrections(first, ~MASKS, MASKS, generator(), count)
    assert second.labels.shape == (3, 2 + count)
    assert SAMPLER.clicks(MASKS, generator(), count).labels.shape == (3, count + 1)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"box_probability": 1.1}, "box_probability: expected 0 to 1, got 1.1"),
        ({"interactive_probability": -0.1}, "interactive_probability: expected 0 to 1, got -0.1"),
        ({"box_noise": -1.0}, "box_noise: expected at least 0, got -1.0"),
        ({"max_box_shift": -1.0}, "max_box_shift: expected at least 0"),
        ({"max_corrections": 0}, "max_corrections: expected at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSamplingConfig(**values)
