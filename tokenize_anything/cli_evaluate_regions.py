"""The protocols of `tap evaluate` about masks and names: segmentation, classification, clicks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from tokenize_anything.cli_evaluate_options import EvaluationCommand, image_folder, parse_count
from tokenize_anything.evaluation.answers import RegionModel
from tokenize_anything.evaluation.baselines import commonest
from tokenize_anything.evaluation.classification import evaluate_classification
from tokenize_anything.evaluation.clicks import MAX_CLICKS, evaluate_clicks
from tokenize_anything.evaluation.coco_truth import read_truth
from tokenize_anything.evaluation.interactive import evaluate_interactive
from tokenize_anything.evaluation.rule_predictor import (
    RulePredictor,
    draw_filled_box,
    one_hot_vocabulary,
)
from tokenize_anything.evaluation.runner import Metric, RunnerConfig
from tokenize_anything.evaluation.segmentation import evaluate_segmentation


def _add_segmentation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--detections",
        metavar="FILE",
        help="COCO results of a detector: boxes, categories and scores; without them the annotated "
        "boxes are prompts and the predicted IoU is the score",
    )


def _segment(
    arguments: argparse.Namespace, predictor: RegionModel, config: RunnerConfig
) -> Iterator[Metric]:
    return evaluate_segmentation(
        predictor,
        arguments.data,
        image_folder(arguments),
        detections=arguments.detections,
        config=config,
    )


def _classify(
    arguments: argparse.Namespace, predictor: RegionModel, config: RunnerConfig
) -> Iterator[Metric]:
    return evaluate_classification(
        predictor, arguments.data, image_folder(arguments), config=config
    )


def _commonest_name(arguments: argparse.Namespace, name: str) -> RegionModel:
    truth = read_truth(arguments.data)
    categories = [each.get("category_id") for each in truth.content["annotations"]]
    names = [truth.category_names[each] for each in categories if each in truth.category_names]
    if not names:
        raise ValueError(f"--data: no annotation of {arguments.data} has a category")
    vocabulary = one_hot_vocabulary(list(truth.category_names.values()))
    return RulePredictor(name, draw_filled_box, concepts=vocabulary, concept=commonest(names))


def _add_interactive_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="file of the prompts, made where it does not exist; beside the data by default",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the prompts, where they are made (0)"
    )


def _prompt_interactively(
    arguments: argparse.Namespace, predictor: RegionModel, config: RunnerConfig
) -> Iterator[Metric]:
    return evaluate_interactive(
        predictor,
        arguments.data,
        image_folder(arguments),
        prompts=arguments.prompts,
        seed=arguments.seed,
        config=config,
    )


def _add_clicks_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clicks", metavar="N", type=parse_count, default=MAX_CLICKS, help=f"1 to {MAX_CLICKS}"
    )


def _click(
    arguments: argparse.Namespace, predictor: RegionModel, config: RunnerConfig
) -> Iterator[Metric]:
    return evaluate_clicks(
        predictor,
        arguments.data,
        image_folder(arguments),
        num_clicks=arguments.clicks,
        config=config,
    )


REGION_PROTOCOLS = (
    EvaluationCommand(
        "segmentation",
        "mask AP from the boxes of a detector or of the annotations",
        _segment,
        _add_segmentation_options,
        baselines=("filled_box", "ellipse", "grabcut"),
    ),
    EvaluationCommand(
        "classification",
        "box AP of the names of annotated boxes; rare, common and frequent for LVIS",
        _classify,
        baselines=("commonest",),
        make_baseline=_commonest_name,
    ),
    EvaluationCommand(
        "interactive",
        "mIoU and cIoU from point, scribble, box and mask prompts (COCO-Interactive)",
        _prompt_interactively,
        _add_interactive_options,
    ),
    EvaluationCommand(
        "clicks",
        "mIoU after 1 to 9 clicks, each on the worst mistake of the mask before",
        _click,
        _add_clicks_options,
        baselines=("disc",),
    ),
)
