"""Fourier position codes: formula, grid order, exactness under dtype changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tokenize_anything.modeling.position_encoding import PositionEncoding

DIM = 14


@pytest.fixture
def encoding() -> PositionEncoding:
    torch.manual_seed(0)
    return PositionEncoding(DIM)


def plain_code(matrix: Tensor, x: float, y: float) -> list[float]:
    """Sines, then cosines, of 2*pi*(2x-1, 2y-1) times the matrix."""
    angles = [
        2 * math.pi * ((2 * x - 1) * float(column[0]) + (2 * y - 1) * float(column[1]))
        for column in matrix.T
    ]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def test_formula(encoding: PositionEncoding) -> None:
    positions = torch.rand(3, 5, 2)
    codes = encoding(positions)
    assert codes.shape == (3, 5, DIM)
    for row in range(3):
        for column in range(5):
            x, y = positions[row, column].tolist()
            expected = torch.tensor(plain_code(encoding.coord_matrix, x, y))
            torch.testing.assert_close(codes[row, column], expected, rtol=0, atol=1e-5)


def test_the_centre_has_sine_zero_and_cosine_one(encoding: PositionEncoding) -> None:
    code = encoding(torch.tensor([0.5, 0.5]))
    assert torch.equal(code, torch.tensor([0.0] * (DIM // 2) + [1.0] * (DIM // 2)))


def test_grid_holds_the_codes_of_its_cell_centres(encoding: PositionEncoding) -> None:
    height, width = 3, 5
    grid = encoding.encode_grid(height, width)
    assert grid.shape == (DIM, height, width)
    for row in range(height):
        for column in range(width):
            expected = plain_code(
                encoding.coord_matrix, (column + 0.5) / width, (row + 0.5) / height
            )
            torch.testing.assert_close(
                grid[:, row, column], torch.tensor(expected), rtol=0, atol=1e-5
            )


def test_grids_of_equal_area_differ(encoding: PositionEncoding) -> None:
    wide = encoding.encode_grid(2, 6).flatten(1)
    tall = encoding.encode_grid(6, 2).flatten(1)
    square = encoding.encode_grid(3, 4).flatten(1)
    assert not torch.allclose(wide, tall)
    assert not torch.allclose(wide, square)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_matrix_stays_exact_whatever_the_model_becomes(
    encoding: PositionEncoding, dtype: torch.dtype
) -> None:
    exact = encoding.coord_matrix.clone()
    model = nn.Sequential(nn.Linear(2, 3), encoding)
    model.to(dtype)
    assert model[0].weight.dtype == dtype
    assert torch.equal(encoding.coord_matrix, exact)
    model.float()
    assert encoding.coord_matrix.dtype == torch.float32
    assert torch.equal(encoding.coord_matrix, exact)
    assert torch.equal(model.state_dict()["1.coord_matrix"], exact)


def test_the_matrix_survives_half_and_copies(encoding: PositionEncoding) -> None:
    exact = encoding.coord_matrix.clone()
    assert torch.equal(copy.deepcopy(encoding).half().bfloat16().coord_matrix, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_codes_are_float32_for_positions_of_any_dtype(
    encoding: PositionEncoding, dtype: torch.dtype
) -> None:
    positions = torch.tensor([[0.25, 0.75]], dtype=dtype)  # exact in each dtype
    codes = encoding.to(dtype)(positions)
    assert codes.dtype == torch.float32
    assert torch.equal(codes, encoding(positions.float()))


def test_the_matrix_moves_with_the_model_and_is_never_trained(encoding: PositionEncoding) -> None:
    assert list(encoding.parameters()) == []
    moved = encoding.to("meta")
    assert moved.coord_matrix.device.type == "meta"
    both = PositionEncoding(DIM).to(device="meta", dtype=torch.bfloat16)
    assert (both.coord_matrix.device.type, both.coord_matrix.dtype) == ("meta", torch.float32)


def test_autocast_does_not_round_the_codes(encoding: PositionEncoding) -> None:
    positions = torch.rand(3, 2)
    exact = encoding(positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoding(positions), exact)
