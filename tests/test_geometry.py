"""Boxes, run-length codes, overlaps and outlines against loops over pixels and pycocotools."""

from __future__ import annotations

from contextlib import ExitStack as DoesNotRaise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tokenize_anything import geometry
from tokenize_anything.geometry import (
    decode_rle,
    encode_rle,
    mask_boundary,
    mask_iou,
    masks_to_boxes,
    masks_to_polygons,
    rle_area,
    select_rows,
    to_numpy,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

MASKS = arrays(bool, st.tuples(st.integers(1, 13), st.integers(1, 17)))


def disk(height: int, width: int, center_xy: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (x - center_xy[0]) ** 2 + (y - center_xy[1]) ** 2 <= radius**2


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [[1.5, 2], [3, 4]],
        np.array([[1.5, 2], [3, 4]]),
        torch.tensor([[1.5, 2], [3, 4]], requires_grad=True),
        torch.tensor([[1.5, 2], [3, 4]], dtype=torch.bfloat16),
        [torch.tensor([1.5, 2], requires_grad=True), [3, torch.tensor(4)]],
    ],
    ids=["list", "array", "tensor", "bfloat16", "list of tensors"],
)
def test_to_numpy_reads_lists_arrays_and_tensors(values: Any) -> None:
    np.testing.assert_array_equal(to_numpy("values", values), [[1.5, 2], [3, 4]])


def test_to_numpy_names_ragged_values() -> None:
    with pytest.raises(ValueError, match=r"clicks: expected a rectangular array.*same length"):
        to_numpy("clicks", [[1, 2], [3]])


@pytest.mark.parametrize(
    ("index", "expected", "outcome"),
    [
        (2, [2], DoesNotRaise()),
        (-1, [4], DoesNotRaise()),
        (slice(3, None, -2), [3, 1], DoesNotRaise()),
        ([4, 0, 0], [4, 0, 0], DoesNotRaise()),
        ([True, False, False, True, False], [0, 3], DoesNotRaise()),
        (torch.tensor([1, 3]), [1, 3], DoesNotRaise()),
        ([], [], DoesNotRaise()),
        (5, None, pytest.raises(IndexError)),  # out of range
        ([True, False], None, pytest.raises(IndexError)),  # flags of another length
        ([[0, 1]], None, pytest.raises(IndexError, match=r"expected one axis")),
        (1.5, None, pytest.raises(IndexError)),
    ],
)
def test_select_rows(index: Any, expected: Any, outcome: Any) -> None:
    with outcome:
        np.testing.assert_array_equal(select_rows(index, 5), expected)


# --- boxes --------------------------------------------------------------------------------------


def test_box_formats_are_each_others_inverse() -> None:
    boxes_xyxy = np.array([[[2, 3, 7, 14], [0, 1, 5, 12]]], dtype=np.float32)
    boxes_xywh = xyxy_to_xywh(boxes_xyxy)
    np.testing.assert_array_equal(boxes_xywh, [[[2, 3, 5, 11], [0, 1, 5, 11]]])
    np.testing.assert_array_equal(xywh_to_xyxy(boxes_xywh), boxes_xyxy)
    assert boxes_xywh.dtype == np.float32


@pytest.mark.parametrize(("convert", "name"), [(xyxy_to_xywh, "xyxy"), (xywh_to_xyxy, "xywh")])
def test_box_formats_need_four_numbers(convert: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"boxes_{name}: expected 4 numbers.*\(2, 3\)"):
        convert(np.zeros((2, 3)))
    assert convert([]).shape == (0, 4)


@given(MASKS)
def test_masks_to_boxes_agrees_with_pixel_positions(mask: np.ndarray) -> None:
    rows, columns = np.nonzero(mask)
    expected = [0, 0, 0, 0]
    if rows.size:
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    boxes = masks_to_boxes(np.stack([mask, np.zeros_like(mask)]))
    np.testing.assert_array_equal(boxes, [expected, [0, 0, 0, 0]])
    assert boxes.dtype == np.float32


def test_masks_to_boxes_without_masks() -> None:
    assert masks_to_boxes(np.zeros((0, 5, 7), bool)).shape == (0, 4)


@pytest.mark.parametrize(
    ("masks", "outcome"),
    [
        (np.ones((5, 7)), pytest.raises(ValueError, match=r"masks: expected \(R,H,W\).*\[None\]")),
        (np.ones((2, 0, 7)), pytest.raises(ValueError, match=r"H and W at least 1")),
        (np.full((1, 5, 7), np.nan), pytest.raises(ValueError, match=r"got NaN or infinity")),
        (np.full((1, 5, 7), "x"), pytest.raises(TypeError, match=r"booleans or numbers")),
        (np.full((1, 5, 7), 255, np.uint8), DoesNotRaise()),
    ],
)
def test_masks_are_checked(masks: np.ndarray, outcome: Any) -> None:
    with outcome:
        np.testing.assert_array_equal(masks_to_boxes(masks), [[0, 0, 7, 5]])


# --- run-length codes ---------------------------------------------------------------------------


@given(MASKS)
def test_rle_round_trip_and_area(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    np.testing.assert_array_equal(decode_rle({**rle, "counts": rle["counts"].encode()}), mask)
    assert rle_area(rle) == mask.sum()


@given(MASKS)
def test_rle_has_the_bytes_of_pycocotools(mask: np.ndarray) -> None:
    reference = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask) == {"size": expected["size"], "counts": expected["counts"].decode()}


