"""`tap train`: pretrain, captions and finetune."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tokenize_anything.cli_table import printable
from tokenize_anything.data.region_embeddings import RegionEmbeddings
from tokenize_anything.data.region_store import RegionStore, StoredVectors
from tokenize_anything.semantic_sa1b.text_space import embed_texts_cached
from tokenize_anything.text_towers import MINILM, open_text_tower
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import train_caption_tokenizer
from tokenize_anything.training.click_config import ClickConfig
from tokenize_anything.training.click_training import ClickTrainer
from tokenize_anything.training.config import DataConfig, PretrainConfig, load_config
from tokenize_anything.training.finetune import (
    FREEZABLE_PARTS,
    FinetuneConfig,
    FinetuneReport,
    finetune,
)
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.naming_training import NamerTrainer
from tokenize_anything.training.part_config import PartConfig
from tokenize_anything.training.pretrain import Pretrainer
from tokenize_anything.training.relative_paths import resolve_paths
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.training.view_training import ViewTrainer

_EXAMPLE = """examples:
  tap train --data my_coco.json --images photos --out tuned
  tap train --data my_coco.json --images photos --model tap_vit_l --freeze image_encoder --out tuned
  tap train pretrain stage1.yaml --data regions --out runs
  tap train captions stage2.yaml --data regions --out runs
  torchrun --nproc-per-node 8 -m tokenize_anything.cli train pretrain stage1.yaml
