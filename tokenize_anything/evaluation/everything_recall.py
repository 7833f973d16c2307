"""How many annotated regions the automatic mode finds, beside what needs no learning.

Annotations rarely name every region of a photo, so what is found beyond them is no error, and
only recall is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tokenize_anything.evaluation.region_truth import load_true_images, read_true_images
from tokenize_anything.geometry import mask_iou
from tokenize_anything.image_loading import load_image

Propose = Callable[[np.ndarray], np.ndarray]  # (H,W,3) uint8 RGB to masks (R,H,W) bool

IOU_LEVELS = (0.5, 0.75)


@dataclass
class _Tally:
    """What one way to propose masks did so far."""

    best_ious: list[np.ndarray] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def metrics(self) -> Iterator[tuple[str, float]]:
        best = np.concatenate(self.best_ious)
        yield from (
            (f"recall at IoU {level}", float((best >= level).mean())) for level in IOU_LEVELS
        )
        yield "mean best IoU", float(best.mean())
        yield "masks per photo", float(np.mean(self.counts))
        yield "median seconds per photo", float(np.median(self.seconds))


def measure_recall(
    proposers: Mapping[str, Propose],
    annotations: str | Path,
    image_folder: str | Path,
    *,
    max_images: int | None = None,
) -> Iterator[tuple[str, str, float]]:
    """Compare ways to propose masks on the same photos.

    Args:
        proposers: name to function.
        annotations: COCO-style JSON with masks.
        image_folder: where its `file_name`s are.
        max_images: only so many photos, spread evenly over the file.

    Yields:
        (name, metric, value): recall of annotated masks by the best proposed mask, the mean of the
        best IoUs, masks and seconds per photo.

    Raises:
        FileNotFoundError, ValueError: see `read_true_images`.
    """
    images = read_true_images(annotations, image_folder)
    if max_images is not None:
        picked = np.linspace(0, len(images) - 1, min(max_images, len(images))).round().astype(int)
        images = [images[index] for index in picked]
    tallies = {name: _Tally() for name in proposers}
    for photo in tqdm(load_true_images(images), total=len(images), desc="photos", mininterval=5):
        truth = np.stack([region.mask for region in photo.regions if region.mask is not None])
        rgb = load_image(photo.path)
        for name, propose in proposers.items():
            start = time.perf_counter()
            masks = propose(rgb)
            tallies[name].seconds.append(time.perf_counter() - start)
            tallies[name].counts.append(len(masks))
            tallies[name].best_ious.append(best_overlaps(truth, masks))
    for name, tally in tallies.items():
        yield from ((name, metric, value) for metric, value in tally.metrics())


def best_overlaps(truth: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(T,) IoU of each true mask (T,H,W) with its best among masks (R,H,W); 0 without any."""
    if not len(masks):
        return np.zeros(len(truth))
    return mask_iou(truth, masks).max(axis=1)


def superpixel_pyramid(rgb: np.ndarray, num_segments: int) -> np.ndarray:
    """Superpixels (SLIC) of several sizes, each one a mask, (R,H,W).

    Args:
        rgb: (H,W,3) uint8.
        num_segments: about how many the finest level has; each coarser one has a quarter.

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ImportError(
            "superpixels need the package scikit-image: pip install tokenize-anything[demo]"
        ) from error
    masks = []
    while num_segments >= 4:
        labels = slic(rgb, n_segments=num_segments, compactness=10, start_label=0)
        masks.append(labels == np.arange(labels.max() + 1)[:, None, None])
        num_segments //= 4
    return np.concatenate(masks) if masks else np.zeros((0, *rgb.shape[:2]), bool)
