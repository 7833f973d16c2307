"""Run `tap predict` on a real photo with a point, a box and a sketch; show what was run.

The photo ships with scikit-image: a coffee cup by Rachel Michetti, released under CC0.
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

POINT_XY = (250, 215)  # on the cup
BOX_XYXY = (322, 66, 427, 328)  # around the spoon
STROKES_XY = (  # on the table, right of the saucer
    ((470, 60), (520, 110), (565, 190), (575, 260)),
    ((500, 330), (550, 300), (585, 340)),
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
    pixels = data.coffee()
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
