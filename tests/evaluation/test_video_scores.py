"""J and F against loops over pixels and distances, and the benchmark's rules."""

import math

import cv2
import numpy as np
import pytest

from tokenize_anything.evaluation.video_scores import (
    FrameScores,
    boundary_pixels,
    boundary_similarity,
    count_objects,
    region_similarity,
    score_clip,
    sequence_statistics,
    summarize,
)

HEIGHT, WIDTH = 47, 67


def plain_boundary(mask):
    """Pixel by pixel: unlike its right, lower or lower right neighbour, where there is one."""
    height, width = mask.shape
    points = []
    for y in range(height):
        for x in range(width):
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [(r, c) for r, c in neighbours if r < height and c < width]
            if any(mask[r, c] != mask[y, x] for r, c in inside):
                points.append((y, x))
    return points


def plain_f(truth, predicted, tolerance=0.008):
    """Share of boundary points with a partner near enough, by distances between all pairs."""
    limit = math.ceil(tolerance * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    wanted, found = plain_boundary(truth), plain_boundary(predicted)
    if not wanted or not found:
        return float(not wanted and not found)
    gaps = np.array([[(a - c) ** 2 + (b - d) ** 2 for c, d in found] for a, b in wanted])
    recall = (gaps.min(axis=1) <= limit**2).mean()
    precision = (gaps.min(axis=0) <= limit**2).mean()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def shape(kind, shift=0):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if kind == "disc":
        cv2.circle(mask, (24 + shift, 21), 11, 1, -1)
    elif kind == "box at the border":
        mask[30:, 50 - shift :] = 1
    elif kind == "diamond":
        corners = [(30, 4 + shift), (50, 22 + shift), (30, 40 + shift), (12, 22 + shift)]
        cv2.fillPoly(mask, [np.array(corners, np.int32)], 1)
    else:
        mask[5 + shift : 9 + shift, 3:60] = 1
        mask[5:40, 20:23] = 1
    return mask.astype(bool)


KINDS = ("disc", "box at the border", "diamond", "cross")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0, 1, 2, 3, 5])
def test_shifted_shapes_score_as_the_plain_way(kind, shift):
    truth, predicted = shape(kind), shape(kind, shift)
    both, either = (truth & predicted).sum(), (truth | predicted).sum()
    assert region_similarity(truth, predicted) == pytest.approx(both / either, abs=1e-12)
    assert boundary_similarity(truth, predicted) == pytest.approx(
        plain_f(truth, predicted), abs=1e-12
    )
    if shift == 0:
        assert region_similarity(truth, predicted) == boundary_similarity(truth, predicted) == 1.0


def test_random_masks_score_as_the_plain_way():
    rng = np.random.default_rng(3)
    for tolerance in (0.008, 0.05):
        truth, predicted = rng.random((2, 13, 17)) < 0.2
        assert boundary_similarity(truth, predicted, tolerance=tolerance) == pytest.approx(
            plain_f(truth, predicted, tolerance), abs=1e-12
        )


def test_boundary_lies_right_and_below_and_never_beyond_the_picture():
    mask = np.zeros((7, 9), bool)
    mask[2:5, 3:] = True  # touches the right border
    expected = np.zeros_like(mask)
    for y, x in plain_boundary(mask):
        expected[y, x] = True
    np.testing.assert_array_equal(boundary_pixels(mask), expected)
    assert not boundary_pixels(np.ones((7, 9), bool)).any()


def test_empty_masks():
    empty, full = np.zeros((5, 7), bool), np.zeros((5, 7), bool)
    full[1:3, 2:4] = True
    assert region_similarity(empty, empty) == boundary_similarity(empty, empty) == 1.0
    assert region_similarity(full, empty) == boundary_similarity(full, empty) == 0.0
    assert region_similarity(empty, full) == boundary_similarity(empty, full) == 0.0


def test_chance_gives_a_third():
    """Two fair coins per pixel: a quarter in both masks, three quarters in one."""
    truth, predicted = np.random.default_rng(0).random((2, 400, 300)) < 0.5
    assert region_similarity(truth, predicted) == pytest.approx(1 / 3, abs=0.01)


def test_recall_and_decay():
    values = [1.0, 0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1]
    found = sequence_statistics(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.recall == 3 / 8
    # Quarter borders of 8 frames: 1, 2.75, 4.5, 6.25, 8, rounded to 1, 3, 5, 6, 8, both ends in.
    assert found.decay == pytest.approx(np.mean(values[:3]) - np.mean(values[5:]))
    assert sequence_statistics([0.7]).decay == 0.0


def test_first_and_last_frame_do_not_count_and_void_is_background():
    truth = [np.zeros((11, 13), np.uint8) for _ in range(4)]
    for frame in truth:
        frame[2:6, 3:9] = 1
        frame[8:, :4] = 255
    predicted = [np.zeros_like(truth[0]), truth[1].copy(), truth[2].copy(), np.zeros_like(truth[0])]
    for frame in predicted:
        frame[frame == 255] = 0
    (scores,) = score_clip("clip", truth, predicted)
    assert (scores.clip, scores.object_id, scores.j, scores.f) == ("clip", 1, (1, 1), (1, 1))


def test_objects_come_from_the_first_frame_and_missing_ones_are_empty():
    truth = [np.zeros((11, 13), np.uint8) for _ in range(3)]
    for frame in truth:
        frame[1:4, 1:4], frame[6:9, 6:9] = 1, 2
    predicted = [np.where(frame == 1, 1, 0).astype(np.uint8) for frame in truth]
    first, second = score_clip("clip", truth, predicted)
    assert (first.j, second.j, second.f) == ((1.0,), (0.0,), (0.0,))
    assert count_objects(np.array([[0, 255, 3]], np.uint8)) == 3


def test_summary_is_a_mean_over_objects_of_means_over_frames():
    scores = [
        FrameScores("a", 1, (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)),
        FrameScores("b", 1, (0.0,), (0.25,)),
    ]
    found = dict(summarize(scores))
    assert (found["J"], found["F"], found["J&F"]) == (50.0, 37.5, 43.75)
    assert (found["J recall"], found["F recall"], found["J decay"]) == (50.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: region_similarity(m, m[:-1]), r"two of one size \(H,W\), got \(5, 7\)"),
        (lambda m: score_clip("c", [m] * 2, [m] * 2), "c: expected at least 3 frames"),
        (lambda m: score_clip("c", [m] * 3, [m] * 4), "got 3 and 4"),
        (lambda m: score_clip("c", [m] * 3, [m + 2] * 3), r"objects 1\.\.1, .* got 3"),
        (lambda m: sequence_statistics([]), "at least one frame"),
        (lambda m: list(summarize([])), "at least one object"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((5, 7), np.uint8))
