"""A table of region predictions for the terminal, in plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenize_anything.regions import RegionPredictions

_GAP = "  "
_MIN_TEXT_WIDTH = 16
_MAX_PROMPT_WIDTH = 28
_NOTHING = "-"


@dataclass(frozen=True)
class _Column:
    """One column; a cell is a list of lines."""

    title: str
    cells: list[list[str]]
    is_number: bool = False

    @property
    def width(self) -> int:
        return max(len(line) for cell in [[self.title], *self.cells] for line in cell)

    def line(self, row: int, number: int) -> str:
        """Line `number` of a cell at the column's width; row -1 is the title."""
        cell = [self.title] if row < 0 else self.cells[row]
        text = cell[number] if number < len(cell) else ""
        return text.rjust(self.width) if self.is_number else text.ljust(self.width)

    def height(self, row: int) -> int:
        return len(self.cells[row])


def format_table(
    regions: RegionPredictions, names: Sequence[str], *, width: int, title: str = "prompt"
) -> str:
    """Lines of text, one or more per region, under a line of titles.

    Columns without any content are left out. Captions are wrapped.

    Args:
        regions: R regions.
        names: what each region was asked for by, R texts.
        width: of the terminal in characters; columns that cannot be narrower may exceed it.
        title: over the names.
    """
    columns = _facts(regions, names, title)
    if any(regions.captions):
        taken = sum(column.width + len(_GAP) for column in columns)
        columns.append(_captions(regions, max(_MIN_TEXT_WIDTH, width - taken)))
    lines = [_join(columns, -1, 0)]
    for row in range(len(regions)):
        height = max(column.height(row) for column in columns)
        lines += [_join(columns, row, number) for number in range(height)]
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text in one line, with a question mark for everything a terminal would act upon."""
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in text)


def _facts(regions: RegionPredictions, names: Sequence[str], title: str) -> list[_Column]:
    numbers = [[str(row + 1)] for row in range(len(regions))]
    prompts = [textwrap.wrap(printable(name), _MAX_PROMPT_WIDTH) or [""] for name in names]
    columns = [_Column("#", numbers, is_number=True), _Column(title, prompts)]
    if any(regions.concepts):
        concepts = [[printable(name) for name in row] or [_NOTHING] for row in regions.concepts]
        columns.append(_Column("concept", concepts))
        columns.append(_number_column("score", regions.concept_scores))
    shares = regions.masks.mean(axis=(1, 2))
    columns.append(_number_column("IoU", regions.iou_scores[:, None]))
    columns.append(_Column("area", [[f"{share:.1%}"] for share in shares], is_number=True))
    return columns


def _number_column(title: str, rows: NDArray[np.float32]) -> _Column:
    """(R,k) numbers, k lines in a cell."""
    return _Column(title, [[f"{value:.2f}" for value in row] for row in rows], is_number=True)


def _captions(regions: RegionPredictions, width: int) -> _Column:
    texts = [printable(caption or "") or _NOTHING for caption in regions.captions]
    return _Column("caption", [textwrap.wrap(text, width) for text in texts])


def _join(columns: Sequence[_Column], row: int, number: int) -> str:
    return _GAP.join(column.line(row, number) for column in columns).rstrip()
