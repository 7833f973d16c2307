"""The text tokenizer of a new model, learnt from the texts of its training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenize_anything.checkpoints import replace_on_success
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_captions import captioned_regions
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
