"""Points to tokens: pixel convention, labels, padding, borders."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import randomize
from tokenize_anything.modeling.prompt_encoder import PromptEncoder

DIM, SIZE = 14, 37
LABELS = (0, 1, 2, 3, 4)


@pytest.fixture
def encoder() -> PromptEncoder:
    torch.manual_seed(0)
    return randomize(PromptEncoder(DIM, SIZE))


def test_a_point_is_its_position_code_plus_its_label(encoder: PromptEncoder) -> None:
    coords_xy = SIZE * torch.rand(3, 5, 2)
    labels = torch.randint(4, (3, 5))
    embeddings = encoder(coords_xy, labels)
    assert embeddings.shape == (3, 5, DIM)
    for row in range(3):
        for column in range(5):
            fraction = (coords_xy[row, column] + 0.5) / SIZE
            expected = (
                encoder.position_encoding(fraction)
                + encoder.label_embedding.weight[labels[row, column]]
            )
            torch.testing.assert_close(embeddings[row, column], expected)


def test_the_centre_pixel_has_sine_zero_and_cosine_one(encoder: PromptEncoder) -> None:
    centre = torch.full((1, 1, 2), (SIZE - 1) / 2)
    for label in LABELS[:4]:
        code = encoder(centre, torch.tensor([[label]])) - encoder.label_embedding.weight[label]
        expected = torch.tensor([0.0] * (DIM // 2) + [1.0] * (DIM // 2))
        torch.testing.assert_close(code[0, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("xy", [(0.0, 0.0), (SIZE / 3, 5.0), (-1e9, 1e9), (float("nan"), 1.0)])
def test_a_padding_point_is_its_label_wherever_it_lies(
    encoder: PromptEncoder, xy: tuple[float, float]
) -> None:
    embedding = encoder(torch.tensor([[xy]]), torch.tensor([[4]]))
    assert torch.equal(embedding[0, 0], encoder.label_embedding.weight[4])


@pytest.mark.parametrize(
    ("outside", "border"),
    [
        ((-20.0, 11.0), (-0.5, 11.0)),
        ((SIZE + 20.0, 11.0), (SIZE - 0.5, 11.0)),
        ((11.0, -20.0), (11.0, -0.5)),
        ((11.0, SIZE + 20.0), (11.0, SIZE - 0.5)),
        ((-7.0, SIZE + 7.0), (-0.5, SIZE - 0.5)),
    ],
)
def test_positions_outside_count_as_the_nearest_border(
    encoder: PromptEncoder, outside: tuple[float, float], border: tuple[float, float]
) -> None:
    labels = torch.tensor([[1]])
    at_border = encoder(torch.tensor([[border]]), labels)
    assert torch.equal(encoder(torch.tensor([[outside]]), labels), at_border)


def test_integer_coordinates_and_small_labels_are_accepted(encoder: PromptEncoder) -> None:
    coords_xy, labels = torch.randint(SIZE, (3, 5, 2)), torch.randint(5, (3, 5))
    expected = encoder(coords_xy.float(), labels)
    assert torch.equal(encoder(coords_xy, labels.to(torch.int8)), expected)
    assert torch.equal(encoder(coords_xy.short(), labels.int()), expected)


def test_leading_axes_and_empty_prompts(encoder: PromptEncoder) -> None:
    coords_xy, labels = SIZE * torch.rand(2, 3, 5, 2), torch.randint(5, (2, 3, 5))
    embeddings = encoder(coords_xy, labels)
    assert torch.equal(embeddings[1], encoder(coords_xy[1], labels[1]))
    assert encoder(coords_xy[:, :0], labels[:, :0]).shape == (2, 0, 5, DIM)


def test_inputs_are_not_modified(encoder: PromptEncoder) -> None:
    coords_xy, labels = torch.tensor([[[-9.0, 99.0]]]), torch.tensor([[4]])
    encoder(coords_xy, labels)
    assert coords_xy.tolist() == [[[-9.0, 99.0]]]
    assert labels.tolist() == [[4]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_are_computed_in_float32_and_cast_once(
    encoder: PromptEncoder, dtype: torch.dtype
) -> None:
    coords_xy, labels = SIZE * torch.rand(3, 5, 2), torch.ones(3, 5, dtype=torch.long)
    codes = encoder.position_encoding((coords_xy + 0.5) / SIZE)
    grid = encoder.encode_grid(3, 5)
    encoder.to(dtype)
    expected = codes.to(dtype) + encoder.label_embedding.weight[1]
    assert torch.equal(encoder(coords_xy, labels), expected)
    assert torch.equal(encoder.encode_grid(3, 5), grid.to(dtype))


def test_a_grid_cell_has_the_code_of_the_pixel_at_its_centre(encoder: PromptEncoder) -> None:
    height, width = 3, 5
    grid = encoder.encode_grid(height, width)
    for row in range(height):
        for column in range(width):
            pixel = torch.tensor([(column + 0.5) / width, (row + 0.5) / height]) * SIZE - 0.5
            point = encoder(pixel[None, None], torch.tensor([[1]]))[0, 0]
            torch.testing.assert_close(
                grid[:, row, column],
                point - encoder.label_embedding.weight[1],
                rtol=0,
                atol=1e-5,
            )
