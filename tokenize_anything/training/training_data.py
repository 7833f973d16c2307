"""Open the annotated photos that a configuration names, whichever kind of place they are in."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.photo_json import PhotoFolder
from tokenize_anything.data.samples import ImageRecord, TextTable
from tokenize_anything.data.shards import ShardRecords, find_shards, read_texts
from tokenize_anything.training.config import DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Annotated photos and what their regions refer to.

    records: one for each photo; those of folders and shards are read when they are asked for.
    texts: the text table.
    names: the texts that are names of categories.
    shard_sizes: photos per shard; empty where photos are files of their own.
    problems: what was left out at once, a line each.
    """

    records: Sequence[ImageRecord]
    texts: TextTable
    names: tuple[str, ...] = ()
    shard_sizes: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


def open_data(config: DataConfig, index_folder: str | Path) -> TrainingData:
    """Open the data of a run.

    Args:
        config: where it is, and whether what is unusable stops this.
        index_folder: where the contents of shards are listed, so that they are read once.

    Raises:
        FileNotFoundError: a file, folder or shard is missing.
        ValueError: annotations or shards are damaged, or hold nothing; or, where bad data stops
            the run, a photo lacks its JSON or a shard is cut short.
    """
    data = _open(config, index_folder)
    if data.problems and config.on_bad_data == "stop":
        raise ValueError(
            f"data: {len(data.problems)} files cannot be used, the first: {data.problems[0]}; mend "
            f"them, or set on_bad_data to skip"
        )
    for line in data.problems[:5]:
        logger.warning("left out: %s (one of %d)", line, len(data.problems))
    return data


def _open(config: DataConfig, index_folder: str | Path) -> TrainingData:
    if config.photo_folder:
        folder = PhotoFolder(config.photo_folder)
        empty = TextTable((), np.zeros(0, dtype=np.int64))
        return TrainingData(folder, empty, problems=tuple(folder.problems))
    if config.shards:
        shards = find_shards(config.shards)
        texts, names = read_texts(shards)
        found = ShardRecords(shards, index_folder)
        return TrainingData(found, texts, names, found.sizes, tuple(found.problems))
    regions, texts = read_regions(config.annotation_files, config.image_folder)
    return TrainingData(regions, texts)


def check_region_ids(records: Sequence[ImageRecord], files: Sequence[str]) -> None:
    """Refuse annotation files that number different regions alike.

    Raises:
        ValueError: two regions of the same id, whose stored vectors would be mixed up.
    """
    ids = [r.region_id for record in records for r in record.regions if r.region_id is not None]
    twice = [one for one, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"data: {len(twice)} ids stand for more than one region in {list(files)}, the first "
            f"are {twice[:3]}; embeddings are found by id, so number the annotations anew"
        )
