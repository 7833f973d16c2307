"""Where the relative paths of a training configuration lead."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from tokenize_anything.build import BUILT_IN_WEIGHTS
from tokenize_anything.hub import PUBLISHED_WEIGHTS

Config = TypeVar("Config")

# What training reads, and what it writes or has written in an earlier stage.
DATA_FIELDS = frozenset(
    ["annotation_files", "image_folder", "photo_folder", "shards", "concepts", "target_concepts",
     "embeddings", "init_encoder_from"]
)  # fmt: skip
OUT_FIELDS = frozenset(["output_folder", "init_from", "distill_from", "text_tokenizer"])


def resolve_paths(config: Config, data: str | Path, out: str | Path) -> Config:
    """Put the relative paths of a configuration under the folders of this run.

    Absolute paths and names of known models stay.

    Args:
        config: a dataclass, such as `PretrainConfig`; configurations inside it change too.
        data: folder of annotations, photos and stored embeddings.
        out: folder of the runs, the models and tokenizers that earlier stages wrote among them.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = resolve_paths(value, data, out)
        elif field.name in DATA_FIELDS:
            changes[field.name] = _under(Path(data), value)
        elif field.name in OUT_FIELDS:
            changes[field.name] = _under(Path(out), value)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _under(folder: Path, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_under(folder, item) for item in value)
    is_name = value in BUILT_IN_WEIGHTS or value in PUBLISHED_WEIGHTS
    if not value or is_name or str(value).startswith("timm/"):
        return value
    return str(folder / value)
