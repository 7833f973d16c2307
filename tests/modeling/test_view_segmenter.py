"""The network that outlines one region in a view: prompts as maps, scores, independence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny import randomize, tiny_config
from tokenize_anything.config import PointLabel, TAPConfig
from tokenize_anything.modeling import TAP, ViewSegmenter
from tokenize_anything.modeling.view_encoder import pool_levels
from tokenize_anything.modeling.view_segmenter import CLICK_RADIUS, draw_prompt_maps
from tokenize_anything.training.part_training import copy_shared

SIDE = 96
CONFIG = tiny_config(view_dim=5, view_size=SIDE)


@pytest.fixture(scope="module")
def segmenter() -> ViewSegmenter:
    return randomize(ViewSegmenter(CONFIG)).eval()


def pixels_and_prompts(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    coords = SIDE * torch.rand(count, 4, 2, generator=generator)
    coords[0, :2] = torch.tensor([[11.25, 20.5], [70.0, 41.75]])
    labels = torch.tensor([[2, 3, 1, 0], [1, 4, 4, 4], [0, 1, 1, 4]])[torch.arange(count) % 3]
    return pixels, coords, labels


def test_maps_equal_a_plain_computation() -> None:
    """Pixel by pixel: the covered share of each in the box, the spot of the nearest click."""
    _, coords, labels = pixels_and_prompts(3)
    maps = draw_prompt_maps(coords, labels, SIDE).numpy()
    expected = np.zeros_like(maps)
    for row in range(3):
        is_box = labels[row, 0] == PointLabel.TOP_LEFT
        (x0, y0), (x1, y1) = coords[row, :2].tolist()
        for y in range(SIDE):
            for x in range(SIDE):
                if is_box:
                    wide = max(0, min(x + 1, x1) - max(x, x0))
                    expected[row, 0, y, x] = wide * max(0, min(y + 1, y1) - max(y, y0))
                for place, label in ((1, 1), (2, 0)):
                    near = [
                        math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * CLICK_RADIUS**2))
                        for (cx, cy), kind in zip(
                            coords[row].tolist(), labels[row].tolist(), strict=True
                        )
                        if kind == label
                    ]
                    expected[row, place, y, x] = max(near, default=0.0)
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    assert expected[0].any(axis=(1, 2)).all() and not expected[1, 0].any()


def test_one_point_is_enough() -> None:
    maps = draw_prompt_maps(torch.tensor([[[7.0, 9.0]]]), torch.tensor([[1]]), 32)
    assert maps[0, 1].argmax() == 9 * 32 + 7 and not maps[0, [0, 2]].any()


def test_shapes_and_types(segmenter: ViewSegmenter) -> None:
    pixels, coords, labels = pixels_and_prompts(2)
    outputs = segmenter(pixels, coords, labels)
    assert outputs.mask_logits.shape == (2, SIDE // 2, SIDE // 2)
    assert outputs.iou_scores.shape == (2,) and outputs.iou_scores.dtype == torch.float32
    assert outputs.semantic_embeddings.shape == (2, CONFIG.semantic_dim)


def test_a_view_alone_equals_a_view_in_a_batch(segmenter: ViewSegmenter) -> None:
    pixels, coords, labels = pixels_and_prompts(7)
    together = segmenter(pixels, coords, labels)
    for row in range(7):
        alone = segmenter(*(values[row : row + 1] for values in (pixels, coords, labels)))
        for name in ("mask_logits", "iou_scores", "semantic_embeddings"):
            torch.testing.assert_close(
                getattr(alone, name)[0], getattr(together, name)[row], rtol=1e-4, atol=1e-4
            )


def test_padding_says_nothing(segmenter: ViewSegmenter) -> None:
    pixels, coords, labels = pixels_and_prompts(3)
    padded = F.pad(coords, (0, 0, 0, 2), value=13.0), F.pad(labels, (0, 2), value=4)
    expected = segmenter(pixels, coords, labels)
    found = segmenter(pixels, *padded)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_kind_of_prompt_is_heard(segmenter: ViewSegmenter, place: int) -> None:
    pixels, coords, labels = pixels_and_prompts(1)
    moved = coords.clone()
    moved[0, [0, 2, 3][place]] += torch.tensor([5.0, 7.0])
    outputs = [segmenter(pixels, each, labels).mask_logits for each in (coords, moved)]
    assert not torch.allclose(*outputs)


def test_tokens_of_the_mask_are_means_over_it(segmenter: ViewSegmenter) -> None:
    """Of one half, and for the last map of the whole."""
    levels = [torch.randn(2, dim, side, side) for dim, side in ((20, 12), (40, 6), (40, 3))]
    masks = torch.ones(2, SIDE // 2, SIDE // 2)
    masks[:, :, SIDE // 4 :] = 0  # the right half is not in the mask
    pooled = pool_levels([torch.zeros(0), torch.zeros(0), *levels], masks)
    expected = [levels[0][..., :6].mean((2, 3)), levels[1][..., :3].mean((2, 3))]
    expected.append(levels[2].mean((2, 3)))
    torch.testing.assert_close(pooled, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_a_mask_of_one_pixel_is_a_mean_too() -> None:
    """Of the cell it lies in, however little of that it covers."""
    levels = [torch.randn(1, dim, side, side) for dim, side in ((20, 12), (40, 6), (40, 3))]
    masks = torch.zeros(1, SIDE, SIDE)
    masks[0, 17, 40] = 1
    pooled = pool_levels([torch.zeros(0), torch.zeros(0), *levels], masks)
    torch.testing.assert_close(pooled[:, :20], levels[0][..., 17 // 8, 40 // 8])
    torch.testing.assert_close(pooled[:, 20:60], levels[1][..., 17 // 16, 40 // 16])


def test_two_looks_are_the_mean_of_plain_and_mirrored(segmenter: ViewSegmenter) -> None:
    pixels, coords, labels = pixels_and_prompts(3)
    coords = coords.round()
    flipped = coords.clone()
    flipped[..., 0] = SIDE - 1 - coords[..., 0]  # clicks lie on pixels
    edges = SIDE - coords[0, :2, 0]  # corners lie between them
    flipped[0, :2, 0] = edges.flip(0)
    found, plain = segmenter(pixels, coords, labels, twice=True), segmenter(pixels, coords, labels)
    mirrored = segmenter(pixels.flip(-1), flipped, labels)
    assert not torch.allclose(mirrored.mask_logits.flip(-1), plain.mask_logits)
    logits = (plain.mask_logits + mirrored.mask_logits.flip(-1)) / 2
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.mask_logits, logits, **close)
    for name in ("iou_scores", "semantic_embeddings"):
        mean = (getattr(plain, name) + getattr(mirrored, name)) / 2
        torch.testing.assert_close(getattr(found, name), mean, **close)


@pytest.fixture(scope="module")
def corrector() -> ViewSegmenter:
    return randomize(ViewSegmenter(tiny_config(view_dim=5, view_size=SIDE, view_corrects=True)))


def test_a_mask_to_correct_is_heard(corrector: ViewSegmenter) -> None:
    """An empty one is none; in the second look it is mirrored; alone, it is as in a batch."""
    network, asked = corrector.eval(), pixels_and_prompts(3)
    masks = torch.zeros(3, SIDE, SIDE)
    without = network(*asked)
    torch.testing.assert_close(network(*asked, masks).mask_logits, without.mask_logits)
    masks[1, 7:40, 11:30] = 1
    shown = network(*asked, masks)
    torch.testing.assert_close(shown.mask_logits[::2], without.mask_logits[::2])
    assert not torch.allclose(shown.mask_logits[1], without.mask_logits[1])
    assert not torch.allclose(shown.iou_scores[1], without.iou_scores[1])
    alone = network(*(values[1:2] for values in (*asked, masks)))
    torch.testing.assert_close(alone.mask_logits[0], shown.mask_logits[1], rtol=1e-4, atol=1e-4)
    pixels, coords, labels = (values[1:2].clone() for values in asked)  # a click and pads
    flipped = coords.clone()
    flipped[..., 0] = SIDE - 1 - coords[..., 0]
    mirrored = network(pixels.flip(-1), flipped, labels, masks[1:2].flip(-1)).mask_logits
    expected = (shown.mask_logits[1:2] + mirrored.flip(-1)) / 2
    found = network(pixels, coords, labels, masks[1:2], twice=True)
    torch.testing.assert_close(found.mask_logits, expected, rtol=1e-4, atol=1e-4)


def test_one_that_does_not_correct_is_not_shown_masks(segmenter: ViewSegmenter) -> None:
    asked = pixels_and_prompts(3)
    shown = segmenter(*asked, torch.ones(3, SIDE, SIDE))
    torch.testing.assert_close(shown.mask_logits, segmenter(*asked).mask_logits)


def test_what_two_networks_share_is_copied(
    segmenter: ViewSegmenter, corrector: ViewSegmenter
) -> None:
    """To more maps and to fewer; the mask says nothing before training."""
    asked, masks = pixels_and_prompts(3), torch.rand(3, SIDE, SIDE)
    expected = segmenter(*asked).mask_logits
    larger = randomize(ViewSegmenter(tiny_config(view_dim=5, view_size=SIDE, view_corrects=True)))
    copy_shared(larger.eval(), segmenter)
    torch.testing.assert_close(larger(*asked, masks).mask_logits, expected)
    smaller = randomize(ViewSegmenter(CONFIG)).eval()
    copy_shared(smaller, larger)
    torch.testing.assert_close(smaller(*asked).mask_logits, expected)


def test_models_have_one_only_if_they_say_so() -> None:
    assert TAP(tiny_config()).view_segmenter is None
    keys = {key.partition(".")[0] for key in TAP(CONFIG).state_dict()}
    assert "view_segmenter" in keys
    assert TAPConfig.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"view_dim": -1}, "view_dim must be a whole number of at least 0, got -1"),
        ({"view_dim": 1.5}, "view_dim must be a whole number of at least 0, got 1.5"),
        ({"view_size": 100}, "view_size must be a multiple of 32, got 100"),
        ({"view_size": 0}, "view_size must be a positive integer, got 0"),
        ({"view_corrects": 1}, "view_corrects must be False where view_dim is 0, and True or"),
        ({"view_dim": 0, "view_corrects": True}, "view_corrects must be False where view_dim is 0"),
    ],
)
def test_bad_sizes(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**values)
