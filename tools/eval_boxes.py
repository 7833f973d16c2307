"""Mean IoU of the masks of boxes, as curves and calibration need it."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from tokenize_anything import TAPPredictor
from tokenize_anything.evaluation.region_truth import TrueRegion, load_true_images
from tokenize_anything.image_loading import load_image
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.view_outlines import outline_regions
from tokenize_anything.views import known_extents


def overlaps(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(R,) IoU of masks (R,H,W) with others, one by one."""
    return (masks & others).sum(axis=(1, 2)) / (masks | others).sum(axis=(1, 2))


@torch.inference_mode()
def mean_box_iou(predictor: TAPPredictor, images: list) -> float:
    """Mean IoU of boxes, over all regions with a mask; tokens are not computed where they can be
    left out.
    """
    values: list[float] = []
    for image in tqdm(load_true_images(images), total=len(images), desc="boxes"):
        regions = [region for region in image.regions if region.mask is not None]
        if regions:
            found = masks_of_boxes(predictor, image.path, regions)
            values += overlaps(found, np.stack([region.mask for region in regions])).tolist()
    return float(np.mean(values))


def masks_of_boxes(predictor: TAPPredictor, path: str, regions: list[TrueRegion]) -> np.ndarray:
    """(R,H,W) bool."""
    boxes = [region.box_xyxy for region in regions]
    if predictor.model.view_segmenter is None:
        return predictor.predict_mask_concept_caption(path, boxes=boxes, captions=False).masks
    prompts = PointPrompts.from_boxes(boxes)
    extents = known_extents(prompts)
    outlines = outline_regions(predictor.model, load_image(path), prompts, extents)
    return np.stack([outline.mask for outline in outlines])
