"""`tap predict`: one photo and some prompts to a table, a JSON file and an overlay."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenize_anything.cli_files import check_outputs, read_lines, write_whole
from tokenize_anything.cli_prompts import (
    NamedPrompts,
    add_prompt_options,
    collect_prompts,
    sketch_paths,
)
from tokenize_anything.cli_table import format_table, printable
from tokenize_anything.image_loading import load_image
from tokenize_anything.predictor import TAPPredictor
from tokenize_anything.regions import RegionPredictions
from tokenize_anything.text_generation import GenerationConfig

_EXAMPLE = """examples:
  tap predict photo.jpg --point 320,240 --save overlay.png
  tap predict photo.jpg --box 10,20,200,220 --point 30,200,0 --json regions.json
  tap predict photo.jpg --sketch strokes.png --model tap_vit_l --concepts names.txt --top-k 3
"""
_PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


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
    _add_model_options(parser)
    _add_output_options(parser)
    parser.set_defaults(run=run_predict)


def run_predict(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked without the model, run it, and write the results."""
    _check_options(arguments)
    photo = load_image(arguments.photo, name="PHOTO")
    named = collect_prompts(arguments.prompts or [], *photo.shape[:2])
    concepts = _read_concepts(arguments.concepts)
    predictor = _load_predictor(arguments, concepts)
    regions = predictor.predict_mask_concept_caption(
        photo,
        prompts=named.prompts,
        top_k=arguments.top_k,
        captions=not arguments.no_captions,
        generation=GenerationConfig(num_beams=arguments.beams),
    )
    _write_outputs(arguments, photo, named, regions)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME|FILE",
        default="tap_tiny",
        help="tap_tiny (built in, the default), tap_vit_b, tap_vit_l, tap_vit_h (downloaded), or a "
        ".safetensors or published .pkl file",
    )
    group.add_argument(
        "--concepts",
        metavar="NAME|FILE",
        help="a .txt file with names of the model's vocabulary, one per line, to choose among; or "
        "another vocabulary: merged_2560, lvis_1203, coco_80 (downloaded), or a .safetensors or "
        ".pkl file",
    )
    group.add_argument(
        "--text-tokenizer",
        metavar="FILE",
        help="SentencePiece model of the captions; the published weights need that of LLaMA",
    )
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    group.add_argument(
        "--dtype", default="auto", help="auto (default), float32, bfloat16 or float16"
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--top-k", metavar="K", type=_parse_count, default=1, help="concepts per region (1)"
    )
    group.add_argument(
        "--beams",
        metavar="N",
        type=_parse_count,
        default=1,
        help="width of the beam search for captions (1: greedy)",
    )
    group.add_argument("--no-captions", action="store_true", help="do not write captions")
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


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.no_captions and arguments.beams > 1:
        raise ValueError("--beams: there are no captions to search with --no-captions; drop one")
    if arguments.vectors and arguments.json is None:
        raise ValueError("--vectors: they go into the JSON; add --json FILE")
    outputs = {"--json": arguments.json, "--save": arguments.save}
    inputs = [arguments.photo, arguments.model, arguments.concepts, arguments.text_tokenizer]
    check_outputs(
        {option: Path(path) for option, path in outputs.items() if path is not None},
        inputs=[*(Path(path) for path in inputs if path), *sketch_paths(arguments.prompts or [])],
    )
    if arguments.save is not None and Path(arguments.save).suffix.lower() not in _PICTURE_FORMATS:
        raise ValueError(
            f"--save: expected a name ending in {', '.join(_PICTURE_FORMATS)}, got "
            f"{arguments.save!r}"
        )


def _read_concepts(path: str | None) -> str | list[str] | None:
    """The names in a .txt file; any other file or name as it is."""
    if path is None or Path(path).suffix.lower() != ".txt":
        return path
    names = read_lines(Path(path), option="--concepts")
    if not names:
        raise ValueError(f"--concepts: expected one name per line, got none in {path}")
    return names


def _load_predictor(
    arguments: argparse.Namespace, concepts: str | list[str] | None
) -> TAPPredictor:
    with warnings.catch_warnings():
        if arguments.no_captions:
            warnings.filterwarnings("ignore", message="no text tokenizer")
        return TAPPredictor.from_pretrained(
            arguments.model,
            device=arguments.device,
            dtype=arguments.dtype,
            concepts=concepts,
            text_tokenizer=arguments.text_tokenizer,
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
        contents[arguments.save] = _encode_picture(picture, Path(arguments.save))
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


def _encode_picture(picture: np.ndarray, path: Path) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, _PICTURE_FORMATS[path.suffix.lower()])
    return stream.getvalue()


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
