"""Stability, duplicates, specks, holes and parts of masks against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenize_anything.geometry import mask_iou
from tokenize_anything.mask_filtering import (
    box_iou,
    clean_mask,
    find_parents,
    pairwise_mask_iou,
    pick_distinct,
    pick_regions,
    stability_scores,
)

HEIGHT, WIDTH = 11, 13


def blobs(count: int, seed: int = 0) -> np.ndarray:
    """Rectangles of many sizes; the last one is empty."""
    random = np.random.default_rng(seed)
    masks = np.zeros((count, HEIGHT, WIDTH), bool)
    for mask in masks[:-1]:
        (y0, y1), (x0, x1) = (np.sort(random.integers(0, size, 2)) for size in (HEIGHT, WIDTH))
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return masks


def test_stability_is_the_iou_of_two_thresholds() -> None:
    logits = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(1))
    logits[4] = -9
    for offset in (0.0, 0.7):
        found = stability_scores(logits, offset)
        for mask, score in zip(logits.numpy(), found.tolist(), strict=True):
            outer = (mask > -offset).sum()
            assert score == pytest.approx((mask > offset).sum() / outer if outer else 0.0)


def test_mask_iou_of_tensors_is_that_of_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = blobs(17)
    expected = mask_iou(masks, masks)
    np.testing.assert_allclose(pairwise_mask_iou(torch.from_numpy(masks)), expected, atol=1e-6)
    monkeypatch.setattr("tokenize_anything.mask_filtering._PIXELS_AT_ONCE", 5)
    np.testing.assert_allclose(pairwise_mask_iou(torch.from_numpy(masks)), expected, atol=1e-6)


def test_box_iou() -> None:
    boxes = np.array([[0, 0, 4, 3], [2, 1, 6, 3], [7, 7, 8, 9], [1, 1, 1, 1.0]])
    expected = np.diag([1.0, 1.0, 1.0, 0.0])
    expected[0, 1] = expected[1, 0] = 4 / (12 + 8 - 4)
    np.testing.assert_allclose(box_iou(boxes), expected)


def test_distinct_rows_drop_later_ones_but_not_through_dropped_ones() -> None:
    is_same = np.eye(5, dtype=bool)
    is_same[[0, 1], [1, 2]] = is_same[[1, 2], [0, 1]] = True  # 0 ~ 1 ~ 2, not 0 ~ 2
    is_same[3, 4] = is_same[4, 3] = True
    assert pick_distinct(is_same).tolist() == [0, 2, 3]
    assert pick_distinct(np.zeros((0, 0), bool)).tolist() == []


def drawn(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


@pytest.mark.parametrize(
    ("before", "min_area", "after"),
    [
        # A speck, a part that touches by a corner, a hole, and a bay that is no hole.
        (
            drawn("####...#", "#.##....", "####....", "#...#...", "#.##.#..", "........"),
            3,
            drawn("####....", "####....", "####....", "#...#...", "#.##.#..", "........"),
        ),
        (drawn("#.#", "...", "#.#"), 2, drawn("...", "...", "...")),
        (drawn("####", "#..#", "#..#", "####"), 4, drawn("####", "#..#", "#..#", "####")),
        (drawn("####", "#..#", "#..#", "####"), 5, drawn("####", "####", "####", "####")),
        (drawn("###", "###"), 4, drawn("###", "###")),
        (drawn("...", "..."), 4, drawn("...", "...")),
        (drawn("#..", ".#."), 1, drawn("#..", ".#.")),  # nothing is smaller than a pixel
    ],
)
def test_specks_and_holes(before: np.ndarray, min_area: int, after: np.ndarray) -> None:
    given = before.copy()
    np.testing.assert_array_equal(clean_mask(before, min_area), after)
    np.testing.assert_array_equal(before, given)


def test_parents_are_the_smallest_masks_around() -> None:
    masks = np.zeros((6, 20, 20), bool)
    masks[0, 2:18, 2:18] = True
    masks[1, :, :] = True
    masks[2, 3:8, 3:8] = True
    masks[3, 4:6, 4:6] = True
    masks[4, 4:6, 6:10] = True  # half in mask 2, all in mask 0
    masks[5, 3:8, 3:8] = True  # equal to mask 2: neither is part of the other
    areas = masks.sum(axis=(1, 2))
    ious = mask_iou(masks, masks)
    assert find_parents(areas, ious, 1.0).tolist() == [1, -1, 0, 2, 0, 0]
    assert find_parents(areas, ious, 0.5).tolist() == [1, -1, 0, 2, 2, 0]
    assert find_parents(areas[:0], ious[:0, :0], 0.9).tolist() == []


def test_parents_equal_a_plain_search() -> None:
    masks = blobs(40, seed=3)[:-1]
    areas = masks.sum(axis=(1, 2))
    found = find_parents(areas, mask_iou(masks, masks), 0.8)
    for row, mask in enumerate(masks):
        around = [
            (areas[other], other)
            for other, larger in enumerate(masks)
            if areas[other] > areas[row] and (mask & larger).sum() >= 0.8 * areas[row]
        ]
        assert found[row] == (min(around)[1] if around else -1)


def test_regions_are_distinct_filled_and_best_first() -> None:
    masks = blobs(30, seed=5)
    scores = np.random.default_rng(1).integers(0, 6, 30) / 5  # with ties
    rows, parents = pick_regions(masks, scores, 0.4, 0.9)
    kept: list[int] = []
    for row in sorted(range(30), key=lambda row: (-scores[row], row)):
        overlaps = mask_iou(masks[[row]], masks[kept]) if kept else np.zeros(1)
        if masks[row].any() and overlaps.max() <= 0.4:
            kept.append(row)
    assert rows.tolist() == kept
    assert parents.shape == rows.shape
    assert (masks[rows].sum(axis=(1, 2))[parents[parents >= 0]] > 0).all()
