"""Last numbers of a model, fitted on annotated regions and folded into the weights.

    python tools/calibrate.py --model FILE --data DIR/train.json --images DIR/images --out FILE

boxes: how much larger the masks of boxes should be, for the best mean IoU.
box_iou, point_iou: a line for the IoU scores of slot 0, and of the others, so that they mean what
they say.
concepts: a temperature for the concepts, so that their probabilities do.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tokenize_anything import TAPPredictor
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import find_companions
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.evaluation.calibration import fit_line, fit_temperature
from tokenize_anything.evaluation.region_truth import (
    load_true_images,
    read_true_images,
)
from tokenize_anything.geometry import innermost_point
from tokenize_anything.training.box_masks import (
    collect_edge_channels,
    constant_direction,
    shift_box_masks,
)

PARTS = ("boxes", "box_iou", "point_iou", "concepts")
OFFSETS = (0.0, 0.5, 1.0, 1.5)  # logits


def measure(predictor: TAPPredictor, images: list) -> tuple[np.ndarray, ...]:
    """Log-probabilities, true names, and (score, IoU) of boxes and of clicks."""
    log_probs, names, by_box, by_click = [], [], [], []
    position = {name: row for row, name in enumerate(predictor.concepts.names)}
    for image in tqdm(load_true_images(images), total=len(images)):
        regions = [region for region in image.regions if region.mask is not None]
        if not regions:
            continue
        boxes = [region.box_xyxy for region in regions]
        clicks = [innermost_point(region.mask) for region in regions]
        found = predictor.predict_mask_concept_caption(
            image.path, boxes=boxes, points=clicks, captions=False
        )
        masks = np.stack([region.mask for region in regions])
        for pairs, part in ((by_click, found[: len(regions)]), (by_box, found[len(regions) :])):
            values = overlaps(part.masks, masks).tolist()
            pairs.extend(zip(part.iou_scores.tolist(), values, strict=True))
        known = [row for row, region in enumerate(regions) if region.name in position]
        embeddings = torch.from_numpy(found.semantic_embeddings[len(regions) :][known])
        log_probs.append(predictor.concepts.log_probs(embeddings).numpy())
        names += [position[regions[row].name] for row in known]
    return np.concatenate(log_probs), np.array(names), np.array(by_box), np.array(by_click)


def mean_box_iou(predictor: TAPPredictor, images: list) -> float:
    """Mean IoU of boxes, over all regions with a mask."""
    values: list[float] = []
    for image in load_true_images(images):
        regions = [region for region in image.regions if region.mask is not None]
        if regions:
            found = predictor.predict_mask_concept_caption(
                image.path, boxes=[region.box_xyxy for region in regions], captions=False
            )
            masks = np.stack([region.mask for region in regions])
            values += overlaps(found.masks, masks).tolist()
    return float(np.mean(values))


def overlaps(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(R,) IoU of masks (R,H,W) with others, one by one."""
    return (masks & others).sum(axis=(1, 2)) / (masks | others).sum(axis=(1, 2))


def fit_box_masks(predictor: TAPPredictor, images: list, records: list) -> None:
    """Try all offsets and leave the best in the model."""
    direction, share = constant_direction(collect_edge_channels(predictor.model, records))
    scores = []
    for offset in OFFSETS:
        shift_box_masks(predictor.model, direction, offset)
        scores.append(mean_box_iou(predictor, images))
        shift_box_masks(predictor.model, direction, -offset)
        print(f"masks of boxes {offset:+.2f} logits: mean IoU {scores[-1]:.4f}", flush=True)
    best = OFFSETS[int(np.argmax(scores))]
    shift_box_masks(predictor.model, direction, best)
    print(f"took {best:+.2f}; the direction is constant for {share:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--model", "--data", "--images", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--max-images", type=int, default=300)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
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
        log_probs, names, by_box, by_click = measure(predictor, images)
        box = fit_line(*by_box.T) if "box_iou" in arguments.parts else (1.0, 0.0)
        point = fit_line(*by_click.T) if "point_iou" in arguments.parts else (1.0, 0.0)
        print(f"IoU lines {box} {point}")
        slope, intercept = torch.tensor([box, point, point, point]).T.float()
        with torch.no_grad():
            last = model.image_decoder.iou_head.layers[-1]
            last.weight.mul_(slope[:, None])
            last.bias.mul_(slope).add_(intercept)
    own = find_companions(arguments.model, arguments.model, None, model.config.vocabulary_size)
    if "concepts" in arguments.parts:
        temperature = fit_temperature(log_probs, names)
        print(f"concept weights x {temperature:.3f}")
        concepts = dataclasses.replace(own.concepts, weights=own.concepts.weights * temperature)
        own = dataclasses.replace(own, concepts=concepts)
    tensors, metadata = own.pack()
    save_model(model, arguments.out, dtype="float16", metadata=metadata, extra_tensors=tensors)


if __name__ == "__main__":
    main()
