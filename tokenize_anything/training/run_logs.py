"""The numbers of a stage-1 run: CSV files, TensorBoard if asked for, and what was skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenize_anything.training.csv_log import CsvLog
from tokenize_anything.training.mask_validation import COLUMNS as VALIDATION_COLUMNS
from tokenize_anything.training.tensorboard_log import TensorBoardLog

LOG_FILE = "log.csv"
VALIDATION_FILE = "validation.csv"
SKIPPED_FILE = "skipped.csv"
TENSORBOARD_FOLDER = "tensorboard"


class RunLogs:
    """Logs of one process; the first writes the numbers, each what it skipped.

    A log goes on at the step a run goes on from: later rows are dropped first.

    Args:
        folder: of the run; must exist.
        columns: of the training log.
        rank: number of the process.
        has_validation: whether there will be validation scores.
        has_tensorboard: whether to write for TensorBoard too.
    """

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        *,
        rank: int = 0,
        has_validation: bool = False,
        has_tensorboard: bool = False,
    ) -> None:
        self.folder, self.has_tensorboard = folder, has_tensorboard
        self.is_first = rank == 0
        self.training = CsvLog(folder / LOG_FILE, columns)
        self.validation = CsvLog(folder / VALIDATION_FILE, VALIDATION_COLUMNS)
        self.has_validation = has_validation
        name = SKIPPED_FILE if self.is_first else f"skipped.{rank}.csv"
        self.skipped = CsvLog(folder / name, ("reason",))
        self.tensorboard: TensorBoardLog | None = None

    def rewind(self, step: int) -> None:
        """Drop what lies behind `step`."""
        if self.skipped.path.is_file():
            self.skipped.rewind(step)
        if not self.is_first:
            return
        self.training.rewind(step)
        if self.has_validation:
            self.validation.rewind(step)
        if self.has_tensorboard:
            self.tensorboard = TensorBoardLog(self.folder / TENSORBOARD_FOLDER, step)

    def add_training(self, step: int, row: Mapping[str, float]) -> None:
        """Write a row of the training log."""
        self._add(self.training, "training", step, row)

    def add_validation(self, step: int, row: Mapping[str, float]) -> None:
        """Write a row of the validation log."""
        self._add(self.validation, "validation", step, row)

    def add_skipped(self, step: int, lines: Sequence[str]) -> None:
        """Name what the batch of a step had to do without."""
        if lines and not self.skipped.path.is_file():
            self.skipped.rewind(step)  # writes the header
        for line in lines:
            self.skipped.append(step, {"reason": line})

    def close(self) -> None:
        """Finish the files."""
        if self.tensorboard is not None:
            self.tensorboard.close()

    def _add(self, log: CsvLog, group: str, step: int, row: Mapping[str, float]) -> None:
        if not self.is_first:
            return
        log.append(step, row)
        if self.tensorboard is not None:
            self.tensorboard.append(step, group, {name: row[name] for name in log.columns})
