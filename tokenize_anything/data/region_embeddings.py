"""Stored vectors of regions, such as CLIP image embeddings, looked up by region id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class RegionEmbeddings(Protocol):
    """A store of one vector per region. Data-loading processes get a copy each."""

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """Vectors (n,D) of n different regions, in their order.

        Raises:
            KeyError: one of them is not in the store.
        """
        ...


def read_present(
    store: RegionEmbeddings, ids: Sequence[int]
) -> tuple[dict[int, np.ndarray], list[int]]:
    """Vectors (D,) of the regions that have one, by id, and the ids that have none."""
    try:
        return dict(zip(ids, store.read(ids), strict=True)), []
    except KeyError:
        pass  # rare, so the price of looking one by one does not matter
    present, missing = {}, []
    for region_id in ids:
        try:
            (present[region_id],) = store.read([region_id])
        except KeyError:
            missing.append(region_id)
    return present, missing
