"""Photos with everything annotation files have, and predictors that know or guess the truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from tests.data.photos import COLOURS, SHAPES, SIZES_HW, annotate, coco, draw_shape, write_json
from tokenize_anything.config import PointLabel
from tokenize_anything.evaluation.answers import RegionModel
from tokenize_anything.evaluation.coco_truth import photo_path, read_truth, truth_mask
from tokenize_anything.evaluation.rule_predictor import RulePredictor, one_hot_vocabulary
from tokenize_anything.image_loading import load_image
from tokenize_anything.modeling import RegionOutputs
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.region_decoding import EncodedImage

EMPTY_PHOTO = 2  # position of the photo without regions


def write_truth(folder: Path, *, count: int = 5, is_lvis: bool = False) -> Path:
    """Write photos of two shapes each to `folder`/images; returns the annotation file.

    The third photo has no region. Not for LVIS, the first has a crowd, and one shape is a polygon.
    """
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        height, width = SIZES_HW[index % len(SIZES_HW)]
        photo = np.random.default_rng(index).integers(90, 130, (height, width, 3), dtype=np.uint8)
        image = {"id": 10 + index, "file_name": f"{index}.png", "height": height, "width": width}
        if is_lvis:
            image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
        images.append(image)
        if index != EMPTY_PHOTO:
            for step in range(2):
                centre = [(width // 4 + 2, height // 3), (3 * width // 4 - 2, 2 * height // 3)][
                    step
                ]
                kind = SHAPES[(index + step) % 3]
                mask = draw_shape(kind, height, width, centre)
                photo[mask] = COLOURS[list(COLOURS)[(index + step) % 3]]
                number, category = len(annotations), SHAPES.index(kind) + 1
                area = {"area": int(mask.sum())}
                annotations.append(annotate(mask, number, 10 + index, category_id=category, **area))
        cv2.imwrite(str(folder / "images" / f"{index}.png"), photo[..., ::-1])
    content = coco(images, annotations)
    if is_lvis:
        for category, frequency in zip(content["categories"], "rcf", strict=True):
            category["frequency"] = frequency
    else:
        _add_crowd_and_polygon(content)
    return write_json(folder / "truth.json", content)


def _add_crowd_and_polygon(content: dict[str, Any]) -> None:
    image = content["images"][0]
    size_hw = image["height"], image["width"]
    runs = [0, 2 * size_hw[0], size_hw[0] * (size_hw[1] - 2)]  # two columns at the left
    content["annotations"].append(
        {
            "id": len(content["annotations"]),
            "image_id": image["id"],
            "category_id": 1,
            "bbox": [0, 0, 2, size_hw[0]],
            "segmentation": {"size": list(size_hw), "counts": runs},
            "area": 2 * size_hw[0],
            "iscrowd": 1,
        }
    )
    brick = next(each for each in content["annotations"] if each["category_id"] == 2)
    x, y, width, height = brick["bbox"]
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    brick["segmentation"] = [corners]


class Oracle(RulePredictor):
    """Knows every photo of a file by its pixels, and answers with the true mask and name."""

    def __init__(self, annotations: Path, folder: Path) -> None:
        truth = read_truth(annotations)
        names = list(truth.category_names.values())
        super().__init__("oracle", self._true_mask, concepts=one_hot_vocabulary(names))
        self.photos: dict[bytes, list[tuple[np.ndarray, np.ndarray, str]]] = {}
        for image in truth.content["images"]:
            regions = []
            for each in truth.by_image[image["id"]]:
                mask = truth_mask(each["segmentation"], image["height"], image["width"])
                x, y, width, height = each["bbox"]
                box = np.array([x, y, x + width, y + height])
                regions.append((box, mask, truth.category_names[each["category_id"]]))
            self.photos[load_image(photo_path(image, folder)).tobytes()] = regions

    def _find(self, rgb: np.ndarray, coords: np.ndarray, labels: np.ndarray) -> Any:
        """The region of a box, or the one in the middle of the foreground clicks."""
        regions = self.photos[rgb.tobytes()]
        if labels[0] == PointLabel.TOP_LEFT:
            return min(regions, key=lambda each: np.abs(each[0] - coords[:2].reshape(4)).sum())
        middle = coords[labels == PointLabel.FOREGROUND].mean(axis=0)[::-1]
        return min(
            regions, key=lambda each: np.hypot(*(np.argwhere(each[1]).mean(axis=0) - middle))
        )

    def _true_mask(self, rgb: np.ndarray, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self._find(rgb, coords, labels)[1]

    def decode_regions(
        self, encoded: EncodedImage, prompts: PointPrompts, *, all_slots: bool = True
    ) -> RegionOutputs:
        outputs = super().decode_regions(encoded, prompts, all_slots=all_slots)
        rgb, names = encoded.features.numpy(), self.concepts.names
        found = [
            self._find(rgb, coords[:count], labels[:count])[2]
            for coords, labels, count in zip(
                prompts.coords_xy, prompts.labels, prompts.num_points, strict=True
            )
        ]
        axes = torch.eye(len(names))[[names.index(name) for name in found]]
        num_slots = outputs.semantic_embeddings.shape[1]
        embeddings = axes[:, None].expand(-1, num_slots, -1)
        return dataclasses.replace(outputs, semantic_embeddings=embeddings)


def coin_flips(seed: int = 0) -> RegionModel:
    """A predictor whose pixels are right by chance: each is drawn anew, half of them set."""
    rng = np.random.default_rng(seed)
    return RulePredictor("coin", lambda rgb, coords, labels: rng.random(rgb.shape[:2]) < 0.5)


class CoinNames(RulePredictor):
    """Right by chance: half of all pixels are set, and every name is as likely as another."""

    def __init__(self, names: list[str], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        super().__init__("coin", self._flip, concepts=one_hot_vocabulary(names))

    def _flip(self, rgb: np.ndarray, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self.rng.random(rgb.shape[:2]) < 0.5

    def decode_regions(
        self, encoded: EncodedImage, prompts: PointPrompts, *, all_slots: bool = True
    ) -> RegionOutputs:
        outputs = super().decode_regions(encoded, prompts, all_slots=all_slots)
        count, num_slots, num_names = outputs.semantic_embeddings.shape
        axes = torch.eye(num_names)[torch.from_numpy(self.rng.integers(num_names, size=count))]
        embeddings = axes[:, None].expand(-1, num_slots, -1)
        return dataclasses.replace(outputs, semantic_embeddings=embeddings)


def edit(path: Path, change: Any) -> Path:
    """Change the content of a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    return write_json(path, content)
