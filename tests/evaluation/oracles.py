"""Predictors that know the truth, and clips of moving shapes: what must score 100."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from tests.data.photos import draw_shape
from tokenize_anything.concepts import ConceptVocabulary
from tokenize_anything.evaluation.rule_predictor import one_hot_vocabulary
from tokenize_anything.geometry import decode_rle, encode_rle
from tokenize_anything.image_transform import ImageFrame, load_image
from tokenize_anything.modeling import RegionOutputs
from tokenize_anything.region_decoding import EncodedImage


@dataclass(frozen=True, eq=False)
class Known:
    """What the oracle knows of one region; the mask may be missing."""

    box_xyxy: tuple[float, ...]
    mask: np.ndarray | None
    name: str | None
    caption: str


class OraclePredictor:
    """Answers every prompt with the truth about the region it points at.

    `known` maps the bytes of a photo to its regions. A box means the region with those corners, a
    click the region whose mask it lies in, else the smallest box around it.
    """

    def __init__(self, known: dict[bytes, list[Known]], names: Sequence[str]) -> None:
        self.known = known
        self.name = "oracle"
        self.concepts: ConceptVocabulary | None = one_hot_vocabulary(list(names)) if names else None
        self.captions = [region.caption for regions in known.values() for region in regions]
        self.answers = list(self.captions)

    def encode_images(self, images: Any) -> Any:
        if isinstance(images, list):
            return [self.encode_images(image) for image in images]
        rgb = load_image(images)
        frame = ImageFrame.for_size(*rgb.shape[:2], max(rgb.shape[:2]))
        return EncodedImage(torch.from_numpy(rgb), frame)

    def decode_regions(
        self, encoded: Any, prompts: Any, *, all_slots: bool = True
    ) -> RegionOutputs:
        regions = self.known[encoded.features.numpy().tobytes()]
        height, width = encoded.original_hw
        count, side = len(prompts), encoded.frame.padded_size
        logits = -torch.ones(count, 1, side, side)
        tokens, embeddings = torch.zeros(count, 4, 1), []
        for row, prompt in enumerate(prompts):
            region = _meant(regions, prompt.coords_xy[0], prompt.labels[0, 0] == 2)
            if region.mask is not None:
                logits[row, 0, :height, :width] += 2 * torch.from_numpy(region.mask).float()
            tokens[row] = self.captions.index(region.caption)
            embeddings.append(self._embedding(region.name))
        return RegionOutputs(
            mask_logits=logits,
            iou_scores=torch.ones(count, 4),
            mask_tokens=torch.zeros(count, 4, 1),
            semantic_tokens=tokens,
            semantic_embeddings=torch.stack(embeddings)[:, None],
            mask_index=torch.zeros(count, dtype=torch.int64),
        )

    def describe_concepts(self, semantic_embeddings: Any, *, top_k: int = 1) -> Any:
        assert self.concepts is not None
        names, scores = self.concepts.top_k(semantic_embeddings, top_k)
        return names, scores.numpy()

    def write_captions(self, semantic_tokens: Any, *, generation: Any = None) -> Any:
        texts = [self.answers[int(token)] for token in semantic_tokens[:, 0]]
        return texts, np.zeros(len(texts), np.float32)

    def _embedding(self, name: str | None) -> torch.Tensor:
        if self.concepts is None:
            return torch.zeros(1)
        return self.concepts.weights[:, self.concepts.names.index(name) if name else 0]


def _meant(regions: list[Known], coords_xy: np.ndarray, is_box: bool) -> Known:
    if is_box:
        corners = coords_xy[:2].ravel()
        return min(regions, key=lambda each: np.abs(np.subtract(each.box_xyxy, corners)).max())
    x, y = coords_xy[0]
    inside = [each for each in regions if each.mask is not None and each.mask[int(y), int(x)]]
    around = [
        each
        for each in regions
        if each.box_xyxy[0] <= x <= each.box_xyxy[2] and each.box_xyxy[1] <= y <= each.box_xyxy[3]
    ]
    return (inside or sorted(around, key=lambda each: _area(each.box_xyxy)))[0]


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def oracle_of(annotations: Path, image_folder: Path, *, with_names: bool = True) -> OraclePredictor:
    """An oracle for a COCO-style JSON with run-length masks, names and captions."""
    content = json.loads(annotations.read_text())
    names = {category["id"]: category["name"] for category in content.get("categories", [])}
    known: dict[bytes, list[Known]] = {}
    for image in content["images"]:
        rgb = load_image(str(image_folder / image["file_name"]))
        regions = known.setdefault(rgb.tobytes(), [])
        for each in content["annotations"]:
            if each["image_id"] == image["id"]:
                x, y, w, h = each["bbox"]
                rle, name = each.get("segmentation"), names.get(each.get("category_id"))
                captions = each.get("captions") or [each.get("caption") or f"a {name}"]
                mask = decode_rle(rle) if rle else None
                regions.append(Known((x, y, x + w, y + h), mask, name, captions[0]))
    return OraclePredictor(known, list(names.values()) if with_names else [])


# --- clips --------------------------------------------------------------------------------------


def clip_labels(num_frames: int, *, height: int = 43, width: int = 61) -> list[np.ndarray]:
    """A ball that moves right by 3 pixels a frame (object 1), and a brick that moves up (2)."""
    labels = []
    for step in range(num_frames):
        frame = np.zeros((height, width), np.uint8)
        frame[draw_shape("ball", height, width, (14 + 3 * step, 14))] = 1
        frame[draw_shape("brick", height, width, (40, 33 - step))] = 2
        labels.append(frame)
    return labels


def paint_frames(labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(H,W,3) frames in which each object has a colour of its own, on a fixed noisy ground."""
    ground = np.random.default_rng(0).integers(90, 130, (*labels[0].shape, 3), dtype=np.uint8)
    colours = np.array([[0, 0, 0], [230, 30, 40], [40, 60, 235]], np.uint8)
    return [np.where((frame > 0)[..., None], colours[frame], ground) for frame in labels]


def write_davis(
    root: Path, clips: dict[str, list[np.ndarray]], *, resolution: str = "480p"
) -> Path:
    """A DAVIS-2017 folder; frames are stored losslessly under their usual names."""
    from tokenize_anything.evaluation.video_data import save_labels

    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("".join(f"{name}\n" for name in clips))
    for name, labels in clips.items():
        photos = root / "JPEGImages" / resolution / name
        photos.mkdir(parents=True)
        for number, (frame, rgb) in enumerate(zip(labels, paint_frames(labels), strict=True)):
            _, png = cv2.imencode(".png", rgb[..., ::-1])  # content decides, not the name
            (photos / f"{number:05d}.jpg").write_bytes(png.tobytes())
            save_labels(root / "Annotations" / resolution / name / f"{number:05d}.png", frame)
    return root


def write_coco_clip(folder: Path, labels: Sequence[np.ndarray]) -> Path:
    """The same clip as COCO-style JSON with `sequence` and `track_id`."""
    images, annotations = [], list[dict[str, Any]]()
    (folder / "clip").mkdir(parents=True)
    for number, (frame, rgb) in enumerate(zip(labels, paint_frames(labels), strict=True)):
        cv2.imwrite(str(folder / "clip" / f"{number:05d}.png"), rgb[..., ::-1])
        images.append({"id": number + 7, "file_name": f"clip/{number:05d}.png"})
        for track in (1, 2):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number + 7,
                    "sequence": "shapes",
                    "track_id": track,
                    "bbox": [0, 0, 9, 9],
                    "segmentation": encode_rle(frame == track),
                }
            )
    path = folder / "clips.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path
