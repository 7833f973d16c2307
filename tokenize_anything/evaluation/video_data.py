"""Clips with label maps: the DAVIS folders, and COCO-style JSON whose annotations name a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenize_anything.data.coco_lvis import read_coco_json
from tokenize_anything.geometry import decode_rle

VOID = 255  # border pixels that some benchmarks leave open; scored as background


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame: its name in the results, its photo, and where its labels are.

    labels: an indexed PNG; or (object number, run-length code) pairs; or None where the frame has
        none, as in test sets, and then it is not scored.
    """

    name: str
    photo: Path
    labels: Path | tuple[tuple[int, Mapping[str, Any]], ...] | None

    def read_labels(self, size_hw: tuple[int, int]) -> np.ndarray:
        """(H,W) uint8 label map: 0 background, 1.. objects.

        Raises:
            FileNotFoundError: no such PNG, or a frame without labels.
            ValueError: labels of another size than the photo, or a PNG that is no label map.
        """
        if self.labels is None:
            raise FileNotFoundError(f"labels: the frame {self.photo} has none")
        if isinstance(self.labels, Path):
            labels = _read_png(self.labels)
        else:
            labels = np.zeros(size_hw, np.uint8)
            for number, rle in self.labels:
                labels[_fitting(decode_rle(rle), size_hw, self.photo)] = number
        return _fitting(labels, size_hw, self.photo)


@dataclass(frozen=True, eq=False)
class VideoClip:
    """The frames of one clip, in time order; the first has labels."""

    name: str
    frames: tuple[VideoFrame, ...]


def read_davis(
    root: str | Path, split: str = "val", *, resolution: str = "480p"
) -> list[VideoClip]:
    """Clips of DAVIS-2017 (semi-supervised), or any data laid out like it.

    Args:
        root: holds `JPEGImages/480p/CLIP/*.jpg`, `Annotations/480p/CLIP/*.png` and
            `ImageSets/2017/SPLIT.txt`.
        split: "val", "train" or "test-dev".
        resolution: "480p" or "Full-Resolution".

    Raises:
        FileNotFoundError: a folder or list is missing.
        ValueError: an empty split, or a clip without labels of its first frame.
    """
    root = Path(root)
    listing = root / "ImageSets" / "2017" / f"{split}.txt"
    if not listing.is_file():
        raise FileNotFoundError(
            f"data: no list of clips at {listing}; expected a DAVIS-2017 folder"
        )
    names = listing.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"split: {listing} lists no clip")
    return [
        _davis_clip(root / "JPEGImages" / resolution, root / "Annotations" / resolution, name)
        for name in names
    ]


def read_coco_clips(annotations: str | Path, image_folder: str | Path) -> list[VideoClip]:
    """Clips of a COCO-style JSON whose annotations have a `sequence`, and a run-length mask.

    An annotation's `track_id` (from 1) tells the objects of a clip apart; without it a clip has
    one. Frames follow one another by file name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not COCO-style JSON, a damaged annotation, or no clip.
    """
    content = read_coco_json(annotations)
    where = f"annotations: {annotations}"
    photos = {image["id"]: image["file_name"] for image in content["images"]}
    clips: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for annotation in content["annotations"]:
        if not annotation.get("sequence") or annotation.get("iscrowd"):
            continue
        if annotation["image_id"] not in photos or not annotation.get("segmentation"):
            raise ValueError(
                f"{where}: annotation {annotation.get('id')}: expected a listed image and a mask"
            )
        number = annotation.get("track_id", 1)
        if not isinstance(number, int) or not 1 <= number < VOID:
            raise ValueError(f"{where}: track_id: expected 1 to {VOID - 1}, got {number!r}")
        frames = clips.setdefault(annotation["sequence"], {})
        frames.setdefault(photos[annotation["image_id"]], []).append(
            (number, annotation["segmentation"])
        )
    if not clips:
        raise ValueError(f"{where} has no annotation with a `sequence`")
    folder = Path(image_folder)
    return [
        VideoClip(
            name,
            tuple(
                VideoFrame(Path(file).stem, folder / file, tuple(sorted(frames[file], key=_first)))
                for file in sorted(frames)
            ),
        )
        for name, frames in clips.items()
    ]


def save_labels(path: Path, labels: np.ndarray) -> None:
    """Write a label map (H,W) uint8 as an indexed PNG with the benchmark's palette."""
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(label_palette().ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG")


def label_palette() -> np.ndarray:
    """(256,3) uint8 colours of label maps, as in PASCAL VOC and DAVIS.

    The bits of a number, three at a time from the lowest, give the high bits of red, green, blue.
    """
    numbers = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for step in range(8):
        for channel in range(3):
            palette[:, channel] |= ((numbers >> (3 * step + channel)) & 1) << (7 - step)
    return palette.astype(np.uint8)


def _davis_clip(photos: Path, labels: Path, name: str) -> VideoClip:
    files = sorted((photos / name).glob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"data: no frames in {photos / name}")
    frames = [
        VideoFrame(file.stem, file, path if path.is_file() else None)
        for file in files
        for path in [labels / name / f"{file.stem}.png"]
    ]
    if frames[0].labels is None:
        raise ValueError(f"data: the first frame of {name} has no labels in {labels / name}")
    return VideoClip(name, tuple(frames))


def _read_png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        if picture.mode not in ("P", "L", "1"):
            raise ValueError(f"labels: expected an indexed PNG, got mode {picture.mode} in {path}")
        return np.array(picture).astype(np.uint8)


def _fitting(labels: np.ndarray, size_hw: tuple[int, int], photo: Path) -> np.ndarray:
    if labels.shape != size_hw:
        raise ValueError(
            f"labels: expected the size of {photo}, {size_hw} (height, width), got {labels.shape}"
        )
    return labels


def _first(pair: Sequence[Any]) -> int:
    return int(pair[0])
