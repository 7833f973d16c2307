"""Draw what the built-in model gets wrong on three photos that ship with scikit-image.

    python tools/draw_failures.py --out docs/images/failures.jpg

A cat (Stefan van der Walt), a cup of coffee (Rachel Michetti) and a rocket (SpaceX); all CC0.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

from tokenize_anything import TAPPredictor

HEIGHT = 300  # of each picture, pixels
ASKED: dict[str, dict[str, Any]] = {
    "chelsea": {"points": [[130, 110], [230, 180]]},
    "coffee": {"points": [[470, 330]], "boxes": [[420, 210, 600, 390]]},
    "rocket": {"points": [[322, 200]], "boxes": [[300, 90, 345, 330]]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tap_tiny")
    arguments = parser.parse_args()
    predictor = TAPPredictor.from_pretrained(arguments.model, device="cpu")
    drawn = []
    for name, prompts in ASKED.items():
        photo = getattr(data, name)()
        regions = predictor.predict_mask_concept_caption(photo, **prompts)
        for region in regions:
            print(f"{name}: {region.concepts[0][0]} {region.concept_scores[0, 0]:.2f}, "
                  f"IoU {region.iou_scores[0]:.2f}, {region.captions[0]}")  # fmt: skip
        picture = Image.fromarray(regions.draw(photo))
        drawn.append(picture.resize((picture.width * HEIGHT // picture.height, HEIGHT)))
    row = Image.new("RGB", (sum(picture.width for picture in drawn), HEIGHT))
    left = 0
    for picture in drawn:
        row.paste(picture, (left, 0))
        left += picture.width
    row.save(arguments.out, quality=88)


if __name__ == "__main__":
    main()
