"""What somebody's own annotated photos hold, found out before hours of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import ImageRecord
from tokenize_anything.training.concept_teacher import present_names
from tokenize_anything.training.config import DataConfig
from tokenize_anything.training.training_data import open_data

MAX_LISTED = 10


@dataclass(frozen=True)
class PhotoSurvey:
    """Counts of a data set.

    names: category names that regions have, sorted.
    num_named: regions that have one of them.
    num_captioned: regions, whole images among them, that have a caption.
    num_masks: regions with a mask.
    """

    num_images: int
    num_regions: int
    num_masks: int
    num_named: int
    num_captioned: int
    names: tuple[str, ...]


def survey_photos(data: DataConfig) -> PhotoSurvey:
    """Read all annotations and open every photo once.

    Raises:
        FileNotFoundError: an annotation file, or photos; the message counts and lists them.
        ValueError: damaged annotations, boxes outside their photo among them; photos that cannot
            be decoded or have another size than their annotation says, counted and listed; or
            nothing that names or describes.
    """
    opened = open_data(data, "")
    records, texts = list(opened.records), opened.texts
    files = [str(file) for file in data.annotation_files]
    names = present_names(data.annotation_files, texts.texts)
    regions = [region for record in records for region in record.regions]
    survey = PhotoSurvey(
        num_images=len(records),
        num_regions=len(regions),
        num_masks=sum(region.rle is not None for region in regions),
        num_named=sum(
            region.text_index >= 0 and texts.texts[region.text_index] in set(names)
            for region in regions
        ),
        num_captioned=sum(bool(region.captions) for region in regions),
        names=tuple(names),
    )
    if not names and not survey.num_captioned:
        raise ValueError(
            f"data: expected category names or captions in {files}, got {len(regions)} regions "
            f"with neither; give the file categories with names and a category_id to each "
            f"annotation, or captions: a list of texts, to annotations or images"
        )
    _check_present(records, files, data.image_folder)
    _check_readable(records)
    return survey


def _check_present(records: list[ImageRecord], files: list[str], image_folder: str) -> None:
    missing = [str(record.path) for record in records if not Path(record.path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"images: {len(missing)} of the {len(records)} photos in {files} are missing: "
            f"{_listed(missing)}; is {image_folder} their folder?"
        )


def _check_readable(records: list[ImageRecord]) -> None:
    problems = []
    for record in tqdm(records, desc="photos", mininterval=5):
        try:
            read_image(record)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError(
            f"images: {len(problems)} of {len(records)} photos cannot be used: "
            f"{_listed(problems)}; repair them or take them out of the annotations"
        )


def _listed(lines: list[str]) -> str:
    more = len(lines) - MAX_LISTED
    return "; ".join(lines[:MAX_LISTED]) + (f"; and {more} more" if more > 0 else "")
