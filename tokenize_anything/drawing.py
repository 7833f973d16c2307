"""Overlays: translucent masks, crisp outlines and labels that stay inside the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from tokenize_anything.geometry import masks_to_boxes, to_numpy
from tokenize_anything.prompts import PointLabel, PointPrompts

if TYPE_CHECKING:
    from tokenize_anything.regions import RegionPredictions

Color = tuple[int, int, int]
_Line = tuple[str, str]  # one line of a label: its part of the concept, its part of the caption

PALETTE: tuple[Color, ...] = (
    (255, 82, 82), (64, 156, 255), (52, 211, 128), (255, 196, 44), (186, 104, 255),
    (255, 126, 48), (32, 212, 212), (255, 96, 196), (166, 226, 46), (120, 132, 255),
)  # fmt: skip
_PLATE_COLOR = (18, 20, 26, 205)
_CAPTION_COLOR = (238, 240, 244)
_CLICK_COLORS = {PointLabel.FOREGROUND: (40, 200, 80), PointLabel.BACKGROUND: (230, 50, 50)}
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_MAX_LINES = 3
_MAX_COVERED = 0.35  # share of the picture that labels may cover
_ELLIPSIS = "\u2026"
_SEPARATOR = "\u00b7"


@dataclass(frozen=True)
class _Style:
    """Sizes in pixels of one picture; they grow with its shorter side."""

    picture_wh: tuple[int, int]
    font: ImageFont.FreeTypeFont
    line_height: int
    padding: int
    line_width: int
    stripe_width: int
    max_text_width: int
    max_lines: int


@dataclass(frozen=True)
class _Plate:
    """A label with its text set in lines, not placed yet."""

    lines: list[_Line]
    size_wh: tuple[int, int]

    @property
    def area(self) -> int:
        """Pixels it covers."""
        return self.size_wh[0] * self.size_wh[1]


def draw_regions(
    image_rgb: ArrayLike,
    regions: RegionPredictions,
    *,
    prompts: PointPrompts | None = None,
    alpha: float = 0.45,
    max_label_width: int | None = None,
) -> NDArray[np.uint8]:
    """Draw regions on a copy of their image.

    Every region gets a colour its neighbours do not have, a translucent fill, an outline, and a
    label of its first concept with score and its caption, as far as it has them. Text and lines
    grow with the picture. In a crowd captions give way to concept names.

    Args:
        image_rgb: (H,W,3) uint8.
        regions: predictions of the same H and W.
        prompts: drawn too when given: clicks as dots (green foreground, red background), boxes as
            white rectangles.
        alpha: opacity of the fill, 0..1.
        max_label_width: of a label in pixels; by default two fifths of the picture.

    Returns:
        (H,W,3) uint8, a new array.

    Raises:
        TypeError: the image is not uint8.
        ValueError: sizes that do not match, or alpha outside 0..1.
    """
    canvas = _checked_copy(image_rgb, regions)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 (invisible) to 1 (opaque), got {alpha}")
    style = _style_for(canvas.shape[0], canvas.shape[1], max_label_width)
    boxes = masks_to_boxes(regions.masks).astype(int)
    colors = pick_colors(boxes)
    areas = regions.masks.sum(axis=(1, 2))
    # Small regions last, so that a large one never hides them.
    for row in np.argsort(-areas, kind="stable"):
        _paint_mask(canvas, regions.masks[row], boxes[row], colors[row], alpha)
        _paint_outline(canvas, regions.masks[row], boxes[row], colors[row], style.line_width)
    if prompts is not None:
        _paint_prompts(canvas, prompts, style.line_width)
    picture = Image.fromarray(canvas)
    for row, plate, corner_xy in _place_plates(regions, boxes, areas, style):
        _paint_plate(picture, plate, corner_xy, colors[row], style)
    return np.array(picture)


def pick_colors(boxes_xyxy: ArrayLike) -> list[Color]:
    """One colour of `PALETTE` per region, different from its neighbours' while colours last.

    Args:
        boxes_xyxy: (R,4) in pixels; regions are neighbours when their boxes touch.
    """
    boxes = np.asarray(boxes_xyxy, dtype=float).reshape(-1, 4)
    chosen: list[int] = []
    for row, (x0, y0, x1, y1) in enumerate(boxes):
        others = boxes[:row]
        touches = (others[:, 0] <= x1) & (others[:, 2] >= x0)
        touches &= (others[:, 1] <= y1) & (others[:, 3] >= y0)
        used_near = np.bincount(np.array(chosen, int)[touches], minlength=len(PALETTE))
        used_at_all = np.bincount(chosen, minlength=len(PALETTE))
        chosen.append(int(np.lexsort((used_at_all, used_near))[0]))
    return [PALETTE[index] for index in chosen]


def _checked_copy(image_rgb: ArrayLike, regions: RegionPredictions) -> NDArray[np.uint8]:
    image = to_numpy("image_rgb", image_rgb)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image_rgb: expected (H,W,3), got shape {image.shape}; convert to RGB")
    if image.dtype != np.uint8:
        raise TypeError(f"image_rgb: expected uint8 values 0..255, got dtype {image.dtype}")
    if image.shape[:2] != regions.image_size_hw:
        raise ValueError(
            f"image_rgb: expected the size of the regions, height and width "
            f"{regions.image_size_hw}, got {image.shape[:2]}; pass the image they were made from"
        )
    return np.array(image, order="C")


def _style_for(height: int, width: int, max_label_width: int | None) -> _Style:
    short_side = min(height, width)
    font_size = max(9, round(0.029 * short_side))
    font = ImageFont.load_default(font_size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("drawing text needs Pillow with FreeType: reinstall Pillow")
    ascent, descent = font.getmetrics()
    line_height = ascent + descent
    padding = max(1, round(0.3 * font_size)) if short_side >= 128 else 1
    label_width = max(round(0.4 * width), 12 * font_size)
    if max_label_width is not None:
        label_width = max_label_width
    stripe_width = max(2, padding // 2 + 1)
    return _Style(
        picture_wh=(width, height),
        font=font,
        line_height=line_height,
        padding=padding,
        line_width=max(1, round(short_side / 300)),
        stripe_width=stripe_width,
        max_text_width=min(label_width, width) - stripe_width - 2 * padding,
        max_lines=min(
            _MAX_LINES,
            (height - 2 * padding) // line_height,
            max(1, int(_MAX_COVERED * height / line_height)),
        ),
    )


# --- masks and prompts --------------------------------------------------------------------------


def _paint_mask(
    canvas: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    box: NDArray[np.int64],
    color: Color,
    alpha: float,
) -> None:
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1]
    crop = canvas[y0:y1, x0:x1]
    crop[inside] = np.rint((1 - alpha) * crop[inside] + alpha * np.array(color)).astype(np.uint8)


def _paint_outline(
    canvas: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    box: NDArray[np.int64],
    color: Color,
    line_width: int,
) -> None:
    x0, y0, x1, y1 = (int(edge) for edge in box)
    crop = mask[y0:y1, x0:x1].astype(np.uint8)
    if not crop.size:
        return
    contours, _ = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x0, y0))
    # A smoothed line of one pixel would be faint.
    smoothing = cv2.LINE_AA if line_width > 1 else cv2.LINE_8
    cv2.drawContours(canvas, contours, -1, color, line_width, smoothing)


def _paint_prompts(canvas: NDArray[np.uint8], prompts: PointPrompts, line_width: int) -> None:
    # Far outside the picture nothing shows, and OpenCV takes no numbers beyond 32 bits.
    far = 2.0**20
    for coords, labels in zip(prompts.coords_xy.clip(-far, far), prompts.labels, strict=True):
        if labels[0] == PointLabel.TOP_LEFT:
            x0, y0, x1, y1 = (round(float(edge)) for edge in coords[:2].ravel())
            cv2.rectangle(canvas, (x0, y0), (x1, y1), _BLACK, line_width + 2)
            cv2.rectangle(canvas, (x0, y0), (x1, y1), _WHITE, line_width)
        for (x, y), label in zip(coords, labels, strict=True):
            if label in _CLICK_COLORS:
                center = round(float(x)), round(float(y))
                radius = 2 + 2 * line_width
                cv2.circle(canvas, center, radius + line_width, _WHITE, -1, cv2.LINE_AA)
                cv2.circle(canvas, center, radius, _CLICK_COLORS[label], -1, cv2.LINE_AA)


# --- labels -------------------------------------------------------------------------------------


def _place_plates(
    regions: RegionPredictions,
    boxes: NDArray[np.int64],
    areas: NDArray[np.int64],
    style: _Style,
) -> Iterator[tuple[int, _Plate, tuple[int, int]]]:
    """Choose text and corner of the labels; small regions first, they have least choice."""
    taken = np.zeros((0, 4))
    texts = _choose_texts(regions, areas, style)
    for row in sorted(texts, key=lambda row: areas[row]):
        options = [(*_best_corner(plate, row, boxes, taken, style), plate) for plate in texts[row]]
        # The longest text that finds a free place, else the one that covers other labels least.
        _, corner, plate = min(options, key=lambda option: round(option[0], 1))
        taken = np.vstack([taken, [*corner, *np.add(corner, plate.size_wh)]])
        yield row, plate, corner


def _choose_texts(
    regions: RegionPredictions, areas: NDArray[np.int64], style: _Style
) -> dict[int, list[_Plate]]:
    """Labels by region, longest text first, so few that most of the picture stays visible.

    Where full texts would take too much of the picture all captions are left out, and where even
    concepts do, the smallest regions go without a label.
    """
    words = {row: _label_words(regions, row) for row in range(len(regions)) if areas[row]}
    full = {row: _set_text(*texts, style) for row, texts in words.items()}
    brief = {
        row: _set_text(heading, [], style) if heading else full[row]
        for row, (heading, _) in words.items()
    }
    budget = _MAX_COVERED * np.prod(style.picture_wh)
    if sum(plate.area for plate in full.values() if plate) <= budget:
        pairs = {row: [full[row], brief[row]] for row in words}
    else:
        by_area = sorted(words, key=lambda row: -areas[row])
        spent = np.cumsum([plate.area if (plate := brief[row]) else 0 for row in by_area])
        num_kept = max(1, int((spent <= budget).sum()))
        pairs = {row: [brief[row]] for row in by_area[:num_kept]}
    return {row: [plate for plate in pair if plate] for row, pair in pairs.items() if any(pair)}


def _label_words(regions: RegionPredictions, row: int) -> tuple[list[str], list[str]]:
    heading = []
    if regions.concepts[row]:
        heading = [*regions.concepts[row][0].split(), f"{regions.concept_scores[row, 0]:.2f}"]
    caption = (regions.captions[row] or "").split()
    return heading, [_SEPARATOR, *caption] if heading and caption else caption


def _set_text(heading: Sequence[str], caption: Sequence[str], style: _Style) -> _Plate | None:
    """Set the words in lines; None when there are none, or no room for any."""
    lines = _break_lines(heading, caption, style)
    too_narrow = style.max_text_width < 2 * style.font.getlength(_ELLIPSIS)
    if not lines or style.max_lines < 1 or too_narrow:
        return None
    if len(lines) > style.max_lines:
        lines = lines[: style.max_lines]
        if heading and caption and not any(caption_part for _, caption_part in lines):
            return _set_text(heading, [], style)
        lines[-1] = (lines[-1][0], lines[-1][1] + _ELLIPSIS)
    lines = [_shorten(line, style) for line in lines]
    text_width = int(np.ceil(max(style.font.getlength("".join(line)) for line in lines)))
    width = text_width + style.stripe_width + 2 * style.padding
    return _Plate(lines, (width, style.line_height * len(lines) + 2 * style.padding))


def _break_lines(heading: Sequence[str], caption: Sequence[str], style: _Style) -> list[_Line]:
    lines: list[_Line] = []
    for word, is_heading in [(word, True) for word in heading] + [(w, False) for w in caption]:
        if lines:
            last = lines[-1]
            longer = (f"{last[0]} {word}", "") if is_heading else (last[0], f"{last[1]} {word}")
            if style.font.getlength("".join(longer)) <= style.max_text_width:
                lines[-1] = longer
                continue
        # A separator that falls between two lines is not needed.
        if word != _SEPARATOR:
            lines.append((word, "") if is_heading else ("", word))
    return [(part, rest.rstrip(f" {_SEPARATOR}")) for part, rest in lines]


def _shorten(line: _Line, style: _Style) -> _Line:
    """Replace the end of a line that is too long by an ellipsis."""
    heading, text = line[0], "".join(line)
    if style.font.getlength(text) <= style.max_text_width:
        return line
    # No letter is narrower than a pixel, so the slice loses nothing and keeps the search short.
    text = text.rstrip(_ELLIPSIS)[: style.max_text_width]
    while text and style.font.getlength(text + _ELLIPSIS) > style.max_text_width:
        text = text[:-1].rstrip()
    return text[: len(heading)], text[len(heading) :] + _ELLIPSIS


def _best_corner(
    plate: _Plate,
    row: int,
    boxes: NDArray[np.int64],
    taken: NDArray[np.float64],
    style: _Style,
) -> tuple[float, tuple[int, int]]:
    """Top-left corner of the best place, and which share of the plate lies on other labels."""
    corners = _candidate_corners(boxes[row], plate.size_wh, style)
    places = np.hstack([corners, corners + plate.size_wh])
    covered = _overlap_areas(places, taken).sum(axis=1) / np.prod(plate.size_wh)
    # A plate should not hide regions, its own least of all: count the shares of boxes it covers.
    box_areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    hidden = (_overlap_areas(places, boxes) / np.maximum(box_areas, 1)).sum(axis=1)
    gaps = np.maximum(boxes[row, :2] - places[:, 2:], places[:, :2] - boxes[row, 2:])
    distance = np.linalg.norm(np.maximum(gaps, 0), axis=1) / style.line_height
    costs = 20 * covered + 2 * hidden + 0.4 * distance + 0.01 * np.arange(len(places))
    best = int(costs.argmin())
    return float(covered[best]), (int(corners[best, 0]), int(corners[best, 1]))


def _candidate_corners(
    box: NDArray[np.int64], size_wh: tuple[int, int], style: _Style
) -> NDArray[np.int64]:
    """(n,2) places of a plate, preferred ones first: around the box, in it, then anywhere."""
    (x0, y0, x1, y1), (width, height), gap = box, size_wh, style.line_width + 1
    near = [
        (x0, y0 - height - gap),
        (x0 + gap, y0 + gap),
        (x0, y1 + gap),
        (x1 - width, y0 - height - gap),
        (x1 - width, y1 + gap),
        (x1 + gap, y0),
        (x0 - width - gap, y0),
        (x0 + gap, y1 - height - gap),
        ((x0 + x1 - width) // 2, (y0 + y1 - height) // 2),
    ]
    room = np.array(style.picture_wh) - size_wh
    grid = np.stack(np.meshgrid(*[np.linspace(0, extent, 16) for extent in room]), axis=-1)
    anywhere = grid.reshape(-1, 2).astype(np.int64)
    return np.clip(np.concatenate([np.array(near, dtype=np.int64), anywhere]), 0, room)


def _overlap_areas(boxes: NDArray[np.int64], others: NDArray[np.generic]) -> NDArray[np.float64]:
    """(n,4) and (m,4) boxes to the (n,m) areas of their intersections."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1, dtype=np.float64)


