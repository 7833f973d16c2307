"""Last numbers of a model, fitted on annotated regions and folded into the weights.

    python tools/calibrate.py --model FILE --data DIR/train.json --images DIR/images --out FILE

boxes: how much larger the masks of boxes should be, for the best mean IoU.
box_iou, point_iou: lines for the IoU scores of boxes (outlined or not) and clicks (not outlined).
concepts: a temperature for the concepts, so that they mean what they say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from calibrate_fits import fit_box_masks, measure

from tokenize_anything import TAPPredictor
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import find_companions
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.evaluation.calibration import fit_line, fit_temperature
from tokenize_anything.evaluation.region_truth import read_true_images
from tokenize_anything.modeling import TAP

PARTS = ("boxes", "box_iou", "point_iou", "concepts")


@torch.no_grad()
def apply_lines(model: TAP, box: tuple[float, float], point: tuple[float, float]) -> None:
    """Fold slopes and intercepts into the heads that score masks."""
    outliner, clicker = model.view_segmenter, model.click_segmenter
    heads = [(model.image_decoder.iou_head, [(1.0, 0.0) if outliner else box, *[point] * 3])]
    heads += [(outliner.iou_head, [box])] if outliner else []
    heads[0] = (clicker.iou_head, [point]) if clicker else heads[0]
    for head, lines in heads:
        slope, intercept = torch.tensor(lines).T.float()
        last = head.layers[-1]
        last.weight.mul_(slope[:, None])
        last.bias.mul_(slope).add_(intercept)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--model", "--data", "--images", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--max-images", type=int, default=300)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounded", nargs="*", default=(), help="see save_model")
    arguments = parser.parse_args()
    predictor = TAPPredictor.from_pretrained(arguments.model, device="cpu", dtype="float32")
    model = predictor.model
    images = read_true_images(arguments.data, arguments.images)
    spread = np.linspace(0, len(images) - 1, min(arguments.max_images, len(images))).astype(int)
    images = [images[row] for row in spread]
    if "boxes" in arguments.parts:
        chosen = {path for path, _ in images}
        records, _ = read_regions([arguments.data], arguments.images)
        fit_box_masks(predictor, images, [each for each in records if Path(each.path) in chosen])
    if arguments.parts != ["boxes"]:
        found = measure(predictor, images, with_clicks="point_iou" in arguments.parts)
        log_probs, names, by_box, by_click = found
        box = fit_line(*by_box.T) if "box_iou" in arguments.parts else (1.0, 0.0)
        point = fit_line(*by_click.T) if "point_iou" in arguments.parts else (1.0, 0.0)
        print(f"IoU lines {box} {point}")
        apply_lines(model, box, point)
    own = find_companions(arguments.model, arguments.model, None, model.config.vocabulary_size)
    if "concepts" in arguments.parts:
        temperature = fit_temperature(log_probs, names)
        print(f"concept weights x {temperature:.3f}")
        own.concepts.weights.mul_(temperature)
    kept = dict(zip(("extra_tensors", "metadata"), own.pack(), strict=True))
    save_model(model, arguments.out, dtype="float16", rounded=arguments.rounded, **kept)


if __name__ == "__main__":
    main()
