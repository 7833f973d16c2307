"""The protocol of `tap evaluate` about video: masks of the first frame, followed through a clip."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenize_anything.cli_evaluate_options import EvaluationCommand, image_folder, mask_baseline
from tokenize_anything.evaluation.answers import RegionModel
from tokenize_anything.evaluation.rule_predictor import MASK_RULES, RulePredictor, draw_filled_box
from tokenize_anything.evaluation.runner import Metric, RunnerConfig
from tokenize_anything.evaluation.video import evaluate_tracker, evaluate_video
from tokenize_anything.evaluation.video_data import VideoClip, read_coco_clips, read_davis
from tokenize_anything.evaluation.video_tracking import (
    VIDEO_PROMPTS,
    FlowTracker,
    StillTracker,
    Tracker,
    TrackingConfig,
)

# Baselines that follow masks without drawing any.
_TRACKERS: dict[str, Callable[[], Tracker]] = {"still": StillTracker, "flow": FlowTracker}


def _add_video_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt",
        choices=VIDEO_PROMPTS,
        default=TrackingConfig.prompt,
        help="made from an object's last mask: its box, nine points of it, or both "
        f"({TrackingConfig.prompt})",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=TrackingConfig.margin,
        help=f"by which boxes grow on each side, as a share of them ({TrackingConfig.margin})",
    )
    parser.add_argument("--split", default="val", help="of a DAVIS folder (val)")
    parser.add_argument("--resolution", default="480p", help="of a DAVIS folder (480p)")


def _clips(arguments: argparse.Namespace) -> list[VideoClip]:
    if Path(arguments.data).is_dir():
        return read_davis(arguments.data, arguments.split, resolution=arguments.resolution)
    return read_coco_clips(arguments.data, image_folder(arguments))


def _follow(
    arguments: argparse.Namespace, predictor: RegionModel, config: RunnerConfig
) -> Iterator[Metric]:
    clips = _clips(arguments)
    if isinstance(predictor, RulePredictor) and predictor.name in _TRACKERS:
        make_tracker = _TRACKERS[predictor.name]
        return evaluate_tracker(make_tracker, clips, name=predictor.name, config=config)
    protocol = TrackingConfig(prompt=arguments.prompt, margin=arguments.margin)
    return evaluate_video(predictor, clips, protocol=protocol, config=config)


def _make_baseline(arguments: argparse.Namespace, name: str) -> RegionModel:
    """A rule that draws; for those in _TRACKERS only its name is used."""
    if name in _TRACKERS:
        return RulePredictor(name, draw_filled_box)
    return mask_baseline(arguments, name)


VIDEO_PROTOCOLS = (
    EvaluationCommand(
        "video",
        "J, F and J&F of masks that are followed from the first frame on (DAVIS)",
        _follow,
        _add_video_options,
        data_help="a DAVIS-2017 folder, or COCO-style JSON whose annotations name a `sequence`",
        baselines=(*_TRACKERS, *MASK_RULES),
        make_baseline=_make_baseline,
    ),
)
