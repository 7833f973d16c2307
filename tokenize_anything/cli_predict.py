"""`tap predict`: one photo and some prompts to a table, a JSON file and an overlay."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenize_anything.cli_files import (
    PICTURE_FORMATS,
    check_outputs,
    encode_picture,
    write_whole,
)
from tokenize_anything.cli_model import (
    add_caption_options,
    add_model_options,
    check_caption_options,
    load_predictor,
    parse_count,
    read_concepts,
)
from tokenize_anything.cli_prompts import (
    NamedPrompts,
    add_prompt_options,
    collect_prompts,
    sketch_paths,
)
from tokenize_anything.cli_table import format_table, printable
from tokenize_anything.image_loading import load_image
from tokenize_anything.regions import RegionPredictions
from tokenize_anything.text_generation import GenerationConfig

_EXAMPLE = """examples:
  tap predict photo.jpg --point 320,240 --save overlay.png
  tap predict photo.jpg --box 10,20,200,220 --point 30,200,0 --json regions.json
  tap predict photo.jpg --sketch strokes.png --model tap_vit_l --concepts names.txt --top-k 3
"""


def add_predict_command(commands: Any) -> None:
    """Add `predict` to the subparsers of `tap`."""
    parser = commands.add_parser(
        "predict",
        help="mask, concept and caption of prompted regions",
        description="Segment, name and describe the regions of a photo that the prompts point at.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("photo", metavar="PHOTO", help="any picture Pillow can read")
    add_prompt_options(parser)
    add_model_options(parser)
    _add_output_options(parser)
    parser.set_defaults(run=run_predict)


def run_predict(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked without the model, run it, and write the results."""
    _check_options(arguments)
    photo = load_image(arguments.photo, name="PHOTO")
    named = collect_prompts(arguments.prompts or [], *photo.shape[:2])
    concepts = read_concepts(arguments.concepts)
    predictor = load_predictor(arguments, concepts)
    regions = predictor.predict_mask_concept_caption(
        photo,
        prompts=named.prompts,
        top_k=arguments.top_k,
        captions=not arguments.no_captions,
        generation=GenerationConfig(num_beams=arguments.beams),
        zoom=arguments.zoom,
    )
    _write_outputs(arguments, photo, named, regions)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--top-k", metavar="K", type=parse_count, default=1, help="concepts per region (1)"
    )
    add_caption_options(group)
    group.add_argument(
        "--zoom",
        metavar="SHARE",
        type=float,
        help="look again at small regions, in a window of which they fill this share of 0 to 1; 0: "
        "look once, which is faster (the model decides)",
    )
    group.add_argument(
        "--json", metavar="FILE", help="write the regions as JSON, masks as COCO run-length code"
    )
    group.add_argument(
        "--vectors",
        action="store_true",
        help="add the semantic token and embedding of each region to the JSON",
    )
    group.add_argument(
        "--save", metavar="FILE", help="write the photo with the regions drawn on it (.png, .jpg)"
    )


def _check_options(arguments: argparse.Namespace) -> None:
    check_caption_options(arguments)
    if arguments.vectors and arguments.json is None:
        raise ValueError("--vectors: they go into the JSON; add --json FILE")
    outputs = {"--json": arguments.json, "--save": arguments.save}
    inputs = [arguments.photo, arguments.model, arguments.concepts, arguments.text_tokenizer]
    check_outputs(
        {option: Path(path) for option, path in outputs.items() if path is not None},
        inputs=[*(Path(path) for path in inputs if path), *sketch_paths(arguments.prompts or [])],
    )
    if arguments.save is not None and Path(arguments.save).suffix.lower() not in PICTURE_FORMATS:
        raise ValueError(
            f"--save: expected a name ending in {', '.join(PICTURE_FORMATS)}, got "
            f"{arguments.save!r}"
        )


def _write_outputs(
    arguments: argparse.Namespace,
    photo: np.ndarray,
    named: NamedPrompts,
    regions: RegionPredictions,
) -> None:
    """Make all outputs before the first one is written, so that a failure leaves none."""
    contents: dict[str, bytes] = {}
    if arguments.json is not None:
        contents[arguments.json] = _to_json(arguments, named, regions).encode()
    if arguments.save is not None:
        picture = regions.draw(photo, prompts=named.prompts)
        contents[arguments.save] = encode_picture(picture, Path(arguments.save))
    for path, content in contents.items():
        write_whole(Path(path), content)
    print(_report(arguments, photo, named.names, regions))
    for path in contents:
        print(f"wrote {printable(path)}")


def _to_json(arguments: argparse.Namespace, named: NamedPrompts, regions: RegionPredictions) -> str:
    """`RegionPredictions.to_json` with the question added to the answer."""
    question = {
        "file_name": Path(arguments.photo).name,
        "model": arguments.model,
        "prompts": named.to_plain(),
    }
    answer = json.loads(regions.to_json(include_vectors=arguments.vectors))
    return _format_json({**question, **answer})


def _format_json(content: Mapping[str, Any]) -> str:
    """JSON with a line for every key, and for every item of a list under it."""
    entries = []
    for key, value in content.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"
        entries.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _report(
    arguments: argparse.Namespace,
    photo: np.ndarray,
    names: Sequence[str],
    regions: RegionPredictions,
) -> str:
    height, width = photo.shape[:2]
    heading = (
        f"{printable(Path(arguments.photo).name)}, {width} x {height} pixels, {arguments.model}"
    )
    columns = shutil.get_terminal_size().columns
    return f"{heading}\n\n{format_table(regions, names, width=columns)}\n"
