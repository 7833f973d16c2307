"""Prompts on the command line: options, and the regions they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps

from tokenize_anything.image_loading import load_image
from tokenize_anything.prompts import PointLabel, PointPrompts, check_mask_size


@dataclass(frozen=True)
class PointOption:
    """`--point X,Y[,LABEL]`."""

    kind: ClassVar[str] = "point"
    text: str
    x: float
    y: float
    label: PointLabel


@dataclass(frozen=True)
class BoxOption:
    """`--box X0,Y0,X1,Y1`."""

    kind: ClassVar[str] = "box"
    text: str
    corners: tuple[float, ...]


@dataclass(frozen=True)
class SketchOption:
    """`--sketch FILE`."""

    kind: ClassVar[str] = "sketch"
    text: str


PromptOption = PointOption | BoxOption | SketchOption


@dataclass(frozen=True)
class NamedPrompts:
    """Prompts of one image, and what the user called each region's.

    kinds: "point", "box" or "sketch" per region.
    names: the options of each region, for people.
    """

    prompts: PointPrompts
    kinds: list[str]
    names: list[str]

    def to_plain(self) -> list[dict[str, Any]]:
        """One mapping per region, for JSON: its kind and its [x, y, label] points."""
        rows = zip(self.kinds, self.prompts.coords_xy, self.prompts.labels, strict=True)
        return [
            {
                "kind": kind,
                "points": [
                    [*map(float, xy), int(label)]
                    for xy, label in zip(coords_xy, labels, strict=True)
                    if label != PointLabel.PADDING
                ],
            }
            for kind, coords_xy, labels in rows
        ]


@dataclass
class _Region:
    """A prompt option and the background clicks that follow it."""

    option: PromptOption
    clicks: list[PointOption] = field(default_factory=list)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Add --point, --box and --sketch; they share one list, in the order given."""
    group = parser.add_argument_group(
        "prompts", "one region each, in pixels of the photo; give as many as you like"
    )
    options: tuple[tuple[str, str, Any, str], ...] = (
        (
            "--point",
            "X,Y[,LABEL]",
            _parse_point,
            "a click on the region; with LABEL 0, a click on what the prompt before it must "
            "leave out",
        ),
        ("--box", "X0,Y0,X1,Y1", _parse_box, "left, top, right and bottom edge around the region"),
        (
            "--sketch",
            "FILE",
            SketchOption,
            "a picture of the photo's size, black or transparent but for strokes on the region",
        ),
    )
    for name, metavar, parse, text in options:
        group.add_argument(
            name, metavar=metavar, type=parse, action="append", dest="prompts", help=text
        )


def sketch_paths(options: Sequence[PromptOption]) -> list[Path]:
    """The files among the options."""
    return [Path(option.text) for option in options if isinstance(option, SketchOption)]


def collect_prompts(options: Sequence[PromptOption], height: int, width: int) -> NamedPrompts:
    """Turn options into prompts of an image of this size.

    Raises:
        ValueError: no option, a background click without a prompt before it, or a prompt that
            does not fit the image; the message starts with the option.
        FileNotFoundError: a sketch that is not there.
    """
    if not options:
        raise ValueError(
            "no prompt: say where to look with --point X,Y or --box X0,Y0,X1,Y1 or --sketch FILE"
        )
    regions: list[_Region] = []
    for option in options:
        if not isinstance(option, PointOption) or option.label == PointLabel.FOREGROUND:
            regions.append(_Region(option))
        elif regions:
            regions[-1].clicks.append(option)
        else:
            raise ValueError(
                f"--point {option.text}: a click with label 0 cuts from the region before it; "
                f"put a --point, --box or --sketch first"
            )
    return NamedPrompts(
        PointPrompts.concatenate([_to_prompts(region, height, width) for region in regions]),
        [region.option.kind for region in regions],
        [_name(region) for region in regions],
    )


def read_sketch(path: str) -> np.ndarray:
    """(H,W) bool: where a picture is neither black nor transparent.

    A picture with any transparent pixel counts as drawn wherever it is not fully transparent,
    whatever its colour.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or a JPEG, which smears strokes over their surroundings.
    """
    rgb = load_image(path, name="sketch")  # complains about everything that is no picture
    with Image.open(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError(
                f"sketch: {path} is a JPEG, in which black is not quite black around strokes; "
                f"save the sketch as PNG"
            )
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            alpha = np.asarray(upright.convert("RGBA"))[..., 3]
            if not alpha.all():
                return alpha > 0
        if upright.mode.startswith(("I", "F")):  # 16 or 32 bits, which 8 bits would round to 0
            return np.asarray(upright) != 0
    return np.asarray(rgb.any(axis=2))


def _parse_point(text: str) -> PointOption:
    numbers = _parse_numbers(text, (2, 3), "X,Y or X,Y,LABEL")
    label = numbers[2] if len(numbers) == 3 else PointLabel.FOREGROUND
    if label not in (PointLabel.BACKGROUND, PointLabel.FOREGROUND):
        raise argparse.ArgumentTypeError(
            f"expected the label 1 (on the region) or 0 (not on it), got {text!r}"
        )
    return PointOption(text, numbers[0], numbers[1], PointLabel(int(label)))


def _parse_box(text: str) -> BoxOption:
    return BoxOption(text, tuple(_parse_numbers(text, (4,), "X0,Y0,X1,Y1")))


def _parse_numbers(text: str, counts: tuple[int, ...], form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise argparse.ArgumentTypeError(f"expected {form} in pixels, got {text!r}")
    return numbers


def _to_prompts(region: _Region, height: int, width: int) -> PointPrompts:
    """Prompts of one region, checked against the image, with the option in every complaint."""
    clicks_xy = np.array([(click.x, click.y) for click in region.clicks]).reshape(1, -1, 2)
    labels = np.array([[click.label for click in region.clicks]], dtype=int)
    try:
        prompts = _start_prompts(region.option, clicks_xy, labels, height, width)
        prompts.validate_for_image(height, width)
    except (ValueError, FileNotFoundError) as error:
        kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
        raise kind(f"--{_name(region)}: {error}") from error
    return prompts


def _start_prompts(
    option: PromptOption, clicks_xy: np.ndarray, labels: np.ndarray, height: int, width: int
) -> PointPrompts:
    if isinstance(option, BoxOption):
        return PointPrompts.from_boxes([option.corners], clicks_xy, labels)
    if isinstance(option, PointOption):
        start = PointPrompts.from_points([[option.x, option.y]])
    else:
        sketch = read_sketch(option.text)
        check_mask_size(sketch, height, width)
        start = PointPrompts.from_sketch(sketch)
    num_padding = int((start.labels == PointLabel.PADDING).sum())
    return PointPrompts.from_points(
        np.concatenate([start.coords_xy[:, :-num_padding], clicks_xy], axis=1),
        np.concatenate([start.labels[:, :-num_padding], labels], axis=1),
    )


def _name(region: _Region) -> str:
    option = region.option
    text = Path(option.text).name if isinstance(option, SketchOption) else option.text
    cuts = [f"without {click.x:g},{click.y:g}" for click in region.clicks]
    return " ".join([option.kind, text, *cuts])
