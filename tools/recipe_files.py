"""The configurations of a recipe, one file a phase; see train_tap_tiny.py."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenize_anything.training.config import load_config
from tokenize_anything.training.relative_paths import resolve_paths

Config = TypeVar("Config")


@dataclass(frozen=True)
class Recipe:
    """Phases in `tap_tiny_<phase>.yaml`, on photos of one folder, with their runs in another.

    share: of all steps, to see the recipe through before it is run at full length.
    """

    configs: Path
    data: Path
    out: Path
    share: float = 1.0

    def phases(self, pattern: str) -> list[str]:
        """The phases of one kind, in order."""
        files = sorted(self.configs.glob(f"tap_tiny_{pattern}.yaml"))
        return [file.stem.removeprefix("tap_tiny_") for file in files]

    def read(self, kind: type[Config], phase: str) -> Config:
        """The configuration of a phase, its relative paths under the folders of this run."""
        config = load_config(kind, self.configs / f"tap_tiny_{phase}.yaml")
        return shorten(resolve_paths(config, self.data, self.out), self.share)


def shorten(config: Config, share: float) -> Config:
    """A configuration with a share in (0, 1] of the steps, of the warm-up too, at least one each.

    Fewer steps are not compiled, which would take longer than they do.

    Raises:
        ValueError: another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected more than 0 and at most 1, got {share}")
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if field.name in ("num_steps", "stop_step", "warmup_steps") and value:
            changes[field.name] = math.ceil(share * value)
        elif field.name == "compile_model":
            changes[field.name] = value and share == 1
        elif field.name == "optimizer":
            changes[field.name] = shorten(value, share)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]
