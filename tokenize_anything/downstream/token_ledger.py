"""The ledger of a token store: which photos are done, from which content, with what outcome.

A Lance data set beside the store, `STORE.photos`, so that it lies where the store lies, in a folder
or in object storage. A photo is entered after its regions are in the store; so what is entered is
done, and regions of photos without entry are leftovers of a kill.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from tokenize_anything.data.lance_files import (
    damage_reported,
    failure_reported,
    import_lance,
    is_vacant,
    match_texts,
)

_SETTINGS_KEY = b"tokenize_anything.token_settings"
_MANY_FRAGMENTS = 64
_NAMES_PER_QUERY = 512


@dataclass(frozen=True)
class PhotoEntry:
    """One photo that is done.

    source: its path under the folder of all photos.
    source_hash: SHA-256 of its file; empty where the file could not be read.
    prompt_hash: of the annotations; empty where every region is looked for.
    num_regions: in the store.
    problem: why the photo cannot be used; empty where it can.
    left_out: annotations that cannot be used, a line each.
    """

    source: str
    source_hash: str
    prompt_hash: str
    num_regions: int
    problem: str = ""
    left_out: str = ""


class PhotoLedger:
    """The photos of a token store; one process writes at a time (`exclusive_writer`).

    Args:
        dataset: the Lance data set.
        place: of the ledger.
        settings: what the tokens depend on besides the model, as plain JSON values.
    """

    def __init__(self, dataset: Any, place: str, settings: Mapping[str, Any]) -> None:
        self.dataset, self.place, self.settings = dataset, place, settings

    @classmethod
    def create(cls, store: str, settings: Mapping[str, Any]) -> PhotoLedger:
        """An empty ledger for the store at that place.

        Raises:
            OSError: the place cannot be written.
        """
        place = ledger_place(store)
        schema = _schema(settings)
        with failure_reported(place, "make the ledger of a token store"):
            dataset = import_lance().write_dataset(schema.empty_table(), place, mode="create")
        return cls(dataset, place, settings)

    @classmethod
    def open(cls, store: str) -> PhotoLedger:
        """The ledger of a store.

        Raises:
            FileNotFoundError: it has none.
            ValueError: it is damaged, or something else.
        """
        place = ledger_place(store)
        if is_vacant(place):
            raise FileNotFoundError(
                f"token store: {store} has no ledger at {place}; copy it along with the store, or "
                f"build the tokens into another place"
            )
        try:
            dataset = import_lance().dataset(place)
            settings = json.loads((dataset.schema.metadata or {})[_SETTINGS_KEY])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"token store: the ledger {place} is damaged or something else ({error!r:.200}); "
                f"build the tokens into another place"
            ) from error
        return cls(dataset, place, settings)

    def entries(self) -> dict[str, PhotoEntry]:
        """All entries by their source.

        Raises:
            OSError: files of the ledger are damaged or missing.
        """
        with damage_reported(self.place):
            rows = self.dataset.to_table().to_pylist()
        return {row["source"]: PhotoEntry(**row) for row in rows}

    def add(self, entries: Sequence[PhotoEntry]) -> None:
        """Enter photos, all or none.

        Raises:
            OSError: the disk is full, or the place cannot be written.
        """
        import pyarrow as pa

        if not entries:
            return
        columns = zip(*map(astuple, entries), strict=True)
        table = pa.Table.from_arrays([pa.array(c) for c in columns], schema=self.dataset.schema)
        with failure_reported(self.place, f"enter {len(entries)} photos"):
            lance = import_lance()
            self.dataset = lance.write_dataset(table, self.dataset, mode="append")
            if len(self.dataset.get_fragments()) > _MANY_FRAGMENTS:
                self.finish()

    def remove(self, sources: Sequence[str]) -> None:
        """Forget photos; those without entry are let pass.

        Raises:
            OSError: the place cannot be written.
        """
        with failure_reported(self.place, f"remove {len(sources)} photos"):
            for start in range(0, len(sources), _NAMES_PER_QUERY):
                names = sources[start : start + _NAMES_PER_QUERY]
                self.dataset.delete(match_texts("source", names))

    def finish(self) -> None:
        """Merge what was added bit by bit.

        Raises:
            OSError: the disk is full; the ledger reads as before.
        """
        with failure_reported(self.place, "tidy up"):
            self.dataset.optimize.compact_files()
            self.dataset = import_lance().dataset(self.place)
            self.dataset.cleanup_old_versions(datetime.timedelta(0), delete_unverified=True)

    def require_settings(self, settings: Mapping[str, Any]) -> None:
        """Check that tokens made with these settings may stand beside those of the store.

        Raises:
            ValueError: naming every setting that differs.
        """
        names = sorted(self.settings.keys() | settings.keys())
        differences = [
            f"{name} was {self.settings.get(name)!r}, now {settings.get(name)!r}"
            for name in names
            if self.settings.get(name) != settings.get(name)
        ]
        if differences:
            raise ValueError(
                f"token store: its tokens were made with other settings: {'; '.join(differences)}; "
                f"use those again, or build into another place"
            )


def ledger_place(store: str) -> str:
    """Where the ledger of a store lies."""
    return f"{store.rstrip('/')}.photos"


def to_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a ledger."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def describe_problems(entries: Iterable[PhotoEntry]) -> tuple[str, ...]:
    """A line for each photo that cannot be used."""
    return tuple(f"{entry.source}: {entry.problem}" for entry in entries if entry.problem)


def _schema(settings: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    names = [field.name for field in fields(PhotoEntry)]
    kinds = [pa.int64() if name == "num_regions" else pa.string() for name in names]
    columns = [pa.field(n, kind, nullable=False) for n, kind in zip(names, kinds, strict=True)]
    return pa.schema(columns, metadata={_SETTINGS_KEY: json.dumps(settings).encode()})
