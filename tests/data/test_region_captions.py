"""Which texts describe which box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokenize_anything.data.region_captions import (
    CaptionedRegion,
    captioned_regions,
    draw_texts,
    name_to_caption,
)
from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable

TEXTS = TextTable(("dog", "a view", "umbrella"), np.array([1, 1, 1]))
BOX, OTHER_BOX = (1.0, 2.0, 5.0, 7.0), (0.0, 0.0, 11.0, 13.0)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dog", "a dog"),
        ("umbrella", "an umbrella"),
        ("Apple", "an Apple"),
        ("shoes", "shoes"),
        ("glass", "a glass"),
        ("octopus", "an octopus"),
        ("hair", "hair"),
    ],
)
def test_names_get_their_article(name: str, expected: str) -> None:
    assert name_to_caption(name) == expected


def test_captions_go_before_names_and_boxes_are_merged() -> None:
    regions = (
        RegionAnnotation(BOX, None, 0),
        RegionAnnotation(OTHER_BOX, None, 1, ("a view",), is_whole_image=True),
        RegionAnnotation(OTHER_BOX, None, 2, (" two\n  words ", "more"), is_whole_image=True),
        RegionAnnotation((3.0, 3.0, 9.0, 9.0)),  # neither name nor caption
        RegionAnnotation(BOX, None, 2),
    )
    records = [
        ImageRecord(Path("a.jpg"), 13, 11, ()),
        ImageRecord(Path("b.jpg"), 13, 11, regions),
    ]
    assert captioned_regions(records, TEXTS) == [
        CaptionedRegion(1, BOX, ("a dog", "an umbrella")),
        CaptionedRegion(1, OTHER_BOX, ("a view", "two words", "more")),
    ]


def test_a_text_is_drawn_anew_for_each_pick() -> None:
    regions = [CaptionedRegion(0, BOX, ("one",)), CaptionedRegion(0, BOX, ("two", "three"))]
    picks = np.array([1, 0] * 50)
    texts = draw_texts(regions, picks, np.random.default_rng(0))
    assert set(texts[1::2]) == {"one"}
    assert texts[::2].count("two") == pytest.approx(25, abs=12)
    assert set(texts[::2]) == {"two", "three"}
    assert texts == draw_texts(regions, picks, np.random.default_rng(0))
