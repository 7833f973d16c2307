"""From photos to rows of a token store: read ahead, predict a block of photos, check."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenize_anything.data.region_rows import RegionColumns, RegionRows
from tokenize_anything.downstream.token_ledger import PhotoEntry, to_plain
from tokenize_anything.downstream.token_photos import (
    EVERYTHING,
    LoadedPhoto,
    TokenPhotos,
    hash_content,
)
from tokenize_anything.downstream.token_rows import to_token_rows, token_columns
from tokenize_anything.everything_config import EverythingConfig
from tokenize_anything.open_clip_files import fingerprint
from tokenize_anything.predictor import TAPPredictor
from tokenize_anything.regions import RegionPredictions
from tokenize_anything.text_generation import GenerationConfig

_AHEAD = 1  # blocks read or being read, beyond one for each thread


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """What decides about the tokens besides the model; a store has one of these.

    search: how every region of a photo is found, where no prompts are given.
    captions: whether to write captions.
    beams: width of the search for captions; 1 is greedy.
    vector_dtype: float16 or float32, as stored.
    """

    search: EverythingConfig = field(default_factory=EverythingConfig)
    captions: bool = True
    beams: int = 1
    vector_dtype: str = "float32"


@dataclass(frozen=True)
class StoreFacts:
    """What a store must be like to take the tokens of a `TokenMaker`.

    columns: with the identity of the model.
    settings: what else decides about the tokens, as plain JSON values.
    """

    columns: RegionColumns
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class PhotoTokens:
    """What one photo adds to a store: an entry, and its rows unless there are none."""

    entry: PhotoEntry
    rows: RegionRows | None = None


class TokenMaker:
    """A model and settings: photos in, rows out.

    Args:
        predictor: with vocabulary and text tokenizer, where names and captions are wanted.
        settings: what decides about the tokens.
    """

    def __init__(self, predictor: TAPPredictor, settings: TokenSettings | None = None) -> None:
        self.predictor, self.settings = predictor, settings or TokenSettings()
        self.columns = token_columns(predictor, self.settings.vector_dtype)

    def facts(self, kind: str) -> StoreFacts:
        """What a store must be like.

        Args:
            kind: of the photos, see `TokenPhotos`.
        """
        concepts, settings = self.predictor.concepts, self.settings
        vocabulary = None
        if concepts is not None:
            names = hashlib.sha256("\n".join(concepts.names).encode()).hexdigest()[:16]
            vocabulary = f"{names} {fingerprint({'weights': concepts.weights})}"
        search = dataclasses.asdict(settings.search)
        del search["points_per_batch"]  # memory, not the result
        content = {
            "prompt": kind,
            "search": search if kind == EVERYTHING else None,
            "captions": settings.captions and self.predictor.text_tokenizer is not None,
            "beams": settings.beams if settings.captions else None,
            "concepts": vocabulary,
            "dtype": str(self.predictor.dtype).removeprefix("torch."),
        }
        return StoreFacts(self.columns, to_plain(content))

    def make_blocks(
        self, photos: TokenPhotos, blocks: Sequence[Sequence[int]], *, threads: int
    ) -> Iterator[list[PhotoTokens]]:
        """Tokens of blocks of photos, in their order; the next blocks are read in the meantime.

        The photos of a block are named and described together. What a photo gets may differ in the
        last bits with the others of its block, and with nothing else.
        """
        remaining = iter(blocks)
        waiting: deque[Future[list[LoadedPhoto | PhotoTokens]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="photos") as pool:
            try:
                while True:
                    for block in remaining:
                        waiting.append(pool.submit(_read_block, photos, block))
                        if len(waiting) == threads + _AHEAD:
                            break
                    if not waiting:
                        return
                    yield self._make(waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def _make(self, block: Sequence[LoadedPhoto | PhotoTokens]) -> list[PhotoTokens]:
        """One answer for each photo of a block, some of which could not be read."""
        asked = [each for each in block if isinstance(each, LoadedPhoto) and _has_regions(each)]
        made = {tokens.entry.source: tokens for tokens in self._answer(asked)}
        return [
            each if isinstance(each, PhotoTokens) else made.get(each.source) or _without(each)
            for each in block
        ]

    def _answer(self, photos: Sequence[LoadedPhoto]) -> list[PhotoTokens]:
        """Predict together; where that fails, each alone, to find out which one it is."""
        try:
            records = self._predict(photos) if photos else []
            return [self._check(*each) for each in zip(photos, records, strict=True)]
        except ValueError as error:  # the model gives NaN, or more than the dtype holds
            if len(photos) == 1:
                return [_without(photos[0], problem=_one_line(error))]
            return [tokens for photo in photos for tokens in self._answer([photo])]

    def _predict(self, photos: Sequence[LoadedPhoto]) -> list[RegionPredictions]:
        images = [photo.rgb for photo in photos]
        captions = self.settings.captions
        generation = GenerationConfig(num_beams=self.settings.beams)
        records: list[RegionPredictions]
        if photos[0].prompts is None:
            records = self.predictor.predict_everything(
                images, config=self.settings.search, captions=captions, generation=generation
            )
        else:
            records = self.predictor.predict_mask_concept_caption(
                images,
                prompts=[photo.prompts for photo in photos],
                captions=captions,
                generation=generation,
            )
        return records

    def _check(self, photo: LoadedPhoto, regions: RegionPredictions) -> PhotoTokens:
        if not len(regions):
            return _without(photo)
        rows = to_token_rows(regions, photo)
        for name, vectors in rows.vectors.items():
            if np.abs(vectors).max() > np.finfo(self.columns.vector(name).dtype).max:
                raise ValueError(f"{name} is too large for float16; build with float32 vectors")
        return PhotoTokens(dataclasses.replace(_without(photo).entry, num_regions=len(rows)), rows)


def _read_block(photos: TokenPhotos, block: Sequence[int]) -> list[LoadedPhoto | PhotoTokens]:
    return [_read_photo(photos, index) for index in block]


def _read_photo(photos: TokenPhotos, index: int) -> LoadedPhoto | PhotoTokens:
    """The photo, or why it cannot be used; the hash is that of the very bytes that are decoded."""
    name, source_hash = photos.names[index], ""
    try:
        content = (photos.root / name).read_bytes()
        source_hash = hash_content(content)
        return photos.prepare(index, content)
    except (OSError, ValueError, TypeError) as error:
        prompt_hash = photos.prompt_hash(index)
        return PhotoTokens(PhotoEntry(name, source_hash, prompt_hash, 0, _one_line(error)))


def _has_regions(photo: LoadedPhoto) -> bool:
    return photo.prompts is None or len(photo.prompts) > 0


def _without(photo: LoadedPhoto, problem: str = "") -> PhotoTokens:
    """A photo that has no region."""
    left_out = "\n".join(photo.left_out)
    entry = PhotoEntry(photo.source, photo.source_hash, photo.prompt_hash, 0, problem, left_out)
    return PhotoTokens(entry)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
