"""Answers that need no learning, behind the steps of a predictor: the baselines of every table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from tokenize_anything.concepts import ConceptVocabulary, check_top_k
from tokenize_anything.config import PointLabel
from tokenize_anything.evaluation.baselines import disc_at, ellipse_in_box, filled_box
from tokenize_anything.image_transform import ImageFrame, load_image
from tokenize_anything.modeling import RegionOutputs
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import EncodedImage
from tokenize_anything.text_generation import GenerationConfig

DISC_RADIUS = 0.06  # of the longer side of the photo

# (H,W,3) uint8 RGB photo and the (N,2) coordinates and (N,) labels of one prompt to (H,W) bool.
MaskRule = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class RulePredictor:
    """Draws masks by a rule, always names the same concept and always writes the same caption.

    It has the four steps of `TAPPredictor`, so it goes through every protocol as a model does. Its
    frame is the photo itself, so masks come back as they were drawn. A region without a rule for
    its prompt gets an empty mask.

    Args:
        name: what tables call it.
        draw: how a mask is drawn.
        concepts: the vocabulary it names from; required where names are scored.
        concept: its answer, one of `concepts`; the first of them by default.
        caption: its answer.
    """

    def __init__(
        self,
        name: str,
        draw: MaskRule,
        *,
        concepts: ConceptVocabulary | None = None,
        concept: str | None = None,
        caption: str = "",
    ) -> None:
        self.name = name
        self.draw = draw
        self.concepts = concepts
        self.caption = caption
        self._embedding = _embedding_of(concepts, concept)

    def encode_images(self, images: Any) -> Any:
        """The photos themselves."""
        if isinstance(images, list | tuple):
            return [self.encode_images(image) for image in images]
        rgb = load_image(images)
        height, width = rgb.shape[:2]
        frame = ImageFrame.for_size(height, width, max(height, width))
        return EncodedImage(torch.from_numpy(rgb), frame)

    def decode_regions(
        self, encoded: EncodedImage, prompts: PointPrompts, *, all_slots: bool = True
    ) -> RegionOutputs:
        """One drawn mask per prompt, the same in all slots; its predicted IoU is 1."""
        rgb, side = encoded.features.numpy(), encoded.frame.padded_size
        height, width = encoded.original_hw
        logits = torch.full((len(prompts), 1, side, side), -1, dtype=torch.int8)
        for row in range(len(prompts)):
            count = int(prompts.num_points[row])
            drawn = self.draw(rgb, prompts.coords_xy[row, :count], prompts.labels[row, :count])
            logits[row, 0, :height, :width] += 2 * torch.from_numpy(drawn.astype(np.int8))
        num_slots = 4 if all_slots else 1
        count = len(prompts)
        return RegionOutputs(
            mask_logits=logits.expand(-1, num_slots, -1, -1),
            iou_scores=torch.ones(count, 4),
            mask_tokens=torch.zeros(count, 4, 1),
            semantic_tokens=torch.zeros(count, 4, 1),
            semantic_embeddings=self._embedding.expand(count, num_slots, -1),
            mask_index=torch.zeros(count, dtype=torch.int64),
        )

    def describe_concepts(
        self, semantic_embeddings: Tensor | np.ndarray, *, top_k: int = 1
    ) -> tuple[list[list[str]], np.ndarray]:
        """See `TAPPredictor.describe_concepts`."""
        check_top_k(top_k)
        if self.concepts is None:
            raise ValueError(f"concepts: the baseline {self.name!r} has no vocabulary")
        names, scores = self.concepts.top_k(torch.as_tensor(semantic_embeddings), top_k)
        return names, scores.numpy()

    def write_captions(
        self, semantic_tokens: Tensor | np.ndarray, *, generation: GenerationConfig | None = None
    ) -> tuple[list[str], np.ndarray]:
        """The constant caption for each token, with score 0."""
        count = len(semantic_tokens)
        return [self.caption] * count, np.zeros(count, np.float32)


def one_hot_vocabulary(names: list[str]) -> ConceptVocabulary:
    """A vocabulary whose embeddings are its axes: an axis is named with near certainty."""
    return ConceptVocabulary.from_text_embeddings(names, torch.eye(len(names)))


def _embedding_of(concepts: ConceptVocabulary | None, concept: str | None) -> Tensor:
    """(D,) embedding that points at the concept's column."""
    if concepts is None:
        return torch.zeros(1)
    name = concepts.names[0] if concept is None else concept
    return concepts.subset([name]).weights[:, 0]


# --- rules --------------------------------------------------------------------------------------


def draw_filled_box(rgb: np.ndarray, coords_xy: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """All pixels of the box."""
    return filled_box(_size_of(rgb), _box_of(coords_xy, labels))


def draw_ellipse(rgb: np.ndarray, coords_xy: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The ellipse that touches the sides of the box."""
    return ellipse_in_box(_size_of(rgb), _box_of(coords_xy, labels))


def draw_discs(rgb: np.ndarray, coords_xy: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A disc around every foreground click, less a disc around every background click."""
    shape = _size_of(rgb)
    mask = np.zeros(shape, bool)
    for wanted in (PointLabel.FOREGROUND, PointLabel.BACKGROUND):
        for point in coords_xy[labels == wanted]:
            disc = disc_at(shape, point.tolist(), DISC_RADIUS * max(shape))
            mask = mask | disc if wanted == PointLabel.FOREGROUND else mask & ~disc
    return mask


def draw_grabcut(rgb: np.ndarray, coords_xy: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """OpenCV's GrabCut from the box, five rounds (Rother et al. 2004); the box where it fails."""
    box = filled_box(_size_of(rgb), _box_of(coords_xy, labels))
    if box.all() or not box.any():
        return box
    state = np.where(box, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its clusters start from random pixels
    cv2.grabCut(bgr, state, (0, 0, 0, 0), background, foreground, 5, cv2.GC_INIT_WITH_MASK)
    mask = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    return mask if mask.any() else box


MASK_RULES: dict[str, MaskRule] = {
    "filled_box": draw_filled_box,
    "ellipse": draw_ellipse,
    "grabcut": draw_grabcut,
    "disc": draw_discs,
}


def _size_of(rgb: np.ndarray) -> tuple[int, int]:
    return rgb.shape[0], rgb.shape[1]


def _box_of(coords_xy: np.ndarray, labels: np.ndarray) -> list[float]:
    """The corners of a box prompt; else the extent of the foreground clicks."""
    if labels[0] == PointLabel.TOP_LEFT:
        return coords_xy[:2].reshape(4).tolist()
    clicks = coords_xy[labels == PointLabel.FOREGROUND]
    if not len(clicks):
        return [0.0] * 4
    return [*clicks.min(axis=0).tolist(), *(clicks.max(axis=0) + 1).tolist()]