def _paint_plate(
    picture: Image.Image,
    plate: _Plate,
    corner_xy: tuple[int, int],
    color: Color,
    style: _Style,
) -> None:
    overlay = Image.new("RGBA", plate.size_wh)
    draw = ImageDraw.Draw(overlay)
    width, height = plate.size_wh
    draw.rounded_rectangle((0, 0, width - 1, height - 1), style.padding, fill=_PLATE_COLOR)
    draw.rounded_rectangle(
        (0, 0, 2 * style.stripe_width - 1, height - 1), style.padding, fill=color
    )
    draw.rectangle((style.stripe_width, 0, 2 * style.stripe_width, height - 1), fill=_PLATE_COLOR)
    left = style.stripe_width + style.padding
    for number, (heading, caption) in enumerate(plate.lines):
        top = style.padding + number * style.line_height
        draw.text((left, top), heading, font=style.font, fill=_tint(color))
        shift = style.font.getlength(heading)
        draw.text((left + shift, top), caption, font=style.font, fill=_CAPTION_COLOR)
    picture.paste(overlay, corner_xy, overlay)


def _tint(color: Color) -> Color:
    """A lighter shade that reads well on the dark plate."""
    red, green, blue = ((channel + 255) // 2 for channel in color)
    return red, green, blue
