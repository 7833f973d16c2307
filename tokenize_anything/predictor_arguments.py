"""What the calls of the predictor accept besides photos and prompts, checked at the border."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenize_anything.geometry import to_numpy
from tokenize_anything.modeling import TAP
from tokenize_anything.text_generation import GenerationConfig


def check_model(model: Any) -> None:
    """Check that this is a TAP in evaluation mode.

    Raises:
        TypeError: not a TAP.
        ValueError: in training mode.
    """
    if not isinstance(model, TAP):
        raise TypeError(
            f"model: expected a TAP, got {type(model).__name__}; TAPPredictor.from_pretrained "
            "takes names and paths"
        )
    if model.training:
        raise ValueError("model: expected evaluation mode, got training mode; call model.eval()")


def check_generation(generation: Any) -> None:
    """Check that this is None or a GenerationConfig.

    Raises:
        TypeError: something else.
    """
    if generation is not None and not isinstance(generation, GenerationConfig):
        raise TypeError(
            f"generation: expected a GenerationConfig, got {type(generation).__name__}; write "
            "GenerationConfig(num_beams=4), for instance"
        )


def check_zoom(zoom: Any) -> None:
    """Check that this is None or a number from 0 to 1.

    Raises:
        TypeError: something else.
        ValueError: another number.
    """
    if zoom is None:
        return
    if isinstance(zoom, bool) or not isinstance(zoom, int | float):
        raise TypeError(f"zoom: expected None or a number, got {zoom!r}; 0 never looks twice")
    if not 0 <= zoom <= 1:
        raise ValueError(f"zoom: expected 0 to 1, the share of a view a region fills, got {zoom}")


def as_rows(name: str, values: Any, width: int) -> Tensor:
    """Check (R,width) numbers of any kind; returns a float32 tensor.

    Raises:
        TypeError: not numbers.
        ValueError: another shape.
    """
    if not isinstance(values, Tensor):
        array = to_numpy(name, values)
        if array.size and array.dtype.kind not in "iuf":
            raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
        array = array.reshape(0, width) if array.shape == (0,) else array
        values = torch.from_numpy(array.astype(np.float32))  # a copy: the given may be read-only
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(
            f"{name}: expected shape (R,{width}), got {tuple(values.shape)}; choose one of the "
            "four slots of each region first, for instance with RegionOutputs.select"
        )
    return values.float()
