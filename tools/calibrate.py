"""Make the scores of a model mean what they say: concepts by a temperature, IoU by a line.

    python tools/calibrate.py --model FILE --data DIR/train.json --images DIR/images --out FILE

Both are fitted on regions prompted by boxes (slots 1 to 3: by points) and folded into the weights.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tokenize_anything import TAPPredictor
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import find_companions
from tokenize_anything.evaluation.calibration import fit_line, fit_temperature
from tokenize_anything.evaluation.region_truth import (
    load_true_images,
    read_true_images,
)
from tokenize_anything.geometry import innermost_point


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
            overlap = (part.masks & masks).sum(axis=(1, 2)) / (part.masks | masks).sum(axis=(1, 2))
            pairs.extend(zip(part.iou_scores.tolist(), overlap.tolist(), strict=True))
        known = [row for row, region in enumerate(regions) if region.name in position]
        embeddings = torch.from_numpy(found.semantic_embeddings[len(regions) :][known])
        log_probs.append(predictor.concepts.log_probs(embeddings).numpy())
        names += [position[regions[row].name] for row in known]
    return np.concatenate(log_probs), np.array(names), np.array(by_box), np.array(by_click)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--model", "--data", "--images", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--max-images", type=int, default=300)
    arguments = parser.parse_args()
    predictor = TAPPredictor.from_pretrained(arguments.model, device="cpu", dtype="float32")
    images = read_true_images(arguments.data, arguments.images)
    spread = np.linspace(0, len(images) - 1, min(arguments.max_images, len(images))).astype(int)
    log_probs, names, by_box, by_click = measure(predictor, [images[row] for row in spread])
    temperature = fit_temperature(log_probs, names)
    lines = [fit_line(*by_box.T), *[fit_line(*by_click.T)] * 3]
    print(f"concept weights x {temperature:.3f}; IoU lines {lines[:2]}")
    model = load_model(arguments.model, device="cpu", dtype="float32")
    slope, intercept = torch.tensor(lines).T.float()
    with torch.no_grad():
        last = model.image_decoder.iou_head.layers[-1]
        last.weight.mul_(slope[:, None])
        last.bias.mul_(slope).add_(intercept)
    own = find_companions(arguments.model, arguments.model, None, model.config.vocabulary_size)
    concepts = dataclasses.replace(own.concepts, weights=own.concepts.weights * temperature)
    tensors, metadata = dataclasses.replace(own, concepts=concepts).pack()
    save_model(model, arguments.out, dtype="float16", metadata=metadata, extra_tensors=tensors)


if __name__ == "__main__":
    main()
