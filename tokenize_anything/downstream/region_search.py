"""Search in a token store: regions like a text, a region, or a vector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokenize_anything.concepts import check_top_k, is_same_space
from tokenize_anything.data.lance_files import damage_reported
from tokenize_anything.data.region_rows import (
    RegionRows,
    describe_some,
    table_checksums,
    table_to_rows,
    to_numpy_column,
)
from tokenize_anything.data.region_store import RegionStore
from tokenize_anything.downstream.region_filters import RegionFilter
from tokenize_anything.downstream.search_index import APPROXIMATE_QUERY, has_index
from tokenize_anything.downstream.text_queries import (
    check_tower,
    embed_phrase,
    open_store_tower,
    phrase_query,
)
from tokenize_anything.downstream.token_rows import (
    SEMANTIC_EMBEDDING,
    model_identity,
    require_token_columns,
    space_of_identity,
)
from tokenize_anything.image_transform import ImageSource
from tokenize_anything.predictor import TAPPredictor
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.text_towers import TextTower

if TYPE_CHECKING:
    import pyarrow as pa

SearchMode = Literal["auto", "exact", "approximate"]
MODES = ("auto", "exact", "approximate")


@dataclass(frozen=True, eq=False)
class RegionHits:
    """What a search found, most similar first.

    rows: of the k regions, as the store has them.
    similarities: (k,) float32 cosines with the query, -1..1.
    """

    rows: RegionRows
    similarities: np.ndarray

    def __len__(self) -> int:
        return len(self.similarities)

    def to_json(self) -> str:
        """A list with an object for each region, without its vectors; the mask as COCO RLE."""
        rows = self.rows
        hits = [
            {
                "region_id": int(rows.region_ids[row]),
                "similarity": round(float(self.similarities[row]), 6),
                "image": rows.images[row],
                "box_xyxy": [float(edge) for edge in rows.boxes_xyxy[row]],
                "segmentation": dict(rows.rles[row]),
                **{name: float(numbers[row]) for name, numbers in rows.numbers.items()},
                **{name: texts[row] for name, texts in rows.texts.items()},
            }
            for row in range(len(self))
        ]
        return json.dumps(hits)


class RegionSearch:
    """Finds the regions of a token store that are most similar to a query.

    Similarity is the cosine between semantic embeddings, in which the embedding of a region and
    that of a text that names it point the same way (paper section 3.2).

    Args:
        store: made by `tap tokens build`.
        predictor: of the store's model; only searches by a region of a photo need it.
        text_tower: of the store's text space; None loads it at the first text.
        mode: "exact" compares with every region; "approximate" uses the index that
            `search_index.build_index` made; "auto" uses it where there is one.

    Raises:
        TypeError: not a region store.
        ValueError: a store of something else, a predictor or text tower of another model, or
            another mode.

    Example:
        >>> search = RegionSearch(RegionStore.open("tokens.lance"))
        >>> hits = search.by_text("a red mug", 5, where=RegionFilter(min_area=0.01))
        >>> hits.rows.images[0], hits.similarities[0]
    """

    def __init__(
        self,
        store: RegionStore,
        *,
        predictor: TAPPredictor | None = None,
        text_tower: TextTower | None = None,
        mode: SearchMode = "auto",
    ) -> None:
        if not isinstance(store, RegionStore):
            raise TypeError(
                f"store: expected a RegionStore, got {type(store).__name__}; RegionStore.open "
                "opens one"
            )
        require_token_columns(store.columns, store.path)
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if predictor is not None:
            _check_model(predictor, store)
        if text_tower is not None:
            check_tower(text_tower, store.columns.identity)
        self.store, self.predictor, self.mode = store, predictor, mode
        self._text_tower = text_tower

    def by_text(self, query: str, k: int = 10, *, where: RegionFilter | None = None) -> RegionHits:
        """Regions that a text names, such as "mug" or "a red mug".

        Similarities are those with what sets the text apart, see `text_queries.embed_phrase`.

        Raises:
            ImportError: the package of the text encoder is missing; the message names the extra.
            ValueError: no words; a model whose text space is not known; and as `by_vector`.
            FileNotFoundError, ConnectionError, PermissionError: see `open_store_tower`.
            OSError: see `by_vector`.
        """
        check_top_k(k)
        self._check_not_empty()
        phrase = phrase_query(query)
        if self._text_tower is None:
            self._text_tower = open_store_tower(self.store.columns.identity)
        return self.by_vector(embed_phrase(phrase, self._text_tower), k, where=where)

    def by_region(
        self,
        image: ImageSource,
        prompts: PointPrompts,
        k: int = 10,
        *,
        where: RegionFilter | None = None,
    ) -> RegionHits:
        """Regions like one region of a photo.

        Args:
            image: path, PIL image or (H,W,3) uint8 RGB array.
            prompts: of one region, original pixels, such as `PointPrompts.from_boxes([box_xyxy])`.
            k: how many at most.
            where: which regions may be found; None for all.

        Raises:
            ValueError: no predictor was given, not one region, a prompt that does not fit the
                photo, and as `by_vector`.
            FileNotFoundError, TypeError: not a photo.
            OSError: see `by_vector`.
        """
        check_top_k(k)
        self._check_not_empty()
        if self.predictor is None:
            raise ValueError(
                "predictor: a search by a region of a photo needs the store's model; pass "
                "RegionSearch(store, predictor=TAPPredictor.from_pretrained(...))"
            )
        if len(prompts) != 1:
            raise ValueError(f"prompts: expected one region to search for, got {len(prompts)}")
        regions = self.predictor.predict_mask_concept_caption(
            image, prompts=prompts, captions=False
        )
        return self.by_vector(regions.semantic_embeddings[0], k, where=where)

    def like(self, region_id: int, k: int = 10, *, where: RegionFilter | None = None) -> RegionHits:
        """Regions like one of the store, which is not among them.

        Raises:
            ValueError: no region of that id, and as `by_vector`.
            OSError: see `by_vector`.
        """
        check_top_k(k)
        self._check_not_empty()
        try:
            (vector,) = self.store.read_vectors([region_id], SEMANTIC_EMBEDDING)
        except KeyError as error:
            raise ValueError(
                f"region_id: expected the id of a region of {self.store.path}, got {region_id}; "
                "searches show ids"
            ) from error
        others = f"region_id != {int(region_id)}"
        return self._nearest(_checked_vector(vector, len(vector)), k, where, others)

    def by_vector(
        self, vector: np.ndarray, k: int = 10, *, where: RegionFilter | None = None
    ) -> RegionHits:
        """Regions whose semantic embedding has the largest cosine with a vector.

        Args:
            vector: (D,), of any length but 0.
            k: how many at most.
            where: which regions may be found; None for all.

        Raises:
            TypeError: `k` is not a whole number.
            ValueError: `k` under 1, another shape, zeros, NaN, infinity, an empty store, a filter
                on a column that the store lacks, or no index for an approximate search.
            OSError: files of the store are damaged or missing, or a region found is.
        """
        check_top_k(k)
        dim = self.store.columns.vector(SEMANTIC_EMBEDDING).dim
        return self._nearest(_checked_vector(vector, dim), k, where)

    def _nearest(
        self, vector: np.ndarray, k: int, where: RegionFilter | None, condition: str = ""
    ) -> RegionHits:
        self._check_not_empty()
        filters = [(where or RegionFilter()).to_sql(self.store.columns), condition]
        query: dict[str, Any] = {
            "column": SEMANTIC_EMBEDDING,
            "q": vector,
            "k": int(k),
            "metric": "cosine",
            **self._plan(),
        }
        table = self._run(query, " AND ".join(text for text in filters if text))
        distances = to_numpy_column(table, "_distance").astype(np.float32)
        return RegionHits(table_to_rows(table, self.store.columns), 1 - distances)

    def _plan(self) -> dict[str, Any]:
        """How Lance is to look for neighbours."""
        is_indexed = self.mode != "exact" and has_index(self.store)
        if self.mode == "approximate" and not is_indexed:
            raise ValueError(
                f"mode: {self.store.path} has no index to search approximately; make one with "
                "`tap search STORE --build-index`, or search exactly"
            )
        return dict(APPROXIMATE_QUERY) if is_indexed else {"use_index": False}

    def _run(self, query: dict[str, Any], condition: str) -> pa.Table:
        columns = [*self.store.dataset.schema.names, "_distance"]
        options = {"nearest": query, "filter": condition or None, "prefilter": True}
        try:
            table = self.store.dataset.to_table(columns=columns, **options)
        except (OSError, ValueError):  # perhaps a build has merged these files since
            with damage_reported(self.store.path):
                self.store = RegionStore.open(self.store.path, expected=self.store.columns)
                table = self.store.dataset.to_table(columns=columns, **options)
        wrong = table_checksums(table, self.store.columns) != to_numpy_column(table, "checksum")
        if wrong.any():
            ids = to_numpy_column(table, "region_id")[wrong]
            raise OSError(
                f"region store: {self.store.path} holds regions that have changed since they were "
                f"written: {describe_some(ids)}; `tap tokens verify` finds them all"
            )
        return table

    def _check_not_empty(self) -> None:
        if not len(self.store):
            raise ValueError(
                f"region store: {self.store.path} is empty; `tap tokens build` adds regions"
            )


def _check_model(predictor: TAPPredictor, store: RegionStore) -> None:
    own, stored = model_identity(predictor), store.columns.identity
    spaces = space_of_identity(own), space_of_identity(stored)
    if own.split()[0] != stored.split()[0] or not is_same_space(*spaces):
        raise ValueError(
            f"predictor: expected the model that made {store.path}, {stored}, got {own}; load "
            "that model, or build a store with this one"
        )


def _checked_vector(vector: Any, dim: int) -> np.ndarray:
    query = np.asarray(vector, dtype=np.float32)
    if query.shape != (dim,):
        raise ValueError(
            f"vector: expected ({dim},), as the embeddings of the store, got {query.shape}"
        )
    length = float(np.linalg.norm(query.astype(np.float64)))
    if not (np.isfinite(length) and length > 0):
        raise ValueError("vector: expected finite numbers, not all 0")
    return (query / length).astype(np.float32)
