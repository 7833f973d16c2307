"""A tiny model with fixed weights still predicts what tools/make_golden.py once wrote down."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "make_golden.py"
GOLDEN = Path(__file__).resolve().parent / "golden" / "tiny_predictions.safetensors"


@pytest.fixture(scope="module")
def found() -> dict[str, Tensor]:
    values: dict[str, Tensor] = runpy.run_path(str(SCRIPT))["predict_golden"]()
    return values


@pytest.mark.parametrize("name", sorted(load_file(GOLDEN)))
def test_numbers_have_not_changed(found: dict[str, Tensor], name: str) -> None:
    wanted = load_file(GOLDEN)[name]
    if wanted.dtype == torch.bool:
        assert (found[name] != wanted).float().mean() <= 1e-3
        return
    scale = wanted.double().abs().max().item() if wanted.is_floating_point() else 0.0
    torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-4 * scale)


def test_the_file_is_complete_and_small(found: dict[str, Tensor]) -> None:
    assert found.keys() == load_file(GOLDEN).keys()
    assert GOLDEN.stat().st_size <= 200_000
    with safe_open(GOLDEN, framework="pt") as file:
        assert file.metadata().keys() == {"script", "torch"}
