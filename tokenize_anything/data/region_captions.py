"""Texts to describe regions with: captions where there are some, else the name with its article."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenize_anything.data.samples import ImageRecord, RegionAnnotation, TextTable


@dataclass(frozen=True)
class CaptionedRegion:
    """One box of one image, original pixels, and the texts that describe it, at least one."""

    image_index: int
    box_xyxy: tuple[float, float, float, float]
    texts: tuple[str, ...]


def name_to_caption(name: str) -> str:
    """A name as the shortest true caption: "an umbrella", "a dog", "shoes"."""
    is_plural = name.endswith("s") and not name.endswith(("ss", "us"))
    if is_plural or name in ("skin", "hair", "grass", "water", "sky"):
        return name
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


def captioned_regions(records: Sequence[ImageRecord], texts: TextTable) -> list[CaptionedRegion]:
    """All regions of all images that have a caption or a name; one entry per distinct box."""
    regions: list[CaptionedRegion] = []
    for index, record in enumerate(records):
        by_box: dict[tuple[float, float, float, float], list[str]] = {}
        for region in record.regions:
            by_box.setdefault(region.box_xyxy, []).extend(_texts_of(region, texts))
        regions.extend(
            CaptionedRegion(index, box, tuple(lines)) for box, lines in by_box.items() if lines
        )
    return regions


def _texts_of(region: RegionAnnotation, texts: TextTable) -> list[str]:
    if region.captions:
        return [" ".join(caption.split()) for caption in region.captions]
    return [name_to_caption(texts.texts[region.text_index])] if region.text_index >= 0 else []


def draw_texts(
    regions: Sequence[CaptionedRegion], picks: np.ndarray, rng: np.random.Generator
) -> list[str]:
    """One text for each picked region, drawn anew where a region has several."""
    return [regions[pick].texts[rng.integers(len(regions[pick].texts))] for pick in picks]
