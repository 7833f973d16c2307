"""The text tokenizer of a new model, learnt from the texts of its training data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_captions import CaptionedRegion, captioned_regions
from tokenize_anything.text_tokenizer import TextTokenizer


def caption_texts(annotation_files: Sequence[str | Path]) -> list[str]:
    """What stage 2 learns to say: all different captions and names with their article, sorted.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: what `read_regions` raises.
    """
    regions = captioned_regions(*read_regions(annotation_files, ""))
    return sorted({text for region in regions for text in region.texts})


def train_caption_tokenizer(
    annotation_files: Sequence[str | Path], path: str | Path, *, vocabulary_size: int = 8000
) -> TextTokenizer:
    """Learn a tokenizer from training files and write it, whole or not at all.

    Args:
        annotation_files: COCO-style JSON of the training split only.
        path: where the SentencePiece `.model` file goes; its folder must exist.
        vocabulary_size: upper limit; few texts give fewer pieces.

    Raises:
        FileNotFoundError: a file or the folder of `path` is missing.
        ValueError: what `read_regions` or `TextTokenizer.train` raises.
    """
    model = TextTokenizer.train(caption_texts(annotation_files), vocabulary_size)
    with replace_on_success(Path(path)) as temporary:
        temporary.write_bytes(model)
    return TextTokenizer.from_bytes(model)


def drop_long_texts(
    regions: Sequence[CaptionedRegion], tokenizer: TextTokenizer, max_length: int
) -> tuple[list[CaptionedRegion], list[str]]:
    """Leave out the texts that the decoder has no room for: cut in the middle, they would teach it
    to stop there.

    Args:
        regions: with their texts.
        tokenizer: counts.
        max_length: most token ids of a text, start and end counted.

    Returns:
        The regions that still have a text, and the texts left out.
    """
    texts = sorted({text for region in regions for text in region.texts})
    lengths = tokenizer.encode(texts)[1].sum(axis=1)
    long = {text for text, length in zip(texts, lengths, strict=True) if length > max_length}
    if not long:
        return list(regions), []
    kept = [
        dataclasses.replace(region, texts=tuple(text for text in region.texts if text not in long))
        for region in regions
    ]
    return [region for region in kept if region.texts], sorted(long)
