"""Weights in fewer bits: half precision, and eight bits with a scale per channel.

A weight in eight bits is an int8 tensor with a float32 tensor of scales beside it, one per index of
its first dimension (a channel). Integer times scale is the weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

COORD_MATRIX_KEY = "prompt_encoder.position_encoding.coord_matrix"
SCALE_SUFFIX = ".scale"
MIN_ROUNDED_ELEMENTS = 4096
_LARGEST = 127


def cast_tensor(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Change the dtype of a weight as the native format wants it.

    Integers stay, and the matrix of the position code is float32 always.

    Raises:
        ValueError: finite values that overflow `dtype`.
    """
    if name == COORD_MATRIX_KEY:
        dtype = torch.float32
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if dtype == torch.float16 and bool((cast.isinf() & tensor.isfinite()).any()):
        raise ValueError(
            f"{name}: largest magnitude {tensor.abs().max().item():.4g} does not fit float16 "
            f"(65504); choose bfloat16 or float32"
        )
    return cast


def pack_weights(
    state: Mapping[str, Tensor], parts: Sequence[str], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """What a native file stores: the weights of `parts` in eight bits, the others in `dtype`.

    Raises:
        TypeError, ValueError: see `round_weights` and `cast_tensor`.
    """
    packed = round_weights(state, parts)
    as_rounded = packed.keys() - state.keys()  # the scales
    return {
        name: tensor if name in as_rounded else cast_tensor(name, tensor, dtype)
        for name, tensor in packed.items()
    }


def round_weights(state: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, Tensor]:
    """Round the large weights of some parts of a model to eight bits.

    A floating-point tensor (n, ...) of at least 2 dimensions and 4096 elements becomes int8 of the
    same shape, -127 to 127, and NAME.scale (n,) float32 comes beside it: the largest magnitude of
    each channel / 127. A channel of zeros has the scale 0. The error is at most half a scale.

    Args:
        state: tensors by name; not changed.
        parts: how the names start, such as "text_decoder.". The matrix of the position code is
            never rounded.

    Returns:
        All tensors of `state`; those not rounded are the same objects.

    Raises:
        TypeError: `parts` is one text instead of several.
        ValueError: a part without a tensor to round, or weights that are not finite.
    """
    if isinstance(parts, str):
        raise TypeError(f"rounded: expected a list of parts, got the text {parts!r}; put it in []")
    large = [name for name, tensor in state.items() if _is_large(name, tensor)]
    for part in parts:
        if not any(name.startswith(part) for name in large):
            known = sorted({name.partition(".")[0] + "." for name in large})
            raise ValueError(
                f"rounded: expected the start of the name of a floating-point weight of at least "
                f"2 dimensions and {MIN_ROUNDED_ELEMENTS} elements, got {part!r}; parts with such "
                f"weights are {known}"
            )
    chosen = {name for name in large if name.startswith(tuple(parts))}
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in chosen:
            packed[name], packed[name + SCALE_SUFFIX] = _round_weight(name, tensor)
        else:
            packed[name] = tensor
    return packed


def restore_weights(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Turn every int8 tensor and its scale into float32 again; other tensors pass through.

    Args:
        tensors: by name, as `round_weights` returns them; not changed.
        where: the file, for messages.

    Returns:
        Tensors by name, without the scales.

    Raises:
        ValueError: lists every int8 tensor whose scale is missing, of another shape, not float32,
            or not finite and at least 0, and every scale without an int8 tensor.
    """
    rounded = {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    scales = {name for name in tensors if name.endswith(SCALE_SUFFIX)}
    problems = [_scale_problem(name, tensors) for name in sorted(rounded)]
    problems += [
        f"{name}: expected an int8 tensor {name.removesuffix(SCALE_SUFFIX)} that it scales, got "
        f"{_facts(tensors.get(name.removesuffix(SCALE_SUFFIX)))}"
        for name in sorted(scales)
        if name.removesuffix(SCALE_SUFFIX) not in rounded
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise ValueError(
            f"{where}: damaged weights in eight bits; {'; '.join(found)}. Download or convert the "
            f"file again"
        )
    return {
        name: _restore_weight(tensor, tensors[name + SCALE_SUFFIX]) if name in rounded else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }


def shared_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """The one dtype of all floating-point weights that are not rounded; None where they differ.

    Scales and the matrix of the position code, which are float32 in every file, do not count.
    """
    dtypes = {
        tensor.dtype
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and name != COORD_MATRIX_KEY
        and not name.endswith(SCALE_SUFFIX)
    }
    return dtypes.pop() if len(dtypes) == 1 else None


def _is_large(name: str, tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and tensor.ndim >= 2
        and tensor.numel() >= MIN_ROUNDED_ELEMENTS
        and name != COORD_MATRIX_KEY
    )


def _round_weight(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """An int8 tensor (n, ...) and its scale (n,) float32."""
    weight = tensor.detach().float().flatten(1)
    largest = weight.abs().amax(1)  # (n,)
    if not bool(largest.isfinite().all()):
        raise ValueError(f"{name}: expected finite weights to round, got NaN or infinity")
    scale = largest / _LARGEST
    step = torch.where(scale > 0, scale, 1.0)  # so that zeros stay zeros
    integers = (weight / step[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return integers.reshape(tensor.shape), scale


def _restore_weight(tensor: Tensor, scale: Tensor) -> Tensor:
    return tensor.float() * scale.reshape(len(scale), *[1] * (tensor.ndim - 1))


def _scale_problem(name: str, tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the scale of an int8 tensor, as text; empty where nothing is."""
    tensor, scale = tensors[name], tensors.get(name + SCALE_SUFFIX)
    if tensor.ndim < 2:
        return f"{name}: expected at least 2 dimensions, got {_facts(tensor)}"
    wanted = list(tensor.shape[:1])
    if scale is None or list(scale.shape) != wanted or scale.dtype != torch.float32:
        return (
            f"{name}{SCALE_SUFFIX}: expected {wanted} float32 for the int8 tensor {name}, got "
            f"{_facts(scale)}"
        )
    if not bool((scale.isfinite() & (scale >= 0)).all()):
        return (
            f"{name}{SCALE_SUFFIX}: expected finite numbers of at least 0, got values from "
            f"{scale.min().item():.4g} to {scale.max().item():.4g}"
        )
    return ""


def _facts(tensor: Tensor | None) -> str:
    """Shape and dtype, as text."""
    return "none" if tensor is None else f"{list(tensor.shape)} {str(tensor.dtype).split('.')[-1]}"
