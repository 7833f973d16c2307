"""Following objects through a clip: each frame is prompted with the masks of the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from tokenize_anything.evaluation.answers import RegionModel, decode_prompts, second_look
from tokenize_anything.geometry import mask_iou, masks_to_boxes
from tokenize_anything.image_transform import restore_logits
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import EncodedImage

VIDEO_PROMPTS = ("box", "points", "box_points")
OVERLAP_LIMIT = 0.4
LOWEST_CLAIM = 1e-6  # of a mask with a predicted IoU of 0 or less


@dataclass(frozen=True)
class TrackingConfig:
    """How a frame is asked for the objects of the one before.

    prompt: made from an object's last good mask: its "box", nine "points" of it, or both.
    margin: how far the box grows on every side, as a share of its size: objects move.
    overlap_limit: predictions of two objects that overlap more than this (IoU) are judged wrong,
        and both objects keep the prompts they had; as in PSALM's evaluation on DAVIS.
    """

    prompt: str = "box"
    margin: float = 0.05
    overlap_limit: float = OVERLAP_LIMIT

    def __post_init__(self) -> None:
        if self.prompt not in VIDEO_PROMPTS:
            raise ValueError(f"prompt: expected one of {VIDEO_PROMPTS}, got {self.prompt!r}")
        if not 0 <= self.margin <= 1:
            raise ValueError(f"margin: expected 0 to 1, got {self.margin}")
        if not 0 < self.overlap_limit <= 1:
            raise ValueError(f"overlap_limit: expected above 0 to 1, got {self.overlap_limit}")


class Tracker(Protocol):
    """Labels the frames of a clip from the labels of its first."""

    def start(self, rgb: np.ndarray, labels: np.ndarray) -> None:
        """Take the first frame (H,W,3) uint8 and its labels (H,W) uint8."""

    def step(self, rgb: np.ndarray) -> np.ndarray:
        """Labels (H,W) uint8 of the next frame."""


class PromptTracker:
    """Zero-shot tracking with a promptable model: no frame is remembered but by its masks."""

    def __init__(self, predictor: RegionModel, config: TrackingConfig | None = None) -> None:
        self.predictor = predictor
        self.config = config or TrackingConfig()
        self.memory = np.zeros((0, 1, 1), bool)
        self.numbers = np.zeros(0, np.int64)

    def start(self, rgb: np.ndarray, labels: np.ndarray) -> None:
        """Remember the masks of the objects that the first frame shows."""
        self.numbers = np.unique(labels[(labels > 0) & (labels < 255)]).astype(np.int64)
        self.memory = labels[None] == self.numbers[:, None, None]

    def step(self, rgb: np.ndarray) -> np.ndarray:
        """Predict every object from its remembered mask, and remember what can be trusted."""
        if not len(self.numbers):
            return np.zeros(rgb.shape[:2], np.uint8)
        encoded = self.predictor.encode_images(rgb)
        claims = claim_pixels(self.predictor, encoded, make_prompts(self.memory, self.config))
        owners = fuse_masks(claims)
        is_good = trusted_masks(claims > 0, self.config.overlap_limit)
        fused = owners[None] == np.arange(1, len(self.numbers) + 1)[:, None, None]
        is_good &= fused.any(axis=(1, 2))
        self.memory = np.where(is_good[:, None, None], fused, self.memory)
        return np.concatenate([[0], self.numbers])[owners].astype(np.uint8)


class StillTracker:
    """Baseline: nothing moves."""

    def start(self, rgb: np.ndarray, labels: np.ndarray) -> None:
        """Keep the labels."""
        self.labels = labels

    def step(self, rgb: np.ndarray) -> np.ndarray:
        """The same labels."""
        return self.labels


class FlowTracker:
    """Baseline: labels move with the optical flow (OpenCV's DIS, Kroeger et al. 2016)."""

    def start(self, rgb: np.ndarray, labels: np.ndarray) -> None:
        """Keep the frame and its labels."""
        self.gray, self.labels = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), labels

    def step(self, rgb: np.ndarray) -> np.ndarray:
        """Each pixel takes the label of the place in the last frame that it came from."""
        gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        dense = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow = dense.calc(gray, self.gray, np.zeros((*gray.shape, 2), np.float32))
        y, x = np.indices(gray.shape, dtype=np.float32)
        self.labels = cv2.remap(self.labels, x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST)
        self.gray = gray
        return self.labels


def make_prompts(masks: np.ndarray, config: TrackingConfig) -> PointPrompts:
    """Prompts from the last masks (R,H,W), none of them empty, clipped to the frame."""
    points = PointPrompts.from_masks(masks)
    if config.prompt == "points":
        return points
    height, width = masks.shape[1:]
    boxes = masks_to_boxes(masks)
    grown = config.margin * (boxes[:, 2:] - boxes[:, :2])
    boxes = np.concatenate([boxes[:, :2] - grown, boxes[:, 2:] + grown], axis=1)
    boxes = boxes.clip(0, [width, height, width, height])
    if config.prompt == "box":
        return PointPrompts.from_boxes(boxes)
    return PointPrompts.from_boxes(boxes, points.coords_xy[:, :-1])


def claim_pixels(
    predictor: RegionModel, encoded: EncodedImage, prompts: PointPrompts
) -> np.ndarray:
    """How much each object wants each pixel of a frame (R,H,W), above 0 in its mask alone.

    That is the logit, where a model looks once. One that looks twice at small regions makes their
    masks in windows of their own, whose logits do not compare: its predicted IoU counts for a mask.
    """
    if second_look(predictor) is None:
        outputs = predictor.decode_regions(encoded, prompts, all_slots=False)
        return restore_logits(outputs.select(outputs.mask_logits), encoded.frame)
    found = decode_prompts(predictor, encoded, prompts, with_names=False)
    scores = found.iou_scores.float().cpu().numpy().clip(LOWEST_CLAIM)
    return np.where(found.masks, scores[:, None, None], -1.0)


def fuse_masks(claims: np.ndarray) -> np.ndarray:
    """(R,H,W) claims to (H,W) int64 owners: 0 for none, else 1 + the row with the highest claim."""
    best = claims.argmax(axis=0)
    return np.where(claims.max(axis=0) > 0, best + 1, 0)


def trusted_masks(masks: np.ndarray, overlap_limit: float) -> np.ndarray:
    """(R,) whether a mask overlaps no other by more than the limit; masks before fusion."""
    overlap = mask_iou(masks, masks)
    np.fill_diagonal(overlap, 0.0)
    return np.asarray((overlap <= overlap_limit).all(axis=1))
