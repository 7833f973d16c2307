"""Video object segmentation from the first frame's masks, scored as the DAVIS toolkit does."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.evaluation.answers import RegionModel
from tokenize_anything.evaluation.run_files import file_digest
from tokenize_anything.evaluation.runner import (
    Metric,
    RunnerConfig,
    WorkItem,
    model_digest,
    run_evaluation,
)
from tokenize_anything.evaluation.video_data import VideoClip, VideoFrame, save_labels
from tokenize_anything.evaluation.video_scores import FrameScores, score_clip, summarize
from tokenize_anything.evaluation.video_tracking import PromptTracker, Tracker, TrackingConfig
from tokenize_anything.image_transform import load_image

MASK_FOLDER = "masks"


class VideoTask:
    """Follows the objects of one clip after another; the runner's view of the protocol.

    Args:
        make_tracker: gives a new tracker for every clip.
        mask_folder: where `CLIP/FRAME.png` are written; None writes none.
    """

    name = "video"

    def __init__(self, make_tracker: Callable[[], Tracker], mask_folder: Path | None) -> None:
        self.make_tracker = make_tracker
        self.mask_folder = mask_folder

    def load(self, item: WorkItem) -> VideoClip:
        """The clip; its frames are decoded one by one, a clip may be long."""
        return item.content

    def answer(self, loaded: Sequence[VideoClip]) -> list[list[np.ndarray]]:
        """Labels of all frames of every clip; those of the first frame are the given ones."""
        return [self._follow(clip) for clip in loaded]

    def to_rows(
        self, item: WorkItem, loaded: VideoClip, answer: list[np.ndarray]
    ) -> list[dict[str, Any]]:
        """Write the masks, and score the clip if all its frames have labels: a row per object."""
        if self.mask_folder is not None:
            for frame, labels in zip(loaded.frames, answer, strict=True):
                save_labels(self.mask_folder / loaded.name / f"{frame.name}.png", labels)
        if any(frame.labels is None for frame in loaded.frames):
            return []
        pairs = zip(loaded.frames, answer, strict=True)
        truth = [frame.read_labels(_size(labels)) for frame, labels in pairs]
        return [dataclasses.asdict(scores) for scores in score_clip(loaded.name, truth, answer)]

    def score(self, items: Sequence[WorkItem], rows: Iterator[dict[str, Any]]) -> Iterator[Metric]:
        """The benchmark's figures in percent; only counts where no clip has all its labels."""
        scores = [FrameScores(**row) for row in rows]
        yield "clips", float(len(items))
        yield "objects", float(len(scores))
        if scores:
            yield from summarize(scores)

    def _follow(self, clip: VideoClip) -> list[np.ndarray]:
        tracker, found = self.make_tracker(), list[np.ndarray]()
        for frame, rgb in _decoded(clip.frames):
            if found:
                found.append(tracker.step(rgb))
                continue
            labels = frame.read_labels(_size(rgb))
            labels = np.where(labels == 255, 0, labels).astype(np.uint8)
            tracker.start(rgb, labels)
            found.append(labels)
        return found


def evaluate_video(
    predictor: RegionModel,
    clips: Sequence[VideoClip],
    *,
    protocol: TrackingConfig | None = None,
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Zero-shot, semi-supervised video object segmentation: masks of the first frame propagate.

    With `config.out` the results are written to `masks/CLIP/FRAME.png` there, indexed as the DAVIS
    toolkit and its server expect them.

    Args:
        predictor: the model, or a baseline.
        clips: from one of the readers of `video_data`.
        protocol: how frames are prompted.
        config: where results go, and how the work is done.

    Yields:
        (metric, value): "clips", "objects"; "J&F", and mean, recall and decay of J and F, percent.

    Raises:
        FileNotFoundError: frames are missing, see `run_evaluation`.
        ValueError: no clips, clips under 3 frames, or a folder of another run.
    """
    protocol = protocol or TrackingConfig()
    return evaluate_tracker(
        lambda: PromptTracker(predictor, protocol),
        clips,
        name=f"{model_digest(predictor)} {protocol}",
        config=config,
    )


def evaluate_tracker(
    make_tracker: Callable[[], Tracker],
    clips: Sequence[VideoClip],
    *,
    name: str,
    config: RunnerConfig | None = None,
) -> Iterator[Metric]:
    """Score any tracker, see `evaluate_video`.

    Args:
        make_tracker: gives a new tracker for every clip.
        clips: from one of the readers of `video_data`.
        name: tells this tracker and its options from others, so that runs do not mix.
        config: where results go, and how the work is done; clips are always worked off singly.
    """
    config = dataclasses.replace(config or RunnerConfig(), group_size=1)
    masks = None if config.out is None else Path(config.out) / MASK_FOLDER
    settings = {"model": name, "data": clips_digest(clips)}
    return run_evaluation(VideoTask(make_tracker, masks), clip_items(clips), settings, config)


def clip_items(clips: Sequence[VideoClip]) -> list[WorkItem]:
    """What the runner works through: a clip each."""
    return [
        WorkItem(clip.name, tuple(frame.photo for frame in clip.frames), clip) for clip in clips
    ]


def clips_digest(clips: Sequence[VideoClip]) -> str:
    """Sixteen hexadecimal digits that differ where frames or labels do; folders do not matter."""
    digest = hashlib.sha256()
    for clip in clips:
        for frame in clip.frames:
            given = frame.labels
            labels = file_digest(given) if isinstance(given, Path) else given
            digest.update(repr((clip.name, frame.name, labels)).encode())
    return digest.hexdigest()[:16]


def _decoded(frames: Sequence[VideoFrame]) -> Iterator[tuple[VideoFrame, np.ndarray]]:
    """Frames with their photos (H,W,3); the next one is decoded while the caller works."""
    with ThreadPoolExecutor(1, "frames") as pool:
        following = pool.submit(load_image, str(frames[0].photo))
        for number, frame in enumerate(frames, start=1):
            rgb = following.result()
            if number < len(frames):
                following = pool.submit(load_image, str(frames[number].photo))
            yield frame, rgb


def _size(array: np.ndarray) -> tuple[int, int]:
    return array.shape[0], array.shape[1]
