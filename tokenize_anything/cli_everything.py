"""`tap everything`: all regions of one photo or of many, to a table or a folder of results."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.cli_everything_files import (
    PhotoFolder,
    add_file_options,
    check_files,
    describe_run,
    write_files,
)
from tokenize_anything.cli_files import PICTURE_FORMATS, check_outputs, encode_picture, write_whole
from tokenize_anything.cli_model import (
    add_caption_options,
    add_model_options,
    check_caption_options,
    load_predictor,
    parse_count,
    read_concepts,
)
from tokenize_anything.cli_photos import find_photos
from tokenize_anything.cli_table import format_table, printable
from tokenize_anything.coco_files import PhotoAnnotations
from tokenize_anything.everything_config import EverythingConfig
from tokenize_anything.image_loading import load_image
from tokenize_anything.predictor import TAPPredictor
from tokenize_anything.regions import RegionPredictions
from tokenize_anything.text_generation import GenerationConfig

_EXAMPLE = """examples:
  tap everything photo.jpg --save overlay.png
  tap everything photos/ --out found --pictures --points-per-side 16
  tap everything 'photos/**/*.jpg' more.txt --out found --label-studio --no-captions
"""
_HELP = {
    "points_per_side": "clicks along each side of a photo",
    "crop_layers": "search 2 x 2, 4 x 4, ... crops too, for small regions",
    "crop_overlap": "of crops, as a share of the shorter side",
    "crop_points_divisor": "each layer of crops has so many times fewer clicks along a side",
    "min_iou": "least predicted IoU of a mask",
    "min_stability": "least stability of a mask",
    "stability_offset": "by which the threshold moves for the stability, in logits",
    "max_overlap": "IoU above which two masks count as one",
    "min_region_area": "specks and holes of fewer pixels are cleaned away",
    "min_containment": "share of a part that lies in its whole",
    "max_regions": "most regions of a photo",
    "points_per_batch": "clicks decoded at once; memory, not the result",
}


def add_everything_command(commands: Any) -> None:
    """Add `everything` to the subparsers of `tap`."""
    parser = commands.add_parser(
        "everything",
        help="mask, concept and caption of every region of photos, without prompts",
        description="Find, name and describe every region of photos by a grid of clicks.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "photos",
        metavar="PHOTO|FOLDER|PATTERN|LIST",
        nargs="+",
        help="pictures, folders of them, patterns in quotes, or .txt files with one per line",
    )
    add_search_options(parser)
    add_model_options(parser)
    _add_answer_options(parser)
    add_file_options(parser)
    parser.set_defaults(run=run_everything)


def run_everything(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked without the model, run it, and write the results."""
    photos = find_photos(arguments.photos, option="PHOTO")
    config = read_search_config(arguments)
    _check_options(arguments, photos)
    concepts = read_concepts(arguments.concepts)
    predictor = load_predictor(arguments, concepts)
    if arguments.out is None:
        _answer_one(arguments, photos[0], predictor, config)
    else:
        _answer_all(arguments, photos, predictor, config)


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """One option per field of EverythingConfig, which has the default."""
    group = parser.add_argument_group("search")
    for field in dataclasses.fields(EverythingConfig):
        usual = "as memory allows" if field.default is None else f"{field.default:g}"
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar="X" if isinstance(field.default, float) else "N",
            type=float if isinstance(field.default, float) else int,
            default=argparse.SUPPRESS,
            help=f"{_HELP[field.name]} ({usual})",
        )


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--top-k", metavar="K", type=parse_count, default=1, help="concepts per region (1)"
    )
    add_caption_options(group)
    group.add_argument(
        "--save",
        metavar="FILE",
        help="write the photo with its regions drawn on it (.png, .jpg); for one photo",
    )


