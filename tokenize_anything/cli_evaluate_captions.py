"""The protocols of `tap evaluate` about words: captioning, and recognition on people's own data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tokenize_anything.cli_evaluate_options import EvaluationCommand, image_folder, parse_count
from tokenize_anything.evaluation.answers import RegionModel
from tokenize_anything.evaluation.baselines import commonest
from tokenize_anything.evaluation.caption_data import (
    DescribedImage,
    read_coco_captions,
    read_densecap,
    read_refcoco,
)
from tokenize_anything.evaluation.captioning import (
    PROMPT_KINDS,
    CaptioningConfig,
    best_constant,
    evaluate_captioning,
)
from tokenize_anything.evaluation.processes import ProcessShare
from tokenize_anything.evaluation.recognition import (
    RecognitionConfig,
    evaluate_recognition,
    recognition_items,
)
from tokenize_anything.evaluation.region_truth import list_true_images
from tokenize_anything.evaluation.report import report_run
from tokenize_anything.evaluation.rule_predictor import (
    MASK_RULES,
    RulePredictor,
    draw_filled_box,
    one_hot_vocabulary,
)
from tokenize_anything.evaluation.runner import Metric, RunnerConfig
from tokenize_anything.text_generation import GenerationConfig


def _add_word_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-beams", metavar="N", type=parse_count, default=1, help="of the captions (1, greedy)"
    )
    parser.add_argument(
        "--plain-words",
        action="store_true",
        help="leave out METEOR and PTB tokens, which need Java; so it is done where there is none",
    )


def _add_captioning_options(parser: argparse.ArgumentParser) -> None:
    _add_word_options(parser)
    parser.add_argument(
        "--prompt",
        choices=PROMPT_KINDS,
        default="box",
        help="the box; its centre; a random point in it; nine points, or a random one, of the mask "
        "that the box finds (box)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random points (0)")
    parser.add_argument("--spice", action="store_true", help="SPICE too; it downloads its models")
    parser.add_argument(
        "--instances",
        metavar="FILE",
        help="instances.json of RefCOCO, RefCOCO+ or RefCOCOg; --data is then a refs pickle",
    )
    parser.add_argument(
        "--splits",
        metavar="FILE",
        help="densecap_splits.json; --data is then Visual Genome's region_descriptions.json",
    )
    parser.add_argument(
        "--split",
        default="test",
        help="with --instances or --splits: test (default), val, testA ..",
    )


def _described_images(arguments: argparse.Namespace) -> list[DescribedImage]:
    folder = image_folder(arguments)
    if arguments.instances is not None and arguments.splits is not None:
        raise ValueError("--splits: expected either it or --instances, got both")
    if arguments.instances is not None:
        return read_refcoco(arguments.data, arguments.instances, arguments.split, folder)
    if arguments.splits is not None:
        return read_densecap(arguments.data, arguments.splits, arguments.split, folder)
    return read_coco_captions(arguments.data, folder)


def _caption(
    arguments: argparse.Namespace, predictor: RegionModel, config: RunnerConfig
) -> Iterator[Metric]:
    protocol = CaptioningConfig(
        prompt=arguments.prompt,
        seed=arguments.seed,
        generation=GenerationConfig(num_beams=arguments.num_beams),
        plain_words=True if arguments.plain_words else None,
        spice=arguments.spice,
    )
    return evaluate_captioning(
        predictor, _described_images(arguments), protocol=protocol, config=config
    )


def _constant_caption(arguments: argparse.Namespace, name: str) -> RegionModel:
    images = _described_images(arguments)
    references = [region.references for image in images for region in image.regions]
    return RulePredictor(name, draw_filled_box, caption=best_constant(references))


def _add_recognition_options(parser: argparse.ArgumentParser) -> None:
    _add_word_options(parser)
    parser.add_argument(
        "--with-boxes",
        action="store_true",
        help="regions without a mask count, too, for names and captions",
    )


def _recognize(
    arguments: argparse.Namespace, predictor: RegionModel, config: RunnerConfig
) -> Iterator[Metric]:
    """Run the protocol; with --out a report goes beside the results."""
    folder = image_folder(arguments)
    protocol = RecognitionConfig(
        with_boxes=arguments.with_boxes,
        java_metrics=not arguments.plain_words,
        generation=GenerationConfig(num_beams=arguments.num_beams),
    )
    yield from evaluate_recognition(
        predictor, arguments.data, folder, protocol=protocol, config=config
    )
    if config.out is not None and ProcessShare.from_environment().is_first:
        items = recognition_items(arguments.data, folder, with_boxes=arguments.with_boxes)
        title = f"{Path(arguments.model).name} on {Path(arguments.data).name}"
        report_run(config.out, items, title=title)


def _rule_with_words(arguments: argparse.Namespace, name: str) -> RegionModel:
    """A rule that draws, and always says the commonest name and the best constant caption."""
    images = list_true_images(
        arguments.data, image_folder(arguments), with_boxes=arguments.with_boxes
    )
    names = [each["name"] for _, regions in images for each in regions if each["name"]]
    vocabulary = one_hot_vocabulary(sorted(set(names))) if names else None
    return RulePredictor(
        name,
        MASK_RULES[name],
        concepts=vocabulary,
        concept=commonest(names) if names else None,
        caption=f"a {commonest(names)}" if names else "",
    )


CAPTION_PROTOCOLS = (
    EvaluationCommand(
        "captioning",
        "BLEU, METEOR, ROUGE-L and CIDEr of captions of boxes (Visual Genome, RefCOCO, your own)",
        _caption,
        _add_captioning_options,
        data_help="COCO-style JSON whose annotations have captions, as GRiT's for Visual Genome; "
        "or see --instances and --splits",
        baselines=("constant",),
        make_baseline=_constant_caption,
        writes_captions=True,
    ),
    EvaluationCommand(
        "recognition",
        "masks, names and captions on your own data; --out gets a report.html with pictures, too",
        _recognize,
        _add_recognition_options,
        data_help="COCO-style JSON with names, and captions where there are some",
        make_baseline=_rule_with_words,
        writes_captions=True,
    ),
)
