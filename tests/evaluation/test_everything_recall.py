"""Recall of annotated masks by proposed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.photos import write_photos
from tests.tiny_predictor import make_photo
from tokenize_anything.evaluation.everything_recall import (
    best_overlaps,
    measure_recall,
    superpixel_pyramid,
)
from tokenize_anything.evaluation.region_truth import load_true_images, read_true_images


def test_best_overlaps() -> None:
    truth = np.zeros((2, 5, 7), bool)
    truth[0, :2, :3] = True
    truth[1, 4, 6] = True
    masks = np.zeros((2, 5, 7), bool)
    masks[0, :2, :4] = True
    masks[1, :1, :3] = True
    np.testing.assert_allclose(best_overlaps(truth, masks), [6 / 8, 0])
    assert best_overlaps(truth, masks[:0]).tolist() == [0, 0]


def test_recall_is_counted_over_regions(tmp_path: Path) -> None:
    annotations = write_photos(tmp_path, count=3)
    images = read_true_images(annotations, tmp_path / "images")
    truth = {
        image.path.name: np.stack([region.mask for region in image.regions])
        for image in load_true_images(images)
    }
    by_pixels = {
        np.asarray(Image.open(path)).tobytes(): truth[path.name]
        for path in (tmp_path / "images").iterdir()
    }

    def first_only(rgb: np.ndarray) -> np.ndarray:
        return by_pixels[rgb.tobytes()][:1]

    def shrunk(rgb: np.ndarray) -> np.ndarray:
        """A little more than half of each region."""
        masks = by_pixels[rgb.tobytes()].copy()
        for mask in masks:
            rows, columns = np.nonzero(mask)
            mask[rows[: int(0.4 * len(rows))], columns[: int(0.4 * len(rows))]] = False
        return masks

    proposers = {
        "exact": lambda rgb: by_pixels[rgb.tobytes()],
        "first": first_only,
        "shrunk": shrunk,
        "none": lambda rgb: np.zeros((0, *rgb.shape[:2]), bool),
    }
    found: dict[str, dict[str, float]] = {name: {} for name in proposers}
    for name, metric, value in measure_recall(proposers, annotations, tmp_path / "images"):
        found[name][metric] = value
    expected = {"exact": (1, 1, 2), "first": (0.5, 0.5, 1), "shrunk": (1, 0, 2), "none": (0, 0, 0)}
    for name, (at_half, at_three_quarters, count) in expected.items():
        assert found[name]["recall at IoU 0.5"] == at_half
        assert found[name]["recall at IoU 0.75"] == at_three_quarters
        assert found[name]["masks per photo"] == count
        assert found[name]["median seconds per photo"] >= 0
    assert found["shrunk"]["mean best IoU"] == pytest.approx(0.6, abs=0.02)
    few = measure_recall(proposers, annotations, tmp_path / "images", max_images=1)
    assert len(list(few)) == 4 * 5


def test_superpixels_of_each_level_cover_the_photo() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    rgb = make_photo(30, 40)
    masks = superpixel_pyramid(rgb, 16)
    assert masks.shape[1:] == (30, 40)
    assert (masks.sum(axis=0) == 2).all()  # 16 and 4
    assert 4 < len(masks) <= 30
    assert superpixel_pyramid(rgb, 3).shape == (0, 30, 40)
