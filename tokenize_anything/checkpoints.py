"""Native checkpoint files: safetensors that carry their own configuration.

A file holds the tensors of one model, its `TAPConfig` (pixel facts included) in the header, and, if
the writer wished, further tensors and text, such as a concept vocabulary.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tokenize_anything.config import TAPConfig
from tokenize_anything.modeling import TAP
from tokenize_anything.weight_rounding import (
    cast_tensor,
    pack_weights,
    restore_weights,
    shared_dtype,
)

FORMAT_NAME = "tokenize_anything"
FORMAT_VERSION = "1"
_EXTRA_PREFIX = "extra."
_RESERVED_METADATA = frozenset(["format", "version", "config"])
_MAX_INDEX_BYTES = 4 * 2**30
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class CheckpointHeader:
    """What a native file says about itself.

    config: sizes and pixel facts; enough to rebuild the model.
    metadata: the text its writer added.
    extra_names: names of the tensors stored beside the model's.
    """

    config: TAPConfig
    metadata: Mapping[str, str] = field(default_factory=dict)
    extra_names: tuple[str, ...] = ()


class _LayOutMode(TorchFunctionMode):
    """Inside the meta device: no random fill, and the index tables are real, on the CPU.

    Both would otherwise import torch's compiler, which takes longer than the model.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, torch.nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            func = torch.empty
        if func is torch.arange:
            kwargs = {"device": "cpu"} | kwargs
        return func(*args, **kwargs)


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Accept "float32", "float16", "bfloat16" or the torch dtype of that name.

    Raises:
        ValueError: any other dtype or name.
    """
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in _DTYPES.values():
        raise ValueError(f"dtype: expected one of {sorted(_DTYPES)}, got {dtype!r}")
    return found


def save_model(
    model: TAP,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    metadata: Mapping[str, str] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
    rounded: Sequence[str] = (),
) -> Path:
    """Write a model to one native file, whole or not at all.

    Args:
        model: stays as it is, whatever its device and dtype.
        path: ends in .safetensors; its folder must exist. An existing file is replaced.
        dtype: of the floating-point weights in the file; None keeps the model's. The matrix of the
            position code stays float32 always, because rounding it moves every position.
        metadata: text to keep in the header; the keys format, version and config are taken.
        extra_tensors: tensors to keep beside the model's, as they are.
        rounded: parts to store in eight bits per weight, such as ["text_decoder."]: what the names
            of tensors start with. Those of at least 2 dimensions and 4096 elements become int8 with
            a float32 scale per channel (first dimension). Their error is at most half a step, 1/254
            of the channel's largest weight, and they take about half the space of float16.

    Returns:
        The path.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: wrong suffix, a taken metadata key, weights too large for float16, a part with
            nothing to round, or weights to round that are not finite.
        TypeError: metadata that is not text, extras that are not tensors, or `rounded` as one text.
    """
    return save_state(
        model.config, model.state_dict(), path, dtype=dtype, metadata=metadata,
        extra_tensors=extra_tensors, rounded=rounded,
    )  # fmt: skip


def save_state(
    config: TAPConfig,
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    metadata: Mapping[str, str] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
    rounded: Sequence[str] = (),
) -> Path:
    """Write a native state dict that fits `config`; see `save_model`."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected a name ending in .safetensors, got {path.name!r}")
    check_state(expected_state(config), state, where="save_model")
    target = None if dtype is None else parse_dtype(dtype)
    tensors = pack_weights(state, rounded, target)
    for name, tensor in (extra_tensors or {}).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"extra_tensors[{name!r}]: expected a tensor, got {type(tensor).__name__}"
            )
        tensors[_EXTRA_PREFIX + name] = tensor
    header = {
        **_checked_metadata(metadata or {}),
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "config": config.to_json(),
    }
    write_safetensors(path, tensors, header)
    return path


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors of any device and memory layout to a file, whole or not at all.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        OSError: the disk is full, or refuses to be written.
    """
    # A clone per tensor: the format refuses tensors that share memory or are not contiguous.
    packed = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with replace_on_success(Path(path)) as temporary:
        try:
            save_file(packed, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(
                f"{path}: could not be written ({error}); what was there before is unchanged; free "
                f"some space and try again"
            ) from error


def read_header(path: str | os.PathLike[str]) -> CheckpointHeader:
    """Read what a native file says about itself; no tensor is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a native file, damaged, or written by a newer release.
    """
    with _open_native(path) as file:
        return _parse_header(path, file)


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[CheckpointHeader, dict[str, Tensor]]:
    """Read the model of a native file.

    Args:
        path: a file `save_model` wrote.
        dtype: of the floating-point weights; None keeps the file's, and gives those stored in eight
            bits the dtype of its others (float32 where these differ). The matrix of the position
            code stays float32.
        device: where the tensors go.

    Returns:
        The header, and a state dict that fits `TAP(header.config)`. The tensors own their memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a native file, damaged, written by a newer release, weights in eight bits
            without the scales that belong to them, or tensors that do not fit its own configuration
            (the message lists all that do not).
    """
    target = None if dtype is None else parse_dtype(dtype)
    with _open_native(path) as file:
        header = _parse_header(path, file)
        names = [name for name in file.keys() if not name.startswith(_EXTRA_PREFIX)]
        stored = {name: file.get_tensor(name) for name in names}
        target = target or shared_dtype(stored)
        tensors = restore_weights(stored, where=str(path))
        del stored  # so that the loop frees what it has cast
        check_depths(header.config, len(tensors), where=str(path))
        state = {}
        for name in list(tensors):
            tensor = cast_tensor(name, tensors.pop(name), target)
            state[name] = tensor.to(device, copy=True)  # the file may be mapped, not read
    try:
        expected = expected_state(header.config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_state(expected, state, where=str(path))
    return header, state


def read_extra_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors stored beside the model's, by the names given to `save_model`."""
    with _open_native(path) as file:
        names = _parse_header(path, file).extra_names
        return {name: file.get_tensor(_EXTRA_PREFIX + name).clone() for name in names}


