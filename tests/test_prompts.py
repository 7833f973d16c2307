"""Prompts: the rules of labels, padding and sketch points, and the errors at the border."""

from __future__ import annotations

from contextlib import ExitStack as DoesNotRaise
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenize_anything.prompts import PointLabel, PointPrompts, check_mask_size

BOX = [[3.0, 5.0, 11.0, 13.0]]


def raises(message: str) -> Any:
    return pytest.raises(ValueError, match=message)


def assert_prompts(prompts: PointPrompts, coords_xy: Any, labels: Any) -> None:
    np.testing.assert_array_equal(prompts.coords_xy, np.asarray(coords_xy, np.float32))
    np.testing.assert_array_equal(prompts.labels, labels)
    assert (prompts.coords_xy.dtype, prompts.labels.dtype) == (np.float32, np.int64)
    assert prompts.coords_xy.shape == (*np.shape(labels), 2)


def test_labels_have_the_numbers_of_the_published_weights() -> None:
    assert [(label.name, label.value) for label in PointLabel] == [
        ("BACKGROUND", 0), ("FOREGROUND", 1), ("TOP_LEFT", 2), ("BOTTOM_RIGHT", 3), ("PADDING", 4),
    ]  # fmt: skip


# --- making prompts -----------------------------------------------------------------------------


def test_one_click_per_region_gets_one_padding_point() -> None:
    prompts = PointPrompts.from_points([[320.0, 240.0], [7.5, 2.0]])
    assert_prompts(prompts, [[[320, 240], [0, 0]], [[7.5, 2], [0, 0]]], [[1, 4], [1, 4]])
    assert prompts.is_box.tolist() == [False, False]


def test_several_clicks_per_region_get_one_padding_point() -> None:
    prompts = PointPrompts.from_points([[[1, 2], [3, 5], [7, 11]]], [[1, 0, 4]])
    assert_prompts(prompts, [[[1, 2], [3, 5], [7, 11], [0, 0]]], [[1, 0, 4, 4]])
    assert PointPrompts.from_points([[[1, 2], [3, 5]]]).labels.tolist() == [[1, 1, 4]]


def test_labels_of_single_clicks_may_be_flat() -> None:
    assert PointPrompts.from_points([[1, 2], [3, 5]], [0, 1]).labels.tolist() == [[0, 4], [1, 4]]
    assert PointPrompts.from_points([[1, 2]], [[False]]).labels.tolist() == [[0, 4]]


def test_boxes_are_two_corners_without_padding() -> None:
    prompts = PointPrompts.from_boxes([[3.0, 5.0, 11.0, 13.0], [-2.0, 0.0, 1.5, 700.0]])
    coords = [[[3, 5], [11, 13]], [[-2, 0], [1.5, 700]]]
    assert_prompts(prompts, coords, [[2, 3], [2, 3]])
    assert prompts.is_box.tolist() == [True, True]


def test_clicks_follow_the_corners_of_their_box() -> None:
    prompts = PointPrompts.from_boxes(BOX, points=[[[4, 6], [10, 7]]], labels=[[1, 0]])
    assert_prompts(prompts, [[[3, 5], [11, 13], [4, 6], [10, 7]]], [[2, 3, 1, 0]])
    one_click = PointPrompts.from_boxes(BOX, points=[[4, 6]])
    assert_prompts(one_click, [[[3, 5], [11, 13], [4, 6]]], [[2, 3, 1]])


def test_no_region_is_legal() -> None:
    for prompts, num_points in [
        (PointPrompts.from_points([]), 2),
        (PointPrompts.from_points(np.zeros((0, 3, 2))), 4),
        (PointPrompts.from_boxes([]), 2),
        (PointPrompts.from_masks(np.zeros((0, 5, 7))), 10),
        (PointPrompts(np.zeros((0, 3, 2)), np.zeros((0, 3))), 3),
    ]:
        assert_prompts(prompts, np.zeros((0, num_points, 2)), np.zeros((0, num_points)))
        assert len(prompts) == 0
        assert prompts.is_box.shape == (0,)
        prompts.validate_for_image(5, 7)


def test_a_region_of_padding_alone_is_legal() -> None:
    prompts = PointPrompts([[[-1e9, 1e9]]], [[4]])
    prompts.validate_for_image(5, 7)
    assert prompts.is_box.tolist() == [False]


