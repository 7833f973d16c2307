"""Options of the automatic mode, its clicks and its crops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenize_anything.everything_config import (
    EverythingConfig,
    PhotoView,
    check_everything_config,
    plan_views,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points_per_side": 0}, r"points_per_side must be a whole number from 1, got 0"),
        ({"points_per_side": 2.0}, r"points_per_side must be a whole number from 1, got 2\.0"),
        ({"crop_layers": -1}, r"crop_layers must be a whole number from 0, got -1"),
        ({"crop_layers": True}, r"crop_layers must be a whole number from 0, got True"),
        ({"crop_overlap": 1.0}, r"crop_overlap must be less than 1, or every crop is the whole"),
        ({"crop_overlap": -0.1}, r"crop_overlap must lie in 0\.\.1, got -0\.1"),
        ({"crop_points_divisor": 0}, r"crop_points_divisor must be a whole number from 1, got 0"),
        ({"min_iou": 1.5}, r"min_iou must lie in 0\.\.1, got 1\.5"),
        ({"min_iou": "0.5"}, r"min_iou must lie in 0\.\.1, got '0\.5'"),
        ({"min_stability": float("nan")}, r"min_stability must lie in 0\.\.1, got nan"),
        ({"stability_offset": -1}, r"stability_offset must be a number from 0, got -1"),
        ({"stability_offset": float("inf")}, r"stability_offset must be a number from 0, got inf"),
        ({"max_overlap": 2}, r"max_overlap must lie in 0\.\.1, got 2"),
        ({"min_region_area": -1}, r"min_region_area must be a whole number from 0, got -1"),
        ({"min_containment": None}, r"min_containment must lie in 0\.\.1, got None"),
        ({"max_regions": 0}, r"max_regions must be a whole number from 1, got 0"),
        ({"points_per_batch": 0}, r"points_per_batch must be a whole number from 1, got 0"),
        ({"min_iou": 3, "max_regions": 0}, r"max_regions must be .* got 0; min_iou must lie"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^EverythingConfig: .*{message}"):
        EverythingConfig(**changes)


def test_the_usual_options() -> None:
    assert check_everything_config(None) == EverythingConfig()
    assert EverythingConfig().num_points == 256
    with pytest.raises(TypeError, match=r"config: expected an EverythingConfig, got dict; write"):
        check_everything_config({"points_per_side": 3})


def test_clicks_are_the_middles_of_cells() -> None:
    """3 x 3 cells of 5 x 2 pixels: the middle of 5 pixels is pixel 2."""
    points = PhotoView((0, 0, 15, 6), points_per_side=3).grid_points()
    expected = [(x, y) for y in (0.5, 2.5, 4.5) for x in (2, 7, 12)]
    np.testing.assert_allclose(points, expected)
    dense = PhotoView((7, 8, 10, 10), points_per_side=11).grid_points()
    assert dense.min() == 0.0  # of its own pixels, whatever the place in the photo
    assert (dense <= [3, 2]).all()


def test_points_per_layer() -> None:
    config = EverythingConfig(points_per_side=7, crop_layers=3, crop_points_divisor=2)
    assert [config.points_of_layer(layer) for layer in range(4)] == [7, 3, 1, 1]
    assert config.num_points == 49 + 4 * 9 + 16 + 64


@pytest.mark.parametrize(("height", "width"), [(41, 67), (67, 41), (8, 9), (200, 4)])
@pytest.mark.parametrize("overlap", [0.0, 0.34, 0.9])
def test_crops_cover_the_photo_and_overlap(height: int, width: int, overlap: float) -> None:
    config = EverythingConfig(points_per_side=5, crop_layers=2, crop_overlap=overlap)
    views = plan_views(height, width, config)
    assert [view.layer for view in views] == [0] + [1] * 4 + [2] * 16
    assert views[0].box_xyxy == (0, 0, width, height)
    assert views[0].cut_sides(height, width) == (False,) * 4
    for layer in (1, 2):
        covered = np.zeros((height, width), int)
        sizes = set()
        for view in views:
            if view.layer == layer:
                x0, y0, x1, y1 = view.box_xyxy
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height
                sizes.add(view.size_hw)
                covered[y0:y1, x0:x1] += 1
        assert covered.min() >= 1
        assert len(sizes) == 1
    first, last = views[1], views[4]
    if overlap < 0.9:
        assert first.cut_sides(height, width) == (False, False, True, True)
        assert last.cut_sides(height, width) == (True, True, False, False)
    assert first.points_per_side == 2


def test_overlap_is_a_share_of_the_short_side() -> None:
    config = EverythingConfig(crop_layers=1, crop_overlap=0.25)
    _, left, right, *_ = plan_views(40, 100, config)
    assert left.box_xyxy[2] - right.box_xyxy[0] == 10  # a quarter of 40


def test_layers_stop_where_crops_have_no_pixels() -> None:
    views = plan_views(3, 50, EverythingConfig(crop_layers=4))
    assert {view.layer for view in views} == {0, 1}
