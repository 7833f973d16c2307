"""Contact sheets of search hits: each region outlined on its photo, with what is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tokenize_anything.contact_sheets import Tile, contact_sheet, cut_tile, empty_tile
from tokenize_anything.downstream.region_search import RegionHits
from tokenize_anything.downstream.token_photos import read_source
from tokenize_anything.geometry import decode_rle

_OUTLINE_COLOR = (255, 196, 44)


def draw_hits(hits: RegionHits, photos: str | os.PathLike[str]) -> Image.Image:
    """Draw a contact sheet of at least one hit, best first.

    A photo that is not there, or is another one than when its tokens were made, is left gray and
    says so.

    Args:
        hits: of a search.
        photos: the folder that `source` of the store is under.

    Raises:
        FileNotFoundError: none of the photos is there.
        ValueError: no hits.
    """
    if not len(hits):
        raise ValueError("hits: expected at least one region to draw, got none")
    folder = Path(photos)
    sources = hits.rows.texts["source"]
    if not any((folder / source).is_file() for source in sources):
        raise FileNotFoundError(
            f"photos: none of the {len(set(sources))} photos is under {folder}, first "
            f"{sources[0]}; pass the folder that the tokens were built from"
        )
    return contact_sheet([_tile(hits, row, folder) for row in range(len(hits))])


def _tile(hits: RegionHits, row: int, folder: Path) -> Tile:
    rows, lines = hits.rows, list(_lines(hits, row))
    try:
        rgb = read_source(folder, rows.texts["source"][row], rows.texts["source_hash"][row])
    except FileNotFoundError:
        return empty_tile([*lines, "photo not found"])
    except ValueError:  # other content, and then perhaps no picture at all
        return empty_tile([*lines, "photo has changed"])
    outlined = [(decode_rle(rows.rles[row]), _OUTLINE_COLOR)]
    return cut_tile(rgb, outlined, rows.boxes_xyxy[row].tolist(), lines)


def _lines(hits: RegionHits, row: int) -> Iterator[str]:
    """What a tile says of its region."""
    texts = hits.rows.texts
    yield f"{row + 1}. {hits.similarities[row]:.3f}  {texts['concept'][row]}".rstrip()
    yield f"{texts['source'][row]}, region {hits.rows.region_ids[row]}"
    if texts["caption"][row]:
        yield texts["caption"][row]