def test_rle_of_large_runs_has_the_bytes_of_pycocotools() -> None:
    reference = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    mask = np.zeros((1201, 911), bool)
    mask[[0, -1], [0, -1]] = True  # runs from 1 to a million, in both directions
    mask[100:700, 300:309] = True
    expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    rle = encode_rle(mask)
    assert rle["counts"].encode() == expected["counts"]
    np.testing.assert_array_equal(decode_rle(rle), mask)


def test_decode_rle_reads_plain_runs_down_the_columns() -> None:
    mask = decode_rle({"size": [2, 3], "counts": [1, 3, 2]})
    np.testing.assert_array_equal(mask, [[0, 1, 0], [1, 1, 0]])
    assert rle_area({"size": [2, 3], "counts": [1, 3, 2]}) == 3


@pytest.mark.parametrize("read", [decode_rle, rle_area])
@pytest.mark.parametrize(
    ("rle", "outcome"),
    [
        ({"size": [2, 3]}, pytest.raises(ValueError, match=r"'size' and 'counts'")),
        ([1, 2], pytest.raises(ValueError, match=r"expected a mapping")),
        ({"size": [2], "counts": [6]}, pytest.raises(ValueError, match=r"size \[H, W\]")),
        ({"size": [2, 0], "counts": [0]}, pytest.raises(ValueError, match=r"positive integers")),
        ({"size": [2, 3], "counts": [5]}, pytest.raises(ValueError, match=r"2 \* 3 = 6, got 5")),
        (
            {"size": [2, 3], "counts": [7, -1]},
            pytest.raises(ValueError, match=r"at least 0, got -1"),
        ),
        ({"size": [2, 3], "counts": [1.5]}, pytest.raises(TypeError, match=r"list of integers")),
        ({"size": [2, 3], "counts": 6}, pytest.raises(TypeError, match=r"text or a flat list")),
        ({"size": [2, 3], "counts": ""}, pytest.raises(ValueError, match=r"damaged text")),
        ({"size": [2, 3], "counts": "6P"}, pytest.raises(ValueError, match=r"damaged text")),
        ({"size": [2, 3], "counts": "6 "}, pytest.raises(ValueError, match=r"damaged text")),
        ({"size": [2, 3], "counts": "6é"}, pytest.raises(ValueError, match=r"damaged text")),
        ({"size": [2, 3], "counts": "P" * 8 + "0"}, pytest.raises(ValueError, match=r"8 groups")),
        ({"size": [2, 3], "counts": "7"}, pytest.raises(ValueError, match=r"= 6, got 7")),
    ],
)
def test_damaged_rle(read: Any, rle: Any, outcome: Any) -> None:
    with outcome:
        read(rle)


def test_encode_rle_takes_one_mask() -> None:
    with pytest.raises(ValueError, match=r"mask: expected one mask \(H,W\), got shape \(1, 5, 7\)"):
        encode_rle(np.ones((1, 5, 7)))


# --- overlap and outline ------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 200, 2**26])
def test_mask_iou_agrees_with_counting(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(geometry, "_IOU_CHUNK_BYTES", chunk_bytes)
    random = np.random.default_rng(3)
    masks, others = random.random((3, 5, 7)) < 0.5, random.random((2, 5, 7)) < 0.3
    expected = [[(m & o).sum() / (m | o).sum() for o in others] for m in masks]
    result = mask_iou(masks, others)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert result.dtype == np.float32


def test_mask_iou_of_empty_masks_and_stacks() -> None:
    empty, full = np.zeros((1, 5, 7), bool), np.ones((1, 5, 7), bool)
    np.testing.assert_array_equal(mask_iou([empty[0], full[0]], full), [[0], [1]])
    np.testing.assert_array_equal(mask_iou(empty, empty), [[0]])
    np.testing.assert_array_equal(mask_iou(np.ones((1, 1, 1)), np.ones((1, 1, 1))), [[1]])
    assert mask_iou(np.zeros((0, 5, 7)), full).shape == (0, 1)
    with pytest.raises(ValueError, match=r"\(5, 7\) and \(7, 5\)"):
        mask_iou(full, full.transpose(0, 2, 1))


@given(MASKS)
def test_mask_boundary_agrees_with_looking_at_neighbours(mask: np.ndarray) -> None:
    height, width = mask.shape
    expected = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        neighbours = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        expected[y, x] = not all(
            0 <= v < height and 0 <= u < width and mask[v, u] for v, u in neighbours
        )
    np.testing.assert_array_equal(mask_boundary(mask), expected)


def test_masks_to_polygons_traces_the_outer_border_largest_first() -> None:
    mask = np.zeros((11, 17), bool)
    mask[1:3, 1:4] = True
    mask[4:10, 5:16] = True
    mask[6:8, 8:12] = False  # a hole
    single = np.zeros_like(mask)
    single[2, 5] = True
    first, second = masks_to_polygons(np.stack([mask, single]))
    corners = [{tuple(point) for point in outline.tolist()} for outline in first]
    assert corners == [
        {(5, 4), (5, 9), (15, 9), (15, 4)},
        {(1, 1), (1, 2), (3, 2), (3, 1)},
    ]
    assert first[0].dtype == np.float32
    assert second == []


def test_inputs_stay_as_they_are() -> None:
    masks = disk(11, 17, (8, 5), 4)[None].astype(np.uint8)
    before = masks.copy()
    masks_to_boxes(masks), mask_iou(masks, masks), masks_to_polygons(masks)
    encode_rle(masks[0]), mask_boundary(masks[0])
    np.testing.assert_array_equal(masks, before)
