"""Overlays: colours where the masks are, labels inside the picture, nothing else touched."""

from __future__ import annotations

from contextlib import ExitStack as DoesNotRaise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_anything import drawing
from tokenize_anything.drawing import PALETTE, draw_regions, pick_colors
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.regions import RegionPredictions


def rectangles(height: int, width: int, boxes: list[list[int]], **fields: Any) -> RegionPredictions:
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return RegionPredictions(masks=masks, iou_scores=np.ones(len(boxes), np.float32), **fields)


def labelled(height: int, width: int, boxes: list[list[int]], caption: str) -> RegionPredictions:
    count = len(boxes)
    return rectangles(
        height,
        width,
        boxes,
        concepts=[["space shuttle"]] * count,
        concept_scores=np.full((count, 1), 0.83),
        captions=[caption] * count,
    )


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def placed(regions: RegionPredictions, max_label_width: int | None = None) -> dict[int, Any]:
    """Region to its label's box and lines, as the drawing lays them out."""
    style = drawing._style_for(*regions.image_size_hw, max_label_width)
    boxes = regions.boxes_xyxy.astype(int)
    areas = regions.masks.sum(axis=(1, 2))
    return {
        row: (np.array([*corner, *np.add(corner, plate.size_wh)]), plate.lines)
        for row, plate, corner in drawing._place_plates(regions, boxes, areas, style)
    }


def text_of(lines: list[tuple[str, str]]) -> str:
    return " ".join("".join(line) for line in lines)


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_fill_is_the_blend_of_image_and_colour(alpha: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    before = image.copy()
    drawn = draw_regions(image, rectangles(37, 53, [[10, 5, 40, 29]]), alpha=alpha)
    inner = np.s_[8:26, 13:37]  # without the outline
    expected = np.rint((1 - alpha) * image[inner] + alpha * np.array(PALETTE[0]))
    np.testing.assert_array_equal(drawn[inner], expected)
    assert drawn[5, 20].tolist() == list(PALETTE[0])  # the outline is opaque
    outside = np.ones((37, 53), bool)
    outside[3:31, 8:42] = False
    np.testing.assert_array_equal(drawn[outside], image[outside])
    np.testing.assert_array_equal(image, before)
    assert (drawn.dtype, drawn.shape) == (np.uint8, image.shape)


def test_small_regions_lie_on_large_ones() -> None:
    small_first = rectangles(53, 61, [[20, 20, 40, 40], [5, 5, 55, 50]])
    drawn = draw_regions(gray(53, 61), small_first, alpha=1.0)
    assert drawn[30, 30].tolist() == list(PALETTE[0])
    assert drawn[10, 10].tolist() == list(PALETTE[1])


def test_holes_have_an_outline_too() -> None:
    regions = rectangles(53, 61, [[5, 5, 55, 50]])
    masks = regions.masks.copy()
    masks[0, 20:35, 20:40] = False
    ring = RegionPredictions(masks=masks, iou_scores=np.ones(1, np.float32))
    drawn = draw_regions(gray(53, 61), ring, alpha=0.0)
    assert drawn[19, 30].tolist() == list(PALETTE[0])
    assert drawn[27, 30].tolist() == [100, 100, 100]


def test_nothing_to_draw_gives_a_copy() -> None:
    image = gray(37, 53)
    for regions in [RegionPredictions.empty(37, 53), labelled(37, 53, [[3, 3, 3, 3]], "an empty")]:
        drawn = draw_regions(image, regions)
        np.testing.assert_array_equal(drawn, image)
        assert not np.shares_memory(drawn, image)


def test_neighbours_get_different_colours() -> None:
    boxes = [[x, y, x + 10, y + 10] for y in range(0, 50, 10) for x in range(0, 100, 10)]
    colors = pick_colors(boxes)
    for row, (x0, y0, _, _) in enumerate(boxes):
        for other, (u0, v0, _, _) in enumerate(boxes[:row]):
            if abs(x0 - u0) <= 10 and abs(y0 - v0) <= 10:
                assert colors[row] != colors[other]
    assert len(set(PALETTE)) == len(PALETTE)
    far_apart = [[100 * n, 0, 100 * n + 1, 1] for n in range(len(PALETTE))]
    assert set(pick_colors(far_apart)) == set(PALETTE)
    assert pick_colors([]) == []


@pytest.mark.parametrize(
    ("image", "alpha", "outcome"),
    [
        (gray(5, 7), 0.5, DoesNotRaise()),
        (gray(7, 5), 0.5, pytest.raises(ValueError, match=r"width \(5, 7\), got \(7, 5\)")),
        (
            gray(5, 7)[..., 0],
            0.5,
            pytest.raises(ValueError, match=r"\(H,W,3\), got shape \(5, 7\)"),
        ),
        (gray(5, 7) / 255, 0.5, pytest.raises(TypeError, match=r"uint8 .*got dtype float64")),
        (gray(5, 7), 1.5, pytest.raises(ValueError, match=r"alpha: expected 0 .*got 1.5")),
        (gray(5, 7), float("nan"), pytest.raises(ValueError, match=r"alpha")),
    ],
)
def test_input_is_checked(image: np.ndarray, alpha: float, outcome: Any) -> None:
    with outcome:
        draw_regions(image, rectangles(5, 7, [[1, 1, 5, 4]]), alpha=alpha)


# --- labels -------------------------------------------------------------------------------------


def test_label_says_concept_score_and_caption() -> None:
    regions = labelled(400, 600, [[200, 150, 400, 300]], "a white rocket")
    ((box, lines),) = placed(regions).values()
    assert text_of(lines) == "space shuttle 0.83 · a white rocket"
    assert "".join(heading for heading, _ in lines) == "space shuttle 0.83"
    assert (box[3], box[0]) == (150 - 2, 200)  # on the upper left corner of its region


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"captions": ["a white rocket"]}, ["a white rocket"]),
        ({"concepts": [["cat", "dog"]], "concept_scores": [[0.5, 0.25]]}, ["cat 0.50"]),
        ({"captions": [""]}, []),
        ({}, []),
    ],
)
def test_labels_say_what_there_is(fields: dict[str, Any], expected: list[str]) -> None:
    regions = rectangles(400, 600, [[200, 150, 400, 300]], **fields)
    assert [text_of(lines) for _, lines in placed(regions).values()] == expected


