"""Contact sheets: regions cut out of their photos, outlined, side by side, with lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE_SIDE = 240
_COLUMNS, _LINE_HEIGHT, _GAP = 4, 16, 8
_MARGIN = 0.25  # of the box, around it in a tile
_EMPTY_GRAY = 225


@dataclass(frozen=True, eq=False)
class Tile:
    """One place of a contact sheet: a part of a photo (h,w,3) uint8, and lines of text."""

    picture: np.ndarray
    lines: tuple[str, ...]


def cut_tile(
    rgb: np.ndarray,
    outlined: Sequence[tuple[np.ndarray, tuple[int, int, int]]],
    box_xyxy: Sequence[float],
    lines: Sequence[str],
) -> Tile:
    """Cut a region out of its photo, with a margin, and draw outlines.

    Args:
        rgb: (H,W,3) uint8.
        outlined: masks (H,W) bool, each with its colour.
        box_xyxy: of the region, original pixels.
        lines: what is written under it.
    """
    x0, y0, x1, y1 = _window(box_xyxy, rgb.shape[0], rgb.shape[1])
    scale = TILE_SIDE / max(x1 - x0, y1 - y0)
    size = max(1, round(scale * (x1 - x0))), max(1, round(scale * (y1 - y0)))
    canvas = cv2.resize(rgb[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA)
    for mask, color in outlined:
        _outline(canvas, cv2.resize(mask[y0:y1, x0:x1].astype(np.uint8), size), color)
    return Tile(canvas, tuple(lines))


def empty_tile(lines: Sequence[str]) -> Tile:
    """A gray square where there is no picture to show."""
    return Tile(np.full((TILE_SIDE, TILE_SIDE, 3), _EMPTY_GRAY, np.uint8), tuple(lines))


def contact_sheet(tiles: Sequence[Tile]) -> Image.Image:
    """At least one tile, side by side, at most four to a row, on white."""
    font = ImageFont.load_default(12)
    num_lines = max(len(tile.lines) for tile in tiles)
    cell_wh = TILE_SIDE + _GAP, TILE_SIDE + _GAP + num_lines * _LINE_HEIGHT
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * cell_wh[0], rows * cell_wh[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        left, top = (number % columns) * cell_wh[0], (number // columns) * cell_wh[1]
        sheet.paste(Image.fromarray(tile.picture), (left, top))
        for place, line in enumerate(tile.lines):
            text = _fit(line, font)
            draw.text((left, top + TILE_SIDE + place * _LINE_HEIGHT), text, fill="black", font=font)
    return sheet


def _window(box_xyxy: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """The box with a margin, in whole pixels, at least two wide and high, on the photo."""
    x0, y0, x1, y1 = box_xyxy
    margin_x, margin_y = _MARGIN * (x1 - x0) + 4, _MARGIN * (y1 - y0) + 4
    left, top = (int(max(edge, 0)) for edge in (x0 - margin_x, y0 - margin_y))
    left, top = min(left, width - 2), min(top, height - 2)
    right, bottom = int(min(x1 + margin_x, width)), int(min(y1 + margin_y, height))
    return left, top, max(right, left + 2), max(bottom, top + 2)


def _outline(canvas: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, color, 2)


def _fit(line: str, font: Any) -> str:
    while line and font.getlength(line) > TILE_SIDE:
        line = line[:-2].rstrip() + "\u2026" if len(line) > 2 else ""
    return line