def sketch_points_by_hand(mask: np.ndarray) -> list[list[int]]:
    """The rule in plain Python: every tenth part of the pixels in reading order."""
    pixels = [[x, y] for y, row in enumerate(mask) for x, value in enumerate(row) if value]
    return [pixels[len(pixels) * tenth // 10] for tenth in range(1, 10)]


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_masks_become_nine_points_in_reading_order(num_pixels: int, random: Any) -> None:
    mask = np.zeros((7, 11), bool)
    mask.flat[random.sample(range(mask.size), num_pixels)] = True
    prompts = PointPrompts.from_masks(np.stack([mask, np.ones_like(mask)]))
    expected = [sketch_points_by_hand(mask), sketch_points_by_hand(np.ones((7, 11)))]
    np.testing.assert_array_equal(prompts.coords_xy[:, :9], expected)
    assert_prompts(prompts, prompts.coords_xy, [[1] * 9 + [4]] * 2)


def test_a_line_as_sketch() -> None:
    sketch = np.zeros((13, 50))
    sketch[3, 7:44] = 0.5  # 37 pixels: steps of 3.7
    prompts = PointPrompts.from_sketch(sketch)
    columns = [10, 14, 18, 21, 25, 29, 32, 36, 40]
    assert_prompts(prompts, [[[x, 3] for x in columns] + [[0, 0]]], [[1] * 9 + [4]])
    np.testing.assert_array_equal(PointPrompts.from_masks(sketch).coords_xy, prompts.coords_xy)


@pytest.mark.parametrize(
    "convert", [list, np.array, torch.tensor, lambda x: torch.tensor(x).half()]
)
def test_lists_arrays_and_tensors_are_the_same(convert: Any) -> None:
    coords, labels = [[[3, 5], [7, 11]]], [[1, 4]]
    assert_prompts(PointPrompts(convert(coords), convert(labels)), coords, labels)


def test_tensors_with_gradients_are_read() -> None:
    boxes = torch.tensor(BOX, requires_grad=True)
    assert_prompts(PointPrompts.from_boxes(boxes), [[[3, 5], [11, 13]]], [[2, 3]])


def test_prompts_are_copies_and_read_only() -> None:
    coords, labels = np.ones((1, 1, 2), np.float32), np.ones((1, 1), np.int64)
    prompts = PointPrompts(coords, labels)
    coords[:], labels[:] = 9, 0
    assert_prompts(prompts, [[[1, 1]]], [[1]])
    with pytest.raises(ValueError, match=r"read-only"):
        prompts.coords_xy[0] = 3
    with pytest.raises(FrozenInstanceError):
        prompts.labels = labels  # type: ignore[misc]


# --- putting together and taking apart ----------------------------------------------------------


def test_concatenate_pads_shorter_prompts() -> None:
    clicks, boxes = PointPrompts.from_points([[[1, 2], [5, 7]]]), PointPrompts.from_boxes(BOX)
    prompts = PointPrompts.concatenate([boxes, clicks])
    coords = [[[3, 5], [11, 13], [0, 0]], [[1, 2], [5, 7], [0, 0]]]
    assert_prompts(prompts, coords, [[2, 3, 4], [1, 1, 4]])
    assert prompts.is_box.tolist() == [True, False]
    with raises(r"prompts: expected at least one"):
        PointPrompts.concatenate([])


def test_pad_to() -> None:
    prompts = PointPrompts.from_boxes(BOX)
    assert_prompts(prompts.pad_to(4), [[[3, 5], [11, 13], [0, 0], [0, 0]]], [[2, 3, 4, 4]])
    assert_prompts(prompts.pad_to(2), prompts.coords_xy, prompts.labels)
    with raises(r"num_points: expected at least the 2 points.*got 1"):
        prompts.pad_to(1)


@pytest.mark.parametrize(
    ("index", "rows", "outcome"),
    [
        (1, [1], DoesNotRaise()),
        (-1, [2], DoesNotRaise()),
        (slice(1, 3), [1, 2], DoesNotRaise()),
        (np.array([True, False, True]), [0, 2], DoesNotRaise()),
        ([2, 0], [2, 0], DoesNotRaise()),
        (3, None, pytest.raises(IndexError)),
    ],
)
def test_indexing(index: Any, rows: Any, outcome: Any) -> None:
    prompts = PointPrompts.from_points([[1, 2], [3, 5], [7, 11]], [1, 0, 1])
    with outcome:
        part = prompts[index]
        assert_prompts(part, prompts.coords_xy[rows], prompts.labels[rows])


def test_iteration_gives_one_region_at_a_time() -> None:
    prompts = PointPrompts.from_points([[1, 2], [3, 5]])
    assert [part.coords_xy[0, 0].tolist() for part in prompts] == [[1, 2], [3, 5]]
    assert [len(part) for part in prompts] == [1, 1]


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coords", "labels", "outcome"),
    [
        ([[1, 2]], [[1]], raises(r"coords_xy: expected \(R,N,2\).*\(1, 2\).*from_points")),
        ([[[1, 2, 3]]], [[1]], raises(r"coords_xy: expected \(R,N,2\).*\(1, 1, 3\)")),
        (np.zeros((1, 0, 2)), np.zeros((1, 0)), raises(r"N at least 1")),
        ([[[1, 2]]], [1], raises(r"labels: expected one label per point, \(1, 1\), got \(1,\)")),
        ([[[1, 2]], [[3, np.nan]]], [[1], [4]], raises(r"region 1: expected finite.*nan")),
        ([[[np.inf, 2]]], [[1]], raises(r"region 0: expected finite")),
        ([[[1e300, 2]]], [[1]], raises(r"region 0: expected finite")),  # beyond float32
        ([[[1, 2]]], [[5]], raises(r"labels: expected 0 background.*got 5")),
        ([[[1, 2]]], [[-1]], raises(r"got -1")),
        ([[[1, 2]]], [[0.5]], raises(r"got 0\.5")),
        ([[[1, 2]]], [[np.nan]], raises(r"got nan")),
        ([[[1, 2]]], [[1.0]], DoesNotRaise()),
        ([[["a", 2]]], [[1]], pytest.raises(TypeError, match=r"coords_xy: expected numbers")),
        (None, [[1]], pytest.raises(TypeError, match=r"coords_xy: expected numbers")),
        ([[[1, 2]]], [["a"]], pytest.raises(TypeError, match=r"labels: expected integers")),
        ([[[1, 2]], [[1, 2], [3, 4]]], [[1], [1]], raises(r"coords_xy: expected a rectangular")),
        ([[[1, 2], [3, 4]]], [[2, 1]], raises(r"region 0: expected a box.*\[2, 1\]; reorder")),
        ([[[1, 2], [3, 4]]], [[3, 2]], raises(r"region 0: expected a box as label 2 at point 0")),
        ([[[1, 2]]], [[2]], raises(r"label 3 at point 1")),
        ([[[0, 0], [1, 2], [3, 4]]], [[1, 2, 3]], raises(r"\[1, 2, 3\]")),
        ([[[1, 2], [3, 4], [5, 6]]], [[2, 3, 3]], raises(r"\[2, 3, 3\]")),
        ([[[1, 2], [3, 4], [5, 6]]], [[2, 3, 4]], DoesNotRaise()),
        ([[[3, 2], [1, 4]]], [[2, 3]], raises(r"x0 < x1.*\[3\.0, 2\.0, 1\.0, 4\.0\]; swap")),
        ([[[1, 4], [3, 2]]], [[2, 3]], raises(r"swap its corners")),
        ([[[1, 2], [1, 4]]], [[2, 3]], raises(r"a box with area.*use a click")),
        ([[[1, 4], [3, 4]]], [[2, 3]], raises(r"a box with area")),
        ([[[9, 9], [1, 1]]], [[1, 1]], DoesNotRaise()),  # clicks have no order
    ],
)
def test_constructor_checks(coords: Any, labels: Any, outcome: Any) -> None:
    with outcome:
        PointPrompts(coords, labels)


def test_all_problems_are_told_at_once_but_not_endlessly() -> None:
    with raises(r"region 0: expected finite.*region 1: expected x0 < x1"):
        PointPrompts([[[np.nan, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], [[1, 1], [2, 3]])
    with raises(r"region 4.*; and 2 more"):
        PointPrompts.from_points(np.full((7, 2), np.inf))


@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (lambda: PointPrompts.from_points([1, 2]), raises(r"points.*\(2,\); write \[\[x, y\]\]")),
        (lambda: PointPrompts.from_points([[1, 2, 3]]), raises(r"\(R,2\) or \(R,N,2\)")),
        (lambda: PointPrompts.from_points([[1, 2]], [1, 1]), raises(r"one label per click")),
        (lambda: PointPrompts.from_points([[1, 2]], [2]), raises(r"clicks.*use from_boxes")),
        (lambda: PointPrompts.from_boxes([1, 2, 3, 4]), raises(r"write \[\[x0, y0, x1, y1\]\]")),
        (lambda: PointPrompts.from_boxes([[1, 2, 3]]), raises(r"boxes_xyxy: expected \(R,4\)")),
        (lambda: PointPrompts.from_boxes([[3, 2, 1, 4]]), raises(r"swap its corners")),
        (lambda: PointPrompts.from_boxes(BOX, labels=[1]), raises(r"labels alone")),
        (lambda: PointPrompts.from_boxes(BOX, [[1, 2]] * 2), raises(r"1 regions.*got 2 rows")),
        (lambda: PointPrompts.from_masks(np.zeros((1, 5, 7))), raises(r"got none in mask 0; draw")),
        (lambda: PointPrompts.from_masks(np.zeros(5)), raises(r"masks: expected \(R,H,W\)")),
        (lambda: PointPrompts.from_masks([[np.nan, 1]]), raises(r"masks: expected finite")),
        (lambda: PointPrompts.from_sketch(np.ones((5, 7, 3))), raises(r"sketch: expected \(H,W\)")),
    ],
)
def test_makers_check_their_input(make: Any, outcome: Any) -> None:
    with outcome:
        make()


@pytest.mark.parametrize(
    ("x", "y", "outcome"),
    [
        (0, 0, DoesNotRaise()),
        (11, 7, DoesNotRaise()),
        (
            11.5,
            7,
            raises(r"region 1: point 0 at \(11\.5, 7\.0\) is outside.*width 11 and height 7"),
        ),
        (11, 7.5, raises(r"outside")),
        (-0.5, 3, raises(r"outside")),
        (3, -0.5, raises(r"outside")),
    ],
)
@pytest.mark.parametrize("label", [0, 1])
def test_clicks_must_touch_the_image(x: float, y: float, label: int, outcome: Any) -> None:
    prompts = PointPrompts.from_points([[2.0, 3.0], [x, y]], [1, label])
    with outcome:
        prompts.validate_for_image(height=7, width=11)


@pytest.mark.parametrize(
    ("box", "outcome"),
    [
        ([-5, -5, 30, 30], DoesNotRaise()),  # sticks out on every side
        ([10.5, 6.5, 30, 30], DoesNotRaise()),
        ([-5, -5, 0.5, 0.5], DoesNotRaise()),
        ([11, 0, 13, 5], raises(r"region 1: box \[11\.0, 0\.0, 13\.0, 5\.0\] does not overlap")),
        ([0, 7, 5, 9], raises(r"does not overlap")),
        ([-5, 0, 0, 5], raises(r"does not overlap")),
        ([0, -5, 5, 0], raises(r"does not overlap")),
    ],
)
def test_boxes_must_overlap_the_image(box: list[float], outcome: Any) -> None:
    clicks = PointPrompts.from_points([[2, 3]])
    prompts = PointPrompts.concatenate([clicks, PointPrompts.from_boxes([box])])
    with outcome:
        prompts.validate_for_image(height=7, width=11)


@pytest.mark.parametrize(
    ("shape", "outcome"),
    [
        ((7, 11), DoesNotRaise()),
        ((3, 7, 11), DoesNotRaise()),
        ((11, 7), raises(r"height 7 and width 11, got shape \(11, 7\); resize.*\(11, 7\)")),
        ((2, 7, 5), raises(r"got shape \(2, 7, 5\)")),
        ((7, 11, 3), raises(r"expected the image's size")),
        ((1, 1, 7, 11), raises(r"expected the image's size")),
    ],
)
def test_masks_must_have_the_size_of_the_image(shape: tuple[int, ...], outcome: Any) -> None:
    with outcome:
        check_mask_size(np.ones(shape), height=7, width=11)
