"""How well a model outlines held-out regions, measured while stage 1 trains."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.geometry import decode_rle, masks_to_boxes
from tokenize_anything.image_transform import prepare_images
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import (
    EncodedImage,
    count_regions_in_memory,
    decode_image,
)
from tokenize_anything.training.config import MaskValidationConfig
from tokenize_anything.training.distributed import Processes

COLUMNS = ("box_iou", "point_iou", "mean_iou")


class MaskValidator:
    """Mean IoU of regions, each asked for by the box of its mask and by one point of it.

    Whole photos, prepared as at inference; nothing is drawn at random. The processes share the
    photos.

    Args:
        config: which photos.
        processes: all of them; each needs the whole model.

    Raises:
        FileNotFoundError: annotations are missing.
        ValueError: they are damaged, or hold no mask.
    """

    def __init__(self, config: MaskValidationConfig, processes: Processes) -> None:
        files = config.data.annotation_files
        records, _ = read_regions(files, config.data.image_folder)
        with_masks = [_only_masks(record) for record in records]
        with_masks = [record for record in with_masks if record.regions]
        if not with_masks:
            raise ValueError(f"validation.data: expected regions with masks in {list(files)}")
        count = min(config.max_images, len(with_masks))
        picks = np.linspace(0, len(with_masks) - 1, count).round().astype(int)
        self.records = [with_masks[pick] for pick in picks]
        self.processes = processes

    @torch.no_grad()
    def run(self, model: TAP, precision: torch.dtype | None = None) -> dict[str, float]:
        """Scores in [0, 1] by the names of `COLUMNS`; the model is put in evaluation mode.

        Args:
            model: whole, on the device of the processes.
            precision: to run under autocast; None runs as the weights are.

        Raises:
            FileNotFoundError: a photo is missing.
            ValueError: a photo cannot be decoded or has another size than its annotation says.
        """
        model.eval()
        total = torch.zeros(3, dtype=torch.float64)
        for record in self.records[self.processes.rank :: self.processes.world]:
            with torch.autocast(model.device.type, precision, enabled=precision is not None):
                total += torch.tensor(_score_photo(model, record), dtype=torch.float64)
        box, point, count = self.processes.sum(total).tolist()
        return {
            "box_iou": box / count,
            "point_iou": point / count,
            "mean_iou": (box + point) / (2 * count),
        }


def middle_point(mask: np.ndarray) -> tuple[int, int]:
    """The middle pixel (x, y) of the middle row of a mask (H,W), of those that hold its pixels."""
    rows, columns = np.nonzero(mask)
    row = rows[len(rows) // 2]
    in_row = columns[rows == row]
    return int(in_row[len(in_row) // 2]), int(row)


def _score_photo(model: TAP, record: ImageRecord) -> tuple[float, float, int]:
    """Sums of the IoU from boxes and from points, and how many regions."""
    masks = np.stack([decode_rle(region.rle) for region in record.regions if region.rle])
    points = np.array([middle_point(mask) for mask in masks], dtype=np.float32)
    prompts = (
        PointPrompts.from_boxes(masks_to_boxes(masks)),
        PointPrompts.from_points(points),
    )
    pixels, frames = prepare_images([read_image(record)], model.config)
    features = model.encode_images(pixels.to(model.device, model.dtype))
    encoded = EncodedImage(features[0], frames[0])
    chunk = count_regions_in_memory(model)
    box, point = (
        float(_overlaps(decode_image(model, encoded, asked, chunk=chunk).masks, masks).sum())
        for asked in prompts
    )
    return box, point, len(masks)


def _overlaps(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of masks (R,H,W) one by one, (R,)."""
    shared = np.count_nonzero(predicted & truth, axis=(1, 2))
    return shared / np.count_nonzero(predicted | truth, axis=(1, 2))


def _only_masks(record: ImageRecord) -> ImageRecord:
    regions = tuple(region for region in record.regions if region.rle is not None)
    return dataclasses.replace(record, regions=regions)
