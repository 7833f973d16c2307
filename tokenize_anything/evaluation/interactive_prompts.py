"""Prompts of the COCO-Interactive protocol: point, scribble, box and mask for every annotation.

They are drawn once from the true masks, with random numbers that depend on a seed and the id of the
annotation alone, and stored beside the annotations as run-length codes, under the names of the
protocol's public file. The rules are those of Zhang et al. 2024 (PSALM), in words of
`docs/evaluation.md`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.evaluation.coco_truth import TruthFile, read_truth, truth_mask
from tokenize_anything.evaluation.run_files import file_digest
from tokenize_anything.geometry import encode_rle, innermost_point

KINDS = ("point", "scribble", "box", "mask")
MIN_AREA = 5  # pixels; pieces up to this area get no prompt
MAX_TRIES = 1000


def prompt_key(kind: str) -> str:
    """Where an annotation keeps its prompt of one kind."""
    return f"{kind}_visual_prompt_mask"


@dataclass(frozen=True)
class DrawnPrompts:
    """Prompts of one annotation as (H,W) bool masks.

    point: a pixel in each piece. scribble: a line of one pixel across each piece.
    box: a filled box around each piece. mask: the region with a rough outline.
    """

    point: np.ndarray
    scribble: np.ndarray
    box: np.ndarray
    mask: np.ndarray


def prompts_file(annotations: str | Path, seed: int) -> Path:
    """Where the prompts of an annotation file lie unless another place is given: beside it."""
    path = Path(annotations)
    return path.with_name(f"{path.stem}_interactive_seed{seed}.json")


def make_prompts_file(
    annotations: str | Path, out: str | Path, *, seed: int = 0, show_progress: bool = True
) -> None:
    """Draw the prompts of all annotations and write a copy of the file that holds them.

    Args:
        annotations: COCO-style JSON with masks.
        out: written whole or not at all.
        seed: the same seed draws the same prompts.
        show_progress: whether to draw a bar on stderr.

    Raises:
        FileNotFoundError: no such file or folder.
        PermissionError: nothing can be written there.
        ValueError: a damaged annotation file.
    """
    truth, out = read_truth(annotations), Path(out)
    drawn = []
    bar = tqdm(truth.content["annotations"], desc="prompts", disable=not show_progress)
    for annotation in bar:
        codes = {}
        if annotation.get("segmentation"):
            size_hw = truth.sizes_hw[annotation["image_id"]]
            mask = truth_mask(annotation["segmentation"], *size_hw)
            prompts = draw_prompts(mask, np.random.default_rng([seed, int(annotation["id"])]))
            if prompts is not None:
                codes = {prompt_key(kind): encode_rle(getattr(prompts, kind)) for kind in KINDS}
        drawn.append({**annotation, **codes})
    made_from = {"annotations": file_digest(annotations), "seed": seed}
    content = {**truth.content, "annotations": drawn, "interactive_prompts": made_from}
    try:
        with replace_on_success(out) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise PermissionError(
            f"prompts: cannot write {out} ({error.strerror or error}); choose another place with "
            "--prompts FILE (prompts=)"
        ) from error


def check_prompts_file(truth: TruthFile, annotations: str | Path, seed: int) -> None:
    """Check that a file of prompts was made from these annotations with this seed.

    Raises:
        ValueError: it was not.
    """
    wanted = {"annotations": file_digest(annotations), "seed": seed}
    found = truth.content.get("interactive_prompts")
    if found != wanted:
        raise ValueError(
            f"prompts: {truth.path} was made from {found}, not from {wanted}; delete it, or choose "
            "another file"
        )


def has_prompts(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation carries all four prompts."""
    return all(prompt_key(kind) in annotation for kind in KINDS)


# --- drawing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """One 8-connected piece of a mask: its (H,W) bool pixels, box and centre in pixels."""

    pixels: np.ndarray
    box_xyxy: tuple[float, float, float, float]
    centre_xy: tuple[float, float]


def draw_prompts(mask: np.ndarray, rng: np.random.Generator) -> DrawnPrompts | None:
    """Draw all four prompts of a mask (H,W) bool; None where no piece exceeds MIN_AREA."""
    pieces = _pieces_of(mask)
    if not pieces:
        return None
    drawn = DrawnPrompts(*(np.zeros(mask.shape, bool) for _ in KINDS))
    for piece in pieces:
        x, y = _draw_point(piece, rng)
        drawn.point[y, x] = True
        _fill_box(drawn.box, _scaled(piece.box_xyxy, *rng.uniform(0.9, 1.1, 2)))
        drawn.scribble[:] |= _draw_scribble(piece, mask.shape, rng)
    kept = np.logical_or.reduce([piece.pixels for piece in pieces])
    blurred = cv2.GaussianBlur(kept.astype(np.float32), (0, 0), 2.0)
    drawn.mask[:] = blurred > blurred.mean()
    return drawn if drawn.mask.any() else DrawnPrompts(drawn.point, drawn.scribble, drawn.box, kept)


