"""Run `tap predict` on a real photo with a point, a box and a sketch; show what was run.

The photo ships with scikit-image: Eileen Collins, by NASA, in the public domain.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tokenize_anything.cli import main as run_tap

POINT_XY = (215, 400)  # on the suit
BOX_XYXY = (20, 5, 430, 510)  # around the astronaut
STROKES_XY = (  # over the face
    ((195, 75), (225, 60), (255, 75)),
    ((200, 120), (225, 160), (250, 120)),
)
STROKE_WIDTH = 9


def draw_strokes(height: int, width: int) -> np.ndarray:
    """(H,W) uint8, 255 where the sketch was drawn."""
    sketch = np.zeros((height, width), np.uint8)
    for stroke in STROKES_XY:
        cv2.polylines(sketch, [np.array(stroke, np.int32)], False, 255, STROKE_WIDTH)
    return sketch


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """Write photo and sketch."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    photo, sketch = folder / "demo_photo.png", folder / "demo_sketch.png"
    pixels = data.astronaut()
    Image.fromarray(pixels).save(photo)
    Image.fromarray(draw_strokes(*pixels.shape[:2])).save(sketch)
    return photo, sketch


def main() -> int:
    """Make the inputs, run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results (out)")
    parser.add_argument("--model", default="tap_tiny", help="see `tap predict --help` (tap_tiny)")
    arguments = parser.parse_args()
    photo, sketch = write_inputs(arguments.out)
    command = ["predict", str(photo), "--model", arguments.model]
    command += ["--point", "{},{}".format(*POINT_XY)]
    command += ["--box", "{},{},{},{}".format(*BOX_XYXY)]
    command += ["--sketch", str(sketch)]
    command += ["--json", str(arguments.out / "demo.json")]
    command += ["--save", str(arguments.out / "demo.png")]
    print(f"$ tap {shlex.join(command)}\n", flush=True)
    return run_tap(command)


if __name__ == "__main__":
    sys.exit(main())
