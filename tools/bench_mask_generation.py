"""The yardstick of bench_everything: transformers' mask-generation pipeline, random SAM ViT-B."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenize_anything.mask_filtering import box_iou, pick_distinct
from tokenize_anything.torchvision_operators import ensure_torchvision_operators


class MaskGenerationBench:
    """Random weights, so that only the time means anything.

    Args:
        dtype: of the model.
        points_per_side: of the grid.
    """

    def __init__(self, device: str, dtype: str, points_per_side: int) -> None:
        ensure_torchvision_operators()
        from transformers import SamConfig, SamImageProcessor, SamModel, pipeline

        torch.manual_seed(0)
        model = SamModel(SamConfig()).eval().to(device, getattr(torch, dtype))
        self.head = model.mask_decoder.iou_prediction_head
        with torch.no_grad():
            self.head.proj_out.bias += 10  # thresholds work on positive scores only
        self.generate = pipeline(
            "mask-generation", model=model, image_processor=SamImageProcessor(), device=device
        )
        self.points_per_side = points_per_side
        _replace_missing_nms()

    def scores(self, photo: np.ndarray) -> Tensor:
        """Predicted IoUs of slots 1 to 3 of all clicks; no mask is kept."""
        seen: list[Tensor] = []
        hook = self.head.register_forward_hook(lambda *call: seen.append(call[-1][..., 1:]))
        self(photo, 1e6)
        hook.remove()
        return torch.cat([scores.flatten() for scores in seen]).float()

    def __call__(self, photo: np.ndarray, min_iou: float) -> int:
        """Run the pipeline as it comes; returns the number of masks."""
        found = self.generate(
            Image.fromarray(photo),
            points_per_crop=self.points_per_side,
            pred_iou_thresh=min_iou,
            stability_score_thresh=1e-9,
        )
        return len(found["masks"])


def _replace_missing_nms() -> None:
    """A torchvision without compiled operators has no NMS; the pipeline gets ours then."""
    from torchvision.extension import _has_ops
    from transformers.models.sam import image_processing_sam

    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        order = scores.argsort(descending=True, stable=True)
        is_same = box_iou(boxes[order].cpu().numpy()) > iou_threshold
        return order[torch.from_numpy(pick_distinct(is_same))]

    if not _has_ops():
        image_processing_sam.batched_nms = batched_nms
