"""Mean IoU of the masks of boxes and of single clicks, as curves and calibration need it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tokenize_anything import TAPPredictor
from tokenize_anything.click_answers import write_click_masks
from tokenize_anything.evaluation.region_truth import TrueRegion, load_true_images
from tokenize_anything.geometry import innermost_point
from tokenize_anything.image_loading import load_image
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import decode_image
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


@torch.inference_mode()
def mean_click_iou(predictor: TAPPredictor, images: list) -> float:
    """Mean IoU of innermost pixels as clicks, over all regions with a mask."""
    values: list[float] = []
    for image in tqdm(load_true_images(images), total=len(images), desc="clicks"):
        masks = [region.mask for region in image.regions if region.mask is not None]
        if masks:
            clicks = [innermost_point(mask) for mask in masks]
            found = predictor.predict_mask_concept_caption(
                image.path, points=clicks, captions=False
            )
            values += overlaps(found.masks, np.stack(masks)).tolist()
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


@torch.inference_mode()
def answer_clicks(predictor: TAPPredictor, path: str, clicks: PointPrompts) -> Any:
    """Masks and scores of clicks, before they are outlined where a network answers them first."""
    model = predictor.model
    if model.click_segmenter is None:
        return predictor.predict_mask_concept_caption(path, prompts=clicks, captions=False)
    rgb = load_image(path)
    encoded = predictor.encode_images(rgb)
    found = decode_image(model, encoded, clicks, chunk=predictor.region_chunk)
    write_click_masks(model, rgb, clicks, np.arange(len(clicks)), found)
    return found