def _pieces_of(mask: np.ndarray) -> list[_Piece]:
    """Pieces larger than MIN_AREA, in the order of their first pixels."""
    count, labels, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    pieces = []
    for label in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[label])
        if area > MIN_AREA:
            box = (x, y, x + width, y + height)
            centre = (float(centres[label][0]), float(centres[label][1]))
            pieces.append(_Piece(labels == label, box, centre))
    return pieces


def _draw_point(piece: _Piece, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel of the piece near its centre: direction and distance are drawn until one fits.

    The distance is at most half the shorter side of the box. After MAX_TRIES it is the innermost
    pixel.
    """
    x0, y0, x1, y1 = piece.box_xyxy
    reach = min(x1 - x0, y1 - y0) / 2
    angles = rng.uniform(0, 2 * math.pi, MAX_TRIES)
    distances = rng.uniform(0, reach, MAX_TRIES)
    x = np.rint(piece.centre_xy[0] + distances * np.cos(angles)).astype(int)
    y = np.rint(piece.centre_xy[1] + distances * np.sin(angles)).astype(int)
    height, width = piece.pixels.shape
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    is_inside[is_inside] = piece.pixels[y[is_inside], x[is_inside]]
    if not is_inside.any():
        return innermost_point(piece.pixels)
    first = int(is_inside.argmax())
    return int(x[first]), int(y[first])


def _draw_scribble(
    piece: _Piece, shape_hw: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """A diagonal of a jittered box, bent by a sine, one pixel wide, (H,W) bool.

    Sides are scaled by 0.5 to 1.2 and the centre moves by up to a tenth of the sides, until the
    box overlaps the real one with an IoU of at least 0.5. The sine has an amplitude of 10 to 20
    pixels and 0.2 to 1 periods.
    """
    x0, y0, x1, y1 = _jittered(piece.box_xyxy, rng)
    if rng.random() < 0.5:
        y0, y1 = y1, y0
    along = np.array([x1 - x0, y1 - y0])
    length = max(float(np.hypot(*along)), 1.0)
    across = np.array([-along[1], along[0]]) / length
    amplitude, periods = rng.uniform(10, 20), rng.uniform(0.2, 1.0)
    share = np.linspace(0, 1, 2 + int(length))[:, None]
    bend = amplitude * np.sin(2 * math.pi * periods * share)
    line = np.array([x0, y0]) + share * along + bend * across
    height, width = shape_hw
    line = np.clip(line, 0, [width - 1, height - 1])
    canvas = np.zeros((height, width), np.uint8)
    cv2.polylines(canvas, [np.rint(line).astype(np.int32)], isClosed=False, color=1)
    return canvas.astype(bool)


def _jittered(
    box: tuple[float, float, float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    width, height = box[2] - box[0], box[3] - box[1]
    for _ in range(MAX_TRIES):
        x0, y0, x1, y1 = _scaled(box, *rng.uniform(0.5, 1.2, 2))
        dx, dy = rng.uniform(-0.1, 0.1, 2) * (width, height)
        moved = (x0 + dx, y0 + dy, x1 + dx, y1 + dy)
        if _iou(box, moved) >= 0.5:
            return moved
    return box


def _scaled(
    box: tuple[float, float, float, float], across: float, down: float
) -> tuple[float, float, float, float]:
    """A box with its sides multiplied, around the same centre."""
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) * (across - 1) / 2, (y1 - y0) * (down - 1) / 2
    return x0 - dx, y0 - dy, x1 + dx, y1 + dy


def _iou(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    shared = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    shared *= max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)]
    return shared / (sum(areas) - shared)


def _fill_box(canvas: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """Fill a box, at least one pixel, as far as it lies on the canvas."""
    height, width = canvas.shape
    x0, y0 = min(max(round(box[0]), 0), width - 1), min(max(round(box[1]), 0), height - 1)
    x1, y1 = max(round(box[2]), x0 + 1), max(round(box[3]), y0 + 1)
    canvas[y0:y1, x0:x1] = True
