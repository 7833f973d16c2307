"""What calibrate.py measures on annotated regions, and the search for the size of boxes' masks."""

from __future__ import annotations

import numpy as np
import torch
from eval_masks import answer_clicks, mean_box_iou, overlaps
from tqdm import tqdm

from tokenize_anything import PointPrompts, TAPPredictor
from tokenize_anything.evaluation.region_truth import load_true_images
from tokenize_anything.geometry import innermost_point
from tokenize_anything.training.box_masks import (
    collect_edge_channels,
    constant_direction,
    shift_box_masks,
)

OFFSETS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # logits


def measure(predictor: TAPPredictor, images: list, *, with_clicks: bool) -> tuple[np.ndarray, ...]:
    """Log-probabilities, true names, -1 for others, (score, IoU) of boxes and, if asked, clicks."""
    log_probs, names, by_box, by_click = [], [], [], []
    position = {name: row for row, name in enumerate(predictor.concepts.names)}
    for image in tqdm(load_true_images(images), total=len(images)):
        regions = [region for region in image.regions if region.mask is not None]
        if not regions:
            continue
        boxes = [region.box_xyxy for region in regions]
        masks = np.stack([region.mask for region in regions])
        found = predictor.predict_mask_concept_caption(image.path, boxes=boxes, captions=False)
        answers = [(by_box, found)]
        if with_clicks:
            clicks = PointPrompts.from_points([innermost_point(mask) for mask in masks])
            answers.append((by_click, answer_clicks(predictor, image.path, clicks)))
        for pairs, answer in answers:
            values = overlaps(answer.masks, masks).tolist()
            pairs.extend(zip(answer.iou_scores.tolist(), values, strict=True))
        named = [row for row, region in enumerate(regions) if region.name is not None]
        embeddings = torch.from_numpy(found.semantic_embeddings[named])
        log_probs.append(predictor.concepts.log_probs(embeddings).numpy())
        names += [position.get(regions[row].name, -1) for row in named]
    return np.concatenate(log_probs), np.array(names), np.array(by_box), np.array(by_click)


def fit_box_masks(predictor: TAPPredictor, images: list, records: list) -> None:
    """Try all offsets and leave the best in the model."""
    model = predictor.model
    if model.view_segmenter is not None:
        bias = model.view_segmenter.mask_head.bias.data

        def shift(offset: float) -> None:
            bias.add_(offset)
    else:
        direction, share = constant_direction(collect_edge_channels(model, records))
        print(f"the direction is constant for {share:.4f}", flush=True)

        def shift(offset: float) -> None:
            shift_box_masks(model, direction, offset)

    scores = []
    for offset in OFFSETS:
        shift(offset)
        scores.append(mean_box_iou(predictor, images))
        shift(-offset)
        print(f"masks of boxes {offset:+.2f} logits: mean IoU {scores[-1]:.4f}", flush=True)
    best = OFFSETS[int(np.argmax(scores))]
    shift(best)
    print(f"took {best:+.2f}", flush=True)