def expected_state(config: TAPConfig) -> dict[str, Tensor]:
    """Names, shapes and dtypes of a model's state dict, as tensors without memory (meta device).

    Raises:
        ValueError: sizes beyond what a tensor can have.
    """
    return dict(lay_out_model(config).state_dict())


def lay_out_model(config: TAPConfig, **rates: float) -> TAP:
    """A model without memory for its weights (meta device), for `load_state_dict(assign=True)`.

    The index tables of the relative positions, which no file holds, are real and on the CPU.

    Args:
        config: sizes.
        rates: dropout rates, passed to `TAP`.

    Raises:
        ValueError: sizes beyond what a tensor can have.
    """
    num_bytes = 8 * config.encoder_depth * config.window_size**4
    if num_bytes > _MAX_INDEX_BYTES:
        raise ValueError(
            f"window_size: the position tables of {config.encoder_depth} blocks with window "
            f"{config.window_size} would take {num_bytes} bytes; choose a smaller window"
        )
    try:
        with torch.device("meta"), _LayOutMode():
            return TAP(config, **rates)
    except RuntimeError as error:
        raise ValueError(f"config: sizes too large for a tensor ({error}); got {config}") from error


def check_state(expected: Mapping[str, Any], found: Mapping[str, Any], *, where: str) -> None:
    """Compare names, shapes and kinds (floating-point or integer) of tensors or arrays.

    Raises:
        ValueError: lists every missing, unexpected and misfitting name, sorted, at once.
    """
    misfits = [
        f"{name} is {_facts(found[name])}, expected {_facts(expected[name])}"
        for name in sorted(set(expected) & set(found))
        if _facts(expected[name]) != _facts(found[name])
    ]
    reports = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "misfitting": misfits,
    }
    problems = [
        f"{len(names)} {kind}: {', '.join(names)}" for kind, names in reports.items() if names
    ]
    if problems:
        raise ValueError(
            f"{where}: the tensors do not fit the configuration; " + "; ".join(problems)
        )


def check_depths(config: TAPConfig, num_tensors: int, *, where: str) -> None:
    """Refuse depths that the tensors cannot fill, before a model of that depth is laid out.

    Raises:
        ValueError: more blocks than tensors.
    """
    depth = config.encoder_depth + config.decoder_depth + config.text_depth
    if depth > num_tensors:
        raise ValueError(
            f"{where}: expected several tensors per block, got {num_tensors} for {depth} blocks"
        )


@contextlib.contextmanager
def replace_on_success(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; move it there if the block succeeds, else delete it.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask makes of a new file
        yield temporary
        temporary.chmod(mode)  # some writers make files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _facts(value: Any) -> str:
    """Shape and kind of a tensor or array, as text."""
    if isinstance(value, Tensor):
        kind = "floating-point" if value.is_floating_point() else str(value.dtype).split(".")[-1]
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = "floating-point" if value.dtype.kind == "f" else value.dtype.name
    else:
        return f"a {type(value).__name__}"
    return f"{list(value.shape)} {kind}"


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata[{key!r}]: expected text, got {type(value).__name__}")
    taken = sorted(_RESERVED_METADATA & set(metadata))
    if taken:
        raise ValueError(f"metadata: the keys {taken} are taken by the format; choose other names")
    return dict(metadata)


@contextlib.contextmanager
def _open_native(path: str | os.PathLike[str]) -> Iterator[Any]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a safetensors file, or truncated or damaged ({error}). Download or "
            f"convert it again"
        ) from error


def _parse_header(path: str | os.PathLike[str], file: Any) -> CheckpointHeader:
    metadata = dict(file.metadata() or {})
    if metadata.pop("format", None) != FORMAT_NAME or "config" not in metadata:
        raise ValueError(
            f"{path}: a safetensors file, but not written by this package: its header has no "
            f"format={FORMAT_NAME!r} with a config. Write it with save_model or `tap convert`"
        )
    version = metadata.pop("version", None)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version}; upgrade the package "
            f"(pip install --upgrade tokenize-anything)"
        )
    try:
        config = TAPConfig.from_json(metadata.pop("config"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged configuration in the header ({error})") from error
    extras = sorted(name for name in file.keys() if name.startswith(_EXTRA_PREFIX))
    return CheckpointHeader(
        config, metadata, tuple(name.removeprefix(_EXTRA_PREFIX) for name in extras)
    )
