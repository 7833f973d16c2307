"""Training states of two runs, compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def assert_equal_states(left: Any, right: Any, place: str = "state") -> None:
    """Bit for bit, through dicts and lists."""
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert list(left) == list(right), place
        for key in left:
            assert_equal_states(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal_states(a, b, f"{place}[{index}]")
    elif isinstance(left, Tensor):
        assert torch.equal(left, right), place
    else:
        assert left == right, place
