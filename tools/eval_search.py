"""Does a text find the regions of its name? For the 20 commonest of a file.

python tools/eval_search.py --annotations DIR/val.json --images DIR/images

hit@10: one of ten has the name; precision@10: how many. Chance: 1 - (1 - share)^10, and the share.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from eval_box_tokens import BoxTokens, encode_boxes
from eval_rows import append_rows

from tokenize_anything import TAPPredictor
from tokenize_anything.data.region_rows import RegionRows
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.region_search import RegionSearch
from tokenize_anything.downstream.text_queries import open_store_tower, phrase_query
from tokenize_anything.downstream.token_rows import NUMBERS, token_columns

K, TOP, METRICS = 10, 20, ("hit@10", "precision@10")


def write_store(path: Path, model: str, regions: BoxTokens) -> RegionStore:
    """The tokens as a store; the concept of a region is its true name, its id its row."""
    store = RegionStore.create(path, token_columns(TAPPredictor.from_pretrained(model)))
    count, images, tokens = len(regions.names), regions.images.tolist(), regions.tokens
    vectors = {"semantic_token": tokens, "mask_token": np.zeros_like(tokens)}
    vectors["semantic_embedding"] = regions.embeddings
    texts = dict.fromkeys(("caption", "source_hash"), [""] * count) | {"source": images}
    texts["concept"] = regions.names.tolist()
    masks = [{"size": size, "counts": ""} for size in regions.sizes_hw.tolist()]
    ids, numbers = np.arange(count), dict.fromkeys(NUMBERS, np.zeros(count))
    store.append(RegionRows(ids, images, regions.boxes_xyxy, masks, vectors, numbers, texts))
    return store


def score(store: RegionStore, names: np.ndarray) -> Iterator[tuple[str, str, float]]:
    tower = open_store_tower(store.columns.identity)
    search, means = RegionSearch(store, text_tower=tower), []
    for name, count in Counter(names).most_common(TOP):
        share, plain = count / len(names), tower.embed_texts([phrase_query(name)])[0].numpy()
        found = {"text": search.by_text(name, K), "text, plain cosine": search.by_vector(plain, K)}
        rates = {"chance": (1 - (1 - share) ** K, share)}
        for way, hits in found.items():
            is_right = [concept == name for concept in hits.rows.texts["concept"]]
            rates[way] = any(is_right), np.mean(is_right)
        means.append(rates)
        for way in ("text", "chance"):
            yield from ((name, f"{m}, {way}", v) for m, v in zip(METRICS, rates[way], strict=True))
    for way in means[0]:
        for metric, value in zip(METRICS, np.mean([r[way] for r in means], axis=0), strict=True):
            yield f"{TOP} names", f"{metric}, {way}", value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tap_tiny")
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--images", required=True, help="folder of the photos")
    parser.add_argument("--cache", type=Path, default=Path("out/box_tokens"))
    parser.add_argument("--out", default="tools/eval_results/search.csv")
    a = parser.parse_args()
    regions = encode_boxes(a.model, a.annotations, a.images, a.cache)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "tokens.lance", a.model, regions)
        rows = list(score(store, regions.names))
    append_rows(a.out, a.model, a.annotations, sys.argv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