def test_long_captions_are_wrapped_and_end_in_an_ellipsis() -> None:
    regions = labelled(400, 600, [[200, 150, 400, 300]], "a very long story " * 9)
    ((box, lines),) = placed(regions).values()
    assert len(lines) == 3
    assert lines[-1][1].endswith("…")
    assert box[2] - box[0] <= 0.4 * 600
    ((narrow, _),) = placed(regions, max_label_width=90).values()
    assert narrow[2] - narrow[0] <= 90


def test_words_longer_than_a_line_are_cut() -> None:
    regions = rectangles(400, 600, [[200, 150, 400, 300]], captions=["m" * 400])
    ((box, lines),) = placed(regions).values()
    assert text_of(lines).endswith("m…")
    assert box[2] - box[0] <= 0.4 * 600


@pytest.mark.parametrize(("height", "width"), [(64, 64), (480, 640), (3000, 4000)])
def test_text_grows_with_the_picture(height: int, width: int) -> None:
    regions = labelled(height, width, [[width // 4, height // 2, width // 2, height - 3]], "a")
    ((box, lines),) = placed(regions).values()
    line_height = (box[3] - box[1]) / len(lines)
    assert max(9, 0.03 * height) <= line_height <= max(14, 0.06 * height)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 140), st.data())
def test_labels_stay_inside_any_picture(height: int, width: int, data: Any) -> None:
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
        boxes.append([x0, y0, x1, y1])
    regions = labelled(height, width, boxes, "a white rocket in the sky")
    for box, _ in placed(regions).values():
        assert (box[:2] >= 0).all()
        assert box[2] <= width
        assert box[3] <= height
    assert draw_regions(gray(height, width), regions).shape == (height, width, 3)


def test_labels_do_not_overlap_where_there_is_room() -> None:
    boxes = [[x, y, x + 60, y + 50] for y in (60, 64, 70) for x in (100, 120, 300)]
    layout = placed(labelled(480, 640, boxes, ""))
    plates = np.array([box for box, _ in layout.values()])
    assert len(plates) == len(boxes)
    for row, plate in enumerate(plates):
        low = np.maximum(plate[:2], plates[:row, :2])
        high = np.minimum(plate[2:], plates[:row, 2:])
        assert not (high > low).all(axis=1).any()


def test_labels_stay_near_their_region() -> None:
    boxes = [[x, y, x + 20, y + 20] for y in (200, 222, 244) for x in (200, 222, 244)]
    for row, (plate, _) in placed(labelled(480, 640, boxes, "")).items():
        gaps = np.maximum(boxes[row][:2] - plate[2:], plate[:2] - boxes[row][2:])
        assert gaps.max() <= 3 * (plate[3] - plate[1])


# --- prompts ------------------------------------------------------------------------------------


def test_prompts_are_drawn_where_they_are() -> None:
    prompts = PointPrompts.concatenate(
        [
            PointPrompts.from_points([[20, 30], [60, 40]], [1, 0]),
            PointPrompts.from_boxes([[70.0, 10.0, 95.0, 1e30]]),
        ]
    )
    drawn = draw_regions(gray(67, 101), RegionPredictions.empty(67, 101), prompts=prompts)
    foreground, background = drawn[30, 20].astype(int), drawn[40, 60].astype(int)
    assert foreground[1] > foreground[0] + 100  # green
    assert background[0] > background[1] + 100  # red
    for y, x in [(10, 80), (50, 70), (50, 95)]:
        assert drawn[y, x].tolist() == [255, 255, 255]
    assert drawn[0, 0].tolist() == [100, 100, 100]  # where the padding points lie
    assert drawn[30, 85].tolist() == [100, 100, 100]  # inside the box
