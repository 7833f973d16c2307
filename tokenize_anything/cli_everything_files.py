"""The folder of `tap everything`: finished photos on disk as they come, and the files made of them.

A run that was interrupted goes on where it stopped; with more photos only the new ones are
searched; with other files asked for, none is.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from tokenize_anything.build import locate_checkpoint
from tokenize_anything.cli_files import PICTURE_FORMATS, encode_picture, write_whole
from tokenize_anything.cli_model import parse_count
from tokenize_anything.cli_photos import common_folder
from tokenize_anything.cli_table import printable
from tokenize_anything.coco_files import PhotoAnnotations, write_coco, write_label_studio
from tokenize_anything.evaluation.run_files import RunFolder, file_digest, line_of
from tokenize_anything.everything_config import EverythingConfig
from tokenize_anything.image_loading import load_image
from tokenize_anything.predictor import TAPPredictor
from tokenize_anything.region_exports import (
    NO_NAME,
    export_labels,
    import_supervision,
    label_studio_config,
)

_FILES = {
    "pictures": "pictures/: the photos with their regions drawn on them",
    "label-studio": "label_studio.json and .xml: tasks with predictions, and the project's view",
    "yolo": "yolo/: labels of YOLO segmentation",
    "voc": "voc/: labels of Pascal VOC",
}


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Add --out and what goes into it."""
    group = parser.add_argument_group("files")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the results, made if needed: regions.json (COCO) and what is asked for "
        "below; the same command goes on with a run that stopped",
    )
    group.add_argument(
        "--polygons", action="store_true", help="outlines in regions.json, not run-length codes"
    )
    for name, text in _FILES.items():
        group.add_argument(
            f"--{name}", action="append_const", dest="files", const=name, default=[], help=text
        )
    group.add_argument(
        "--image-url",
        metavar="PREFIX",
        default="/data/local-files/?d=",
        help="what Label Studio puts before the file name of a photo (%(default)s)",
    )
    group.add_argument(
        "--batch",
        metavar="N",
        type=parse_count,
        default=4,
        help="photos named and described together (4); an interrupted run loses at most these",
    )
    group.add_argument(
        "--skip-unreadable", action="store_true", help="leave out files that are no picture"
    )


def describe_run(
    arguments: argparse.Namespace, predictor: TAPPredictor, config: EverythingConfig
) -> dict[str, Any]:
    """What decides the regions, for the folder to remember."""
    names = predictor.concepts.names if predictor.concepts is not None else ()
    search = dataclasses.asdict(config)
    del search["points_per_batch"]
    return {
        "command": "tap everything",
        "weights": file_digest(locate_checkpoint(arguments.model)),
        "concepts": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
        "dtype": str(predictor.dtype),
        "search": search,
        "top_k": arguments.top_k,
        "beams": arguments.beams,
        "captions": not arguments.no_captions and predictor.text_tokenizer is not None,
    }


@dataclass(frozen=True)
class Photo:
    """One photo of a run.

    path: the file.
    file_name: relative to the folder of all photos, with forward slashes.
    key: changes with the name and with the content.
    """

    path: Path
    file_name: str
    key: str


class PhotoFolder:
    """The folder of one run.

    Args:
        folder: made where it is missing.
        paths: photos.
        settings: from `describe_run`.

    Raises:
        ValueError: the folder holds the results of other settings.
        OSError: the folder cannot be made, or a photo cannot be read.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], settings: Mapping[str, Any]) -> None:
        self.run = RunFolder(folder, settings)
        self.root = common_folder(paths)
        names = [path.resolve().relative_to(self.root).as_posix() for path in paths]
        hashed = tqdm(paths, desc="reading", mininterval=1, leave=False, disable=None)
        digests = [file_digest(path) for path in hashed]
        self.photos = [
            Photo(path, name, f"{digest}:{name}")
            for path, name, digest in zip(paths, names, digests, strict=True)
        ]
        done = self.run.finished_keys()
        self.pending = [photo for photo in self.photos if photo.key not in done]

    @contextlib.contextmanager
    def open(self) -> Iterator[_Store]:
        """Take up the work on the pending photos."""
        num_done = len(self.photos) - len(self.pending)
        with (
            self.run.open_part(0) as stream,
            tqdm(total=len(self.photos), initial=num_done, desc="photos", disable=None) as bar,
        ):
            yield _Store(self, stream, bar)

    def finish(self) -> None:
        """Bring the finished photos in order, for iterating."""
        done = self.run.finished_keys()
        self.photos = [photo for photo in self.photos if photo.key in done]
        self.run.join([photo.key for photo in self.photos])

    def __iter__(self) -> Iterator[PhotoAnnotations]:
        return (PhotoAnnotations(**row) for row in self.run.rows())


@dataclass(frozen=True)
class _Store:
    """Where finished photos go."""

    folder: PhotoFolder
    stream: BinaryIO
    bar: tqdm[Any]

    @property
    def pending(self) -> list[Photo]:
        return self.folder.pending

    def add(self, photo: Photo, found: PhotoAnnotations) -> None:
        self.stream.write(line_of(photo.key, [found.to_plain()]))
        self.stream.flush()
        self.bar.update()

    def skip(self, photos: Sequence[Photo]) -> None:
        self.bar.update(len(photos))


def check_files(arguments: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Find out before the work whether the files that are asked for can be made.

    Raises:
        ImportError: a package is missing.
        ValueError: label files of two photos would have the same name.
    """
    wanted = [name for name in ("yolo", "voc") if name in arguments.files]
    if not wanted:
        return
    import_supervision()
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(
                f"--{wanted[0]}: {other} and {path} would share one label file; rename one of them"
            )


def write_files(arguments: argparse.Namespace, folder: PhotoFolder, names: Sequence[str]) -> None:
    """Write everything that was asked for, from the finished photos, and say so."""
    out = folder.run.folder
    folder.finish()
    path = out / "regions.json"
    num_regions = write_coco(path, folder, names, polygons=arguments.polygons)
    print(f"{num_regions} regions in {len(folder.photos)} photos of {printable(str(folder.root))}")
    print(f"wrote {printable(str(path))}")
    if "label-studio" in arguments.files:
        tasks, view = out / "label_studio.json", out / "label_studio.xml"
        write_label_studio(tasks, folder, arguments.image_url, arguments.model)
        write_whole(view, label_studio_config(names).encode())
        print(f"wrote {printable(str(tasks))} and {view.name}")
    kinds = [kind for kind in ("pictures", "yolo", "voc") if kind in arguments.files]
    if kinds:
        _write_photo_files(folder, names or [NO_NAME], kinds)
    for kind in kinds:
        print(f"wrote {printable(str(out / kind))}")
    folder.run.results.unlink()


def _write_photo_files(folder: PhotoFolder, names: Sequence[str], kinds: Sequence[str]) -> None:
    out = folder.run.folder
    bar = tqdm(folder.photos, desc="writing", mininterval=1, disable=None)
    for photo, found in zip(bar, folder, strict=True):
        regions = found.regions()
        if "yolo" in kinds:
            export_labels(photo.path, regions, out / "yolo", names, layout="yolo")
        if "voc" in kinds:
            export_labels(photo.path, regions, out / "voc", names, layout="voc")
        if "pictures" in kinds:
            picture = out / "pictures" / photo.file_name
            if picture.suffix.lower() not in PICTURE_FORMATS:
                picture = picture.with_name(picture.name + ".png")
            picture.parent.mkdir(parents=True, exist_ok=True)
            content = encode_picture(regions.draw(load_image(photo.path)), picture)
            write_whole(picture, content)
