"""Which regions of a store a search may find, as a condition that Lance evaluates."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenize_anything.data.region_rows import RegionColumns

FILTER_NAMES = ("area", "concept", "source")
# Lance counts elements from 1.
_BOX_AREA = "(box_xyxy[3] - box_xyxy[1]) * (box_xyxy[4] - box_xyxy[2])"
_PHOTO_AREA = "CAST(mask_size_hw[1] AS FLOAT) * CAST(mask_size_hw[2] AS FLOAT)"
_ENDS = re.compile(r"\.\.")


@dataclass(frozen=True)
class RegionFilter:
    """Conditions on regions; all must hold.

    min_area, max_area: area of the box as a share of its photo, 0..1, both included.
    source: name of the photo's file as the store has it, or a pattern with * and ?, which stand for
        any text, / included, and any character; None for all.
    concept: the name the model gave the region; upper and lower case alike; None for all.

    Raises:
        ValueError: areas outside 0..1, or in the wrong order; an empty text.
    """

    min_area: float = 0.0
    max_area: float = 1.0
    source: str | None = None
    concept: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_area <= self.max_area <= 1:
            raise ValueError(
                "filter area: expected shares of the photo, 0 <= least <= most <= 1, got "
                f"{self.min_area:g}..{self.max_area:g}"
            )
        for name in ("source", "concept"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"filter {name}: expected text, got none")

    @classmethod
    def parse(cls, texts: Sequence[str]) -> RegionFilter:
        """Filters as people write them.

        Args:
            texts: each "area=0.01..0.5" (either end may be left out), "source=PATTERN" or
                "concept=NAME", each at most once.

        Raises:
            ValueError: another filter, or a value that does not fit.
        """
        given: dict[str, str] = {}
        for text in texts:
            name, separator, value = text.partition("=")
            name = name.strip()
            if not separator or name not in FILTER_NAMES:
                raise ValueError(
                    f"filter: expected NAME=VALUE with a NAME in {', '.join(FILTER_NAMES)}, got "
                    f"{text!r}"
                )
            if name in given:
                raise ValueError(f"filter {name}: expected it once, got it twice")
            given[name] = value.strip()
        low, high = _parse_range(given.pop("area", ".."))
        return cls(low, high, **given)

    def to_sql(self, columns: RegionColumns) -> str:
        """The condition in Lance's SQL; empty where every region passes.

        Raises:
            ValueError: the store lacks a column that is asked about.
        """
        parts = []
        if self.min_area > 0:
            parts.append(f"{_BOX_AREA} >= {self.min_area:.9f} * {_PHOTO_AREA}")
        if self.max_area < 1:
            parts.append(f"{_BOX_AREA} <= {self.max_area:.9f} * {_PHOTO_AREA}")
        for name, value in (("source", self.source), ("concept", self.concept)):
            if value is not None and name not in columns.texts:
                raise ValueError(
                    f"filter {name}: expected a store with a text column of that name, got one "
                    f"with {list(columns.texts)}"
                )
        if self.source is not None:
            parts.append(f"regexp_like(source, {_quote(_pattern(self.source))})")
        if self.concept is not None:
            parts.append(f"lower(concept) = {_quote(self.concept.strip().lower())}")
        return " AND ".join(parts)


def _parse_range(text: str) -> tuple[float, float]:
    ends = _ENDS.split(text)
    try:
        low, high = ends
        numbers = float(low or 0), float(high or 1)
    except ValueError:
        numbers = math.nan, math.nan
    if any(math.isnan(number) for number in numbers):
        raise ValueError(
            f"filter area: expected LEAST..MOST as shares of the photo, as 0.01..0.5, got {text!r}"
        )
    return numbers


def _pattern(glob: str) -> str:
    """A glob as a regular expression of Rust that matches whole names."""
    wild = {"*": ".*", "?": "."}
    return f"(?s)^{''.join(wild.get(letter) or re.escape(letter) for letter in glob)}$"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