"""
_OWN_DATA = (
    "Train a model on own photos. A COCO file gives the regions: its category names become the "
    "model's vocabulary, its captions teach the text decoder. The result is OUT/model.safetensors, "
    "for `tap predict --model`. A run that was stopped goes on when the command is given again."
)
_DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(FinetuneConfig)
}
EMBEDDING_COLUMN = "embedding"  # of a store that `tap semantic build` made
Config = TypeVar("Config", PretrainConfig, CaptionConfig, ClickConfig, NamingConfig, ViewConfig)


def add_train_command(commands: Any) -> None:
    """Add `train` to the subparsers of `tap`."""
    parser = commands.add_parser(
        "train",
        help="fine-tune on own photos; pre-train; learn captions",
        description=_OWN_DATA,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_finetune_options(parser)
    parser.set_defaults(run=run_finetune)
    kinds = parser.add_subparsers(title="kinds of training", metavar="KIND")
    _add_config_command(
        kinds, "pretrain", run_pretrain,
        "stage 1: masks, IoU and concepts, from a configuration",
    )  # fmt: skip
    _add_config_command(
        kinds, "captions", run_captions,
        "stage 2: captions from frozen region tokens, from a configuration",
    )  # fmt: skip
    _add_config_command(
        kinds, "views", run_views,
        "the network that outlines regions in views, for a trained model, from a configuration",
    )  # fmt: skip
    _add_config_command(
        kinds, "clicks", run_clicks,
        "the network that answers clicks, for a model with outlines, from a configuration",
    )  # fmt: skip
    _add_config_command(
        kinds, "names", run_names,
        "the network that names outlined regions, for a model with outlines, from a configuration",
    )  # fmt: skip
    own = kinds.add_parser(
        "finetune", help="both stages on own photos; what `tap train` does without a kind",
        description=_OWN_DATA, allow_abbrev=False,
    )  # fmt: skip
    _add_finetune_options(own)
    own.set_defaults(run=run_finetune)


def _add_config_command(
    kinds: Any, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> None:
    parser = kinds.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", help="YAML file, see docs/training.md")
    parser.add_argument(
        "--data", metavar="DIR", default="", help="folder of relative paths of data (default: here)"
    )
    parser.add_argument(
        "--out", metavar="DIR", default="", help="folder of relative paths of runs (default: here)"
    )
    if name in ("pretrain", "views", "names"):
        parser.add_argument(
            "--text-tower", metavar="NAME", default=MINILM,
            help=f"text encoder that spans the concept space (default: {MINILM}), or a CLIP model "
            "such as EVA02-E-14-plus; not used where the configuration names concept files",
        )  # fmt: skip
    parser.set_defaults(run=run)


def _add_finetune_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="FILE", nargs="+", help="COCO-style JSON with names, captions or both")
    add("--images", metavar="DIR", help="folder of the photos it names")
    add("--out", metavar="DIR", help="folder of the run and its result")
    add("--val", metavar="FILE", nargs="+", help="the same of photos held out, to score captions")
    add("--model", metavar="NAME|FILE", default=_DEFAULTS["model"],
        help=f"what to start from (default: {_DEFAULTS['model']})")  # fmt: skip
    add("--freeze", metavar="PART", nargs="*", default=list(_DEFAULTS["freeze"]),
        help=f"parts that stay as they are, of {', '.join(FREEZABLE_PARTS)} (default: "
        f"{' '.join(_DEFAULTS['freeze'])}); without a name, nothing is frozen")  # fmt: skip
    add("--image-size", metavar="PIXELS", type=int, help="side of the square the model sees")
    add("--steps", metavar="N", type=int, help="steps of stage 1 (default: 12 epochs)")
    add("--caption-steps", metavar="N", type=int, help="steps of stage 2 (default: 30 epochs)")
    add("--batch-size", metavar="N", type=int, default=_DEFAULTS["batch_size"],
        help=f"photos a step (default: {_DEFAULTS['batch_size']})")  # fmt: skip
    add("--lr", metavar="RATE", type=float, default=_DEFAULTS["peak_lr"],
        help=f"highest learning rate (default: {_DEFAULTS['peak_lr']})")  # fmt: skip
    add("--text-tokenizer", metavar="FILE", help="SentencePiece model, where MODEL brings none")
    add("--fresh-text-decoder", action="store_true",
        help="learn captions from nothing but the data, with a tokenizer made for it")  # fmt: skip
    add("--device", default=_DEFAULTS["device"], help="auto (default), cpu, cuda or mps")
    add("--precision", choices=("float32", "bfloat16"),
        help="default: bfloat16 on CUDA, else float32")  # fmt: skip
    add("--workers", metavar="N", type=int, default=_DEFAULTS["num_workers"],
        help=f"processes that prepare photos (default: {_DEFAULTS['num_workers']})")  # fmt: skip
    add("--seed", type=int, default=_DEFAULTS["seed"], help="of all random draws (default: 0)")


def run_finetune(arguments: argparse.Namespace) -> None:
    """Fine-tune on own photos and say what came out."""
    missing = [name for name in ("data", "images", "out") if getattr(arguments, name) is None]
    if missing:
        listed = ", ".join(f"--{name}" for name in missing)
        raise ValueError(f"the following arguments are required: {listed}; see `tap train --help`")
    images = arguments.images
    config = FinetuneConfig(
        data=DataConfig(annotation_files=tuple(arguments.data), image_folder=images),
        output_folder=arguments.out,
        model=arguments.model,
        freeze=tuple(arguments.freeze),
        validation=DataConfig(annotation_files=tuple(arguments.val), image_folder=images)
        if arguments.val
        else None,
        image_size=arguments.image_size,
        text_tokenizer=arguments.text_tokenizer,
        fresh_text_decoder=arguments.fresh_text_decoder,
        num_steps=arguments.steps,
        caption_steps=arguments.caption_steps,
        batch_size=arguments.batch_size,
        peak_lr=arguments.lr,
        device=arguments.device,
        precision=arguments.precision,
        num_workers=arguments.workers,
        seed=arguments.seed,
    )
    with _stopped_clearly():
        report = finetune(config, score=_caption_score() if arguments.val else None)
    for line in _describe(report, config):
        _say(line)


def run_pretrain(arguments: argparse.Namespace) -> None:
    """Stage 1 of a configuration."""
    config = _read(PretrainConfig, arguments)
    with _stopped_clearly():
        embed = _embedder(arguments.text_tower, config)
        path = Pretrainer(config, embed, _stored_embeddings(config)).run()
    _say(f"wrote {path}")


def run_views(arguments: argparse.Namespace) -> None:
    """The view segmenter of a configuration."""
    config = _read(ViewConfig, arguments)
    with _stopped_clearly():
        path = ViewTrainer(config, _embedder(arguments.text_tower, config)).run()
    _say(f"wrote {path}")


def run_clicks(arguments: argparse.Namespace) -> None:
    """The click segmenter of a configuration."""
    with _stopped_clearly():
        path = ClickTrainer(_read(ClickConfig, arguments)).run()
    _say(f"wrote {path}")


def run_names(arguments: argparse.Namespace) -> None:
    """The view namer of a configuration."""
    config = _read(NamingConfig, arguments)
    with _stopped_clearly():
        path = NamerTrainer(config, _embedder(arguments.text_tower, config)).run()
    _say(f"wrote {path}")


def run_captions(arguments: argparse.Namespace) -> None:
    """Stage 2 of a configuration; its tokenizer is learnt where the file is not there yet."""
    config = _read(CaptionConfig, arguments)
    tokenizer = Path(config.text_tokenizer)
    with _stopped_clearly():
        if config.fresh_text_decoder and not tokenizer.is_file():
            tokenizer.parent.mkdir(parents=True, exist_ok=True)
            train_caption_tokenizer(config.data.annotation_files, tokenizer)
        score = _caption_score() if config.validation is not None else None
        path = CaptionTrainer(config, score).run()
    _say(f"wrote {path}")


def _read(kind: type[Config], arguments: argparse.Namespace) -> Config:
    return resolve_paths(load_config(kind, arguments.config), arguments.data, arguments.out)


def _embedder(name: str, config: PretrainConfig | PartConfig) -> Callable[[Sequence[str]], Tensor]:
    """A text encoder that is opened when it is needed, and whose answers are kept."""
    stem = "".join(letter if letter.isalnum() else "-" for letter in name)
    path = Path(config.output_folder) / f"text_embeddings_{stem}.safetensors"

    def embed(texts: Sequence[str]) -> Tensor:
        return open_text_tower(name, device=config.device).embed_texts(texts)

    return functools.partial(embed_texts_cached, path=path, embed=embed)


def _stored_embeddings(config: PretrainConfig) -> RegionEmbeddings | None:
    if config.embeddings is None:
        return None
    return StoredVectors(RegionStore.open(config.embeddings), EMBEDDING_COLUMN)


def _caption_score() -> Callable[[Sequence[str], Sequence[Sequence[str]]], float]:
    """CIDEr on plain words, which needs no Java.

    Raises:
        ImportError: the extra is missing, found out before the training.
    """
    from tokenize_anything.evaluation.caption_scores import cider

    cider(["a"], [["a"]])
    return cider


@contextmanager
def _stopped_clearly() -> Iterator[None]:
    """One line for what stops a run, and the warnings of its log on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tap: %(message)s"))
    log = logging.getLogger("tokenize_anything")
    log.addHandler(handler)
    try:
        yield
    except FloatingPointError as error:
        raise ValueError(
            f"{error}; look at these images, or lower the learning rate, and run again: it goes on "
            f"from the last state that was saved"
        ) from error
    finally:
        log.removeHandler(handler)


def _say(text: str) -> None:
    """Print once, however many processes `torchrun` started."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(text))


def _describe(report: FinetuneReport, config: FinetuneConfig) -> list[str]:
    survey, lines = report.survey, [f"wrote {report.model_path}"]
    lines.append(
        f"{survey.num_images} photos, {survey.num_regions} regions: {survey.num_masks} with a "
        f"mask, {survey.num_named} with a name, {survey.num_captioned} with a caption"
    )
    if report.has_new_concepts:
        shown = ", ".join(survey.names[:5]) + (", ..." if len(survey.names) > 5 else "")
        lines.append(f"it chooses among {len(survey.names)} names: {shown}")
    else:
        lines.append(f"no category names in the data: it keeps the names of {config.model}")
    if not report.has_new_captions:
        lines.append(
            f"its captions are written by the text decoder of {config.model}, which saw none of "
            f"this data"
        )
    lines.append(f"next: tap predict PHOTO --model {report.model_path} --point X,Y")
    return lines
