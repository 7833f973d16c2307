"""Masks for regions of which only the box is known, from the outlines that a model draws in boxes.

A model outlines boxes better than it answers clicks, so what it says about the one teaches the
other (pseudo-labels; Lee 2013).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.geometry import encode_rle
from tokenize_anything.mask_filtering import box_iou
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.view_outlines import outline_regions
from tokenize_anything.views import known_extents

SAME_REGION = 0.8  # IoU of a box with that of a mask from which on both are one region


@torch.no_grad()
def outline_boxes(
    model: TAP, records: Sequence[ImageRecord], *, min_score: float, min_side: float
) -> list[ImageRecord]:
    """The same photos with masks for boxes without one, where the model is sure enough of them.

    A box of which there is no good mask stays as it is, and so does one that is the box of a true
    mask (a photo may come from two files).

    Args:
        model: with a view segmenter, in evaluation mode.
        records: annotated photos.
        min_score: lowest IoU score of a mask.
        min_side: shortest side of a box, original pixels.

    Raises:
        FileNotFoundError: a photo is missing.
        ValueError: it cannot be decoded, has another size than its annotation says, or a box lies
            outside it.
    """
    outlined = []
    for record in tqdm(records, desc="outlines", mininterval=5):
        rows = _boxes_alone(record, min_side)
        regions = list(record.regions)
        if rows:
            prompts = PointPrompts.from_boxes([regions[row].box_xyxy for row in rows])
            try:
                prompts.validate_for_image(record.height, record.width)
            except ValueError as error:
                raise ValueError(f"image: {record.path}: {error}") from error
            image = read_image(record)
            for found in outline_regions(model, image, prompts, known_extents(prompts)):
                if float(found.iou_score) >= min_score and found.mask.any():
                    row = rows[found.row]
                    regions[row] = dataclasses.replace(regions[row], rle=encode_rle(found.mask))
        outlined.append(dataclasses.replace(record, regions=tuple(regions)))
    return outlined


def _boxes_alone(record: ImageRecord, min_side: float) -> list[int]:
    """Rows of the regions that have a box and no mask, and are none of those that have one."""
    some = [row for row, region in enumerate(record.regions) if not region.is_whole_image]
    if not some:
        return []
    boxes = np.array([record.regions[row].box_xyxy for row in some], dtype=np.float64)
    has_mask = np.array([record.regions[row].rle is not None for row in some])
    is_known = (box_iou(boxes)[:, has_mask] > SAME_REGION).any(axis=1)
    is_large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= min_side
    return np.array(some)[~has_mask & ~is_known & is_large].tolist()
