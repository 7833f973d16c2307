"""A CSV of numbers per step that stays consistent when a run is killed and resumed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenize_anything.checkpoints import replace_on_success


class CsvLog:
    """One row per logged step: the step, then the named columns.

    Args:
        path: of the file; its folder must exist.
        columns: names behind "step".
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self.path, self.columns = Path(path), tuple(columns)

    def rewind(self, step: int) -> None:
        """Keep the rows up to `step`, drop the later ones and what a killed writer left behind."""
        kept = [row for row in self._rows() if int(row[0]) <= step]
        with (
            replace_on_success(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([("step", *self.columns), *kept])

    def append(self, step: int, values: Mapping[str, float | str]) -> None:
        """Add one row; `values` may hold more than the columns. Line breaks become spaces."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow((step, *(_cell(values[name]) for name in self.columns)))

    def _rows(self) -> list[list[str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        return [row for row in rows if len(row) == 1 + len(self.columns) and row[0].isdecimal()]


def _cell(value: float | str) -> str:
    return " ".join(value.splitlines()) if isinstance(value, str) else f"{value:.6g}"
