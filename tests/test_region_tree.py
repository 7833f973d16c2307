"""Which region is part of which: the parents of a record through selecting, joining and files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.test_regions import make
from tokenize_anything.regions import RegionPredictions


def chain(parents: list[int]) -> RegionPredictions:
    count = len(parents)
    masks = np.ones((count, 2, 3), bool)
    return RegionPredictions(masks=masks, iou_scores=np.arange(count), parent_index=parents)


@pytest.mark.parametrize(
    ("parents", "index", "expected"),
    [
        ([-1, 0, 1, 2, 0], slice(None), [-1, 0, 1, 2, 0]),
        ([-1, 0, 1, 2, 0], [3, 1], [1, -1]),  # 3 is in 2, which is in 1
        ([-1, 0, 1, 2, 0], [3, 4, 0], [2, 2, -1]),
        ([-1, 0, 1, 2, 0], [2, 3, 4], [-1, 0, -1]),
        ([1, 2, -1], [0, 0, 2, 2], [2, 2, -1, -1]),  # twice selected: the first place
        ([1, 2, -1], np.array([True, False, True]), [1, -1]),
        ([1, 2, -1], 0, [-1]),
        ([1, 2, -1], [], []),
    ],
)
def test_selected_regions_hang_on_to_their_nearest_ancestor(
    parents: list[int], index: Any, expected: list[int]
) -> None:
    regions = chain(parents)
    assert regions[index].parent_index.tolist() == expected
    assert regions.parent_index.tolist() == parents
    assert regions.parent_index.dtype == np.int64


def test_joined_regions_keep_their_own_parents() -> None:
    joined = RegionPredictions.concatenate(
        [chain([-1, 0]), chain([]), chain([2, -1, 1]), chain([-1])]
    )
    assert joined.parent_index.tolist() == [-1, 0, 4, -1, 3, -1]


def test_regions_have_no_parents_by_default() -> None:
    assert make().parent_index.tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([-1, 3, 0], r"parent_index must lie in -1\.\.2, got -1\.\.3"),
        ([-2, 0, 0], r"parent_index must lie in -1\.\.2, got -2\.\.0"),
        ([-1, 1, 0], r"parent_index must not go in circles, got one from region 1"),
        ([1, 2, 0], r"circles, got one from region 0"),
        ([0.0, -1, -1], r"parent_index must be int64, got float64"),
        ([-1], r"parent_index must have shape \(3\), got \(1,\)"),
    ],
)
def test_bad_trees(parents: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(parent_index=np.array(parents))


def test_json_keeps_the_tree_and_reads_files_without_one() -> None:
    regions = make(parent_index=[2, -1, 1])
    text = regions.to_json()
    assert RegionPredictions.from_json(text).parent_index.tolist() == [2, -1, 1]
    content = json.loads(text)
    for region in content["regions"]:
        del region["parent_index"]
    older = RegionPredictions.from_json(json.dumps(content))
    assert older.parent_index.tolist() == [-1, -1, -1]
