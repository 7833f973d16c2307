"""The numbers of a run for TensorBoard, beside its CSV files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardLog:
    """Writes scalars; those a killed run left behind its last saved step are not shown.

    Args:
        folder: of the event files.
        step: the run goes on from.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard: needs TensorBoard: pip install tokenize-anything[train]"
            ) from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def append(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Write numbers as `group/name`."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)
        self.writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self.writer.close()