def read_search_config(arguments: argparse.Namespace) -> EverythingConfig:
    """What the options of `add_search_options` say."""
    names = [field.name for field in dataclasses.fields(EverythingConfig)]
    return EverythingConfig(
        **{name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    )


def _check_options(arguments: argparse.Namespace, photos: Sequence[Path]) -> None:
    check_caption_options(arguments)
    if arguments.out is None and len(photos) > 1:
        raise ValueError(
            f"--out: {len(photos)} photos need a folder for the results; add --out DIR"
        )
    if arguments.out is None and arguments.files:
        raise ValueError(f"--{arguments.files[0]}: it goes into the folder of --out; add --out DIR")
    check_files(arguments, photos)
    if arguments.save is not None:
        _check_save(arguments, photos[0])


def _check_save(arguments: argparse.Namespace, photo: Path) -> None:
    if arguments.out is not None:
        raise ValueError("--save: it goes without --out; with it there is --pictures")
    if Path(arguments.save).suffix.lower() not in PICTURE_FORMATS:
        raise ValueError(
            f"--save: expected a name ending in {', '.join(PICTURE_FORMATS)}, got "
            f"{arguments.save!r}"
        )
    inputs = [arguments.model, arguments.concepts, arguments.text_tokenizer]
    check_outputs(
        {"--save": Path(arguments.save)},
        inputs=[photo, *(Path(path) for path in inputs if path)],
    )


def _predict(
    arguments: argparse.Namespace,
    images: Sequence[np.ndarray],
    predictor: TAPPredictor,
    config: EverythingConfig,
    *,
    progress: bool = False,
) -> list[RegionPredictions]:
    regions: list[RegionPredictions] = predictor.predict_everything(
        list(images),
        config=config,
        top_k=arguments.top_k,
        captions=not arguments.no_captions,
        generation=GenerationConfig(num_beams=arguments.beams),
        progress=progress,
    )
    return regions


def _answer_one(
    arguments: argparse.Namespace, path: Path, predictor: TAPPredictor, config: EverythingConfig
) -> None:
    """A table in the terminal."""
    photo = load_image(path, name="PHOTO")
    (regions,) = _predict(arguments, [photo], predictor, config, progress=sys.stderr.isatty())
    if arguments.save is not None:
        picture = encode_picture(regions.draw(photo), Path(arguments.save))
        write_whole(Path(arguments.save), picture)
    height, width = photo.shape[:2]
    print(f"{printable(path.name)}, {width} x {height} pixels, {arguments.model}\n")
    if len(regions):
        parts = [f"of {parent + 1}" if parent >= 0 else "" for parent in regions.parent_index]
        columns = shutil.get_terminal_size().columns
        print(format_table(regions, parts, width=columns, title="part") + "\n")
    else:
        print(
            f"no region: no mask has a predicted IoU of {config.min_iou:g} and a stability of "
            f"{config.min_stability:g}; lower --min-iou or --min-stability\n"
        )
    if arguments.save is not None:
        print(f"wrote {printable(arguments.save)}")


def _answer_all(
    arguments: argparse.Namespace,
    photos: Sequence[Path],
    predictor: TAPPredictor,
    config: EverythingConfig,
) -> None:
    """Files in a folder, as photos are done; then the files made of all of them."""
    settings = describe_run(arguments, predictor, config)
    folder = PhotoFolder(Path(arguments.out), photos, settings)
    names = predictor.concepts.names if predictor.concepts is not None else ()
    with folder.open() as store:
        for start in range(0, len(store.pending), arguments.batch):
            group = store.pending[start : start + arguments.batch]
            read = [(photo, _read_photo(arguments, photo.path)) for photo in group]
            present = [(photo, rgb) for photo, rgb in read if rgb is not None]
            regions = _predict(arguments, [rgb for _, rgb in present], predictor, config)
            for (photo, _), record in zip(present, regions, strict=True):
                store.add(photo, PhotoAnnotations.of_regions(photo.file_name, record, names))
            store.skip([photo for photo, rgb in read if rgb is None])
    write_files(arguments, folder, names)


def _read_photo(arguments: argparse.Namespace, path: Path) -> np.ndarray | None:
    """The pixels; None for a file that is no picture, where the user lets those pass."""
    try:
        return load_image(path, name="PHOTO")
    except (ValueError, OSError) as error:
        if not arguments.skip_unreadable:
            raise ValueError(f"{error}; --skip-unreadable leaves such files out") from error
        warnings.warn(f"left out: {error}", stacklevel=1)
        return None
