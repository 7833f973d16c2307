"""Image decoder against a plain one; routing; computing only the chosen mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.modeling import reference
from tests.tiny import randomize, tiny_config
from tokenize_anything.modeling.image_decoder import ImageDecoder, RegionOutputs, select_mask_index

CONFIG = tiny_config()
DIM = CONFIG.decoder_dim
IMAGES, PROMPTS, POINTS, SIDE = 2, 3, 5, 3
FIELDS = ("mask_logits", "iou_scores", "mask_tokens", "semantic_tokens", "semantic_embeddings")


def run(
    decoder: ImageDecoder,
    features: Tensor,
    grid: Tensor,
    points: Tensor,
    is_box: Tensor,
    *,
    all_slots: bool = True,
) -> RegionOutputs:
    """Prepare the images and decode."""
    return decoder(decoder.prepare(features, grid), points, is_box, all_slots=all_slots)


@pytest.fixture
def decoder() -> ImageDecoder:
    return randomize(ImageDecoder(CONFIG)).eval()


def make_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (B,C,h,w), grid encoding (C,h,w), points (B,P,N,C), is_box (B,P)."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((IMAGES, DIM, SIDE, SIDE), (DIM, SIDE, SIDE), (IMAGES, PROMPTS, POINTS, DIM))
    features, grid, points = (torch.randn(shape, generator=generator) for shape in shapes)
    return features, grid, points, torch.tensor([[True, False, False], [False, True, False]])


def test_decoder_equals_the_plain_one(decoder: ImageDecoder) -> None:
    features, grid, points, is_box = make_inputs()
    outputs = run(decoder, features, grid, points, is_box)
    assert len(outputs) == IMAGES * PROMPTS
    assert outputs.mask_logits.shape == (IMAGES * PROMPTS, 4, 4 * SIDE, 4 * SIDE)
    assert outputs.semantic_embeddings.shape == (IMAGES * PROMPTS, 4, CONFIG.semantic_dim)
    weights = reference.weights_of(decoder)
    for region in range(IMAGES * PROMPTS):
        image, prompt = divmod(region, PROMPTS)  # image-major
        expected = reference.image_decoder(
            features[image].double(),
            grid.double(),
            points[image, prompt].double(),
            weights,
            CONFIG.decoder_depth,
        )
        for name in FIELDS:
            actual = getattr(outputs, name)[region].double()
            torch.testing.assert_close(
                actual,
                expected[name],
                rtol=1e-4,
                atol=5e-5,
                msg=f"{name} differs",
            )


def test_computing_only_the_routed_slot_changes_nothing(decoder: ImageDecoder) -> None:
    inputs = make_inputs()
    every, routed = run(decoder, *inputs), run(decoder, *inputs, all_slots=False)
    assert routed.mask_logits.shape == (IMAGES * PROMPTS, 1, 4 * SIDE, 4 * SIDE)
    assert routed.semantic_embeddings.shape == (IMAGES * PROMPTS, 1, CONFIG.semantic_dim)
    assert torch.equal(routed.mask_index, every.mask_index)
    for name in FIELDS:
        expected, actual = getattr(every, name), getattr(routed, name)
        torch.testing.assert_close(
            routed.select(actual), every.select(expected), rtol=1e-5, atol=1e-5, msg=name
        )
    for name in ("iou_scores", "mask_tokens", "semantic_tokens"):
        torch.testing.assert_close(getattr(routed, name), getattr(every, name))


@pytest.mark.parametrize("all_slots", [True, False])
def test_without_masks_all_else_is_the_same(decoder: ImageDecoder, all_slots: bool) -> None:
    features, grid, points, is_box = make_inputs()
    context = decoder.prepare(features, grid)
    known = decoder(context, points, is_box, all_slots=all_slots)
    found = decoder(context, points, is_box, all_slots=all_slots, with_masks=False)
    assert found.mask_logits.shape == (IMAGES * PROMPTS, 0, 4 * SIDE, 4 * SIDE)
    assert found.mask_logits.dtype == known.mask_logits.dtype
    for name in (*FIELDS, "mask_index"):
        if name != "mask_logits":
            assert torch.equal(getattr(found, name), getattr(known, name)), name


def test_mask_index_follows_the_rule(decoder: ImageDecoder) -> None:
    *_, is_box = inputs = make_inputs()
    outputs = run(decoder, *inputs)
    assert torch.equal(outputs.mask_index, select_mask_index(outputs.iou_scores, is_box.flatten()))
    assert (outputs.mask_index == 0).tolist() == is_box.flatten().tolist()


@pytest.mark.parametrize(
    ("iou_scores", "is_box", "expected"),
    [
        ([0.1, 0.2, 0.9, 0.3], True, 0),  # a box: slot 0, however bad
        ([0.9, 0.2, 0.1, 0.3], True, 0),
        ([0.9, 0.2, 0.1, 0.3], False, 3),  # a click: never slot 0, however good
        ([0.9, 0.3, 0.1, 0.2], False, 1),
        ([0.9, 0.1, 0.3, 0.2], False, 2),
        ([5000.0, 0.0, -1.0, -2.0], False, 1),  # no finite bonus decides
        ([-5000.0, 0.0, 1.0, 2.0], True, 0),
    ],
)
def test_routing_rule(iou_scores: list[float], is_box: bool, expected: int) -> None:
    index = select_mask_index(torch.tensor([iou_scores]), torch.tensor([is_box]))
    assert index.dtype == torch.int64
    assert index.tolist() == [expected]


def test_routing_keeps_leading_axes() -> None:
    scores = torch.rand(2, 3, 4)
    is_box = torch.tensor([[True, False, True], [False, False, True]])
    index = select_mask_index(scores, is_box)
    for image in range(2):
        for prompt in range(3):
            single = select_mask_index(scores[image, prompt], is_box[image, prompt])
            assert index[image, prompt] == single


def test_select_picks_the_chosen_slot_of_each_region() -> None:
    values = torch.arange(3 * 4 * 2).reshape(3, 4, 2)
    outputs = RegionOutputs(
        mask_logits=values,
        iou_scores=torch.zeros(3, 4),
        mask_tokens=values,
        semantic_tokens=values,
        semantic_embeddings=values,
        mask_index=torch.tensor([2, 0, 3]),
    )
    expected = torch.stack([values[0, 2], values[1, 0], values[2, 3]])
    assert torch.equal(outputs.select(values), expected)
    assert torch.equal(outputs.select(values[:, 1:2]), values[:, 1])


def test_concatenate_joins_regions_in_order(decoder: ImageDecoder) -> None:
    features, grid, points, is_box = make_inputs()
    context = decoder.prepare(features, grid)
    parts = [decoder(context, points[:, i : i + 1], is_box[:, i : i + 1]) for i in range(2)]
    joined = RegionOutputs.concatenate(parts)
    assert len(joined) == 2 * IMAGES
    for name in (*FIELDS, "mask_index"):
        first, second = (getattr(part, name) for part in parts)
        assert torch.equal(getattr(joined, name), torch.cat([first, second])), name


def test_no_prompts(decoder: ImageDecoder) -> None:
    features, grid, points, is_box = make_inputs()
    for all_slots, slots in ((True, 4), (False, 1)):
        outputs = run(decoder, features, grid, points[:, :0], is_box[:, :0], all_slots=all_slots)
        assert len(outputs) == 0
        assert outputs.mask_logits.shape == (0, slots, 4 * SIDE, 4 * SIDE)
        assert outputs.semantic_embeddings.shape == (0, slots, CONFIG.semantic_dim)
        assert outputs.mask_index.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_iou_scores_are_float32_in_low_precision(dtype: torch.dtype) -> None:
    decoder = randomize(ImageDecoder(CONFIG)).eval()
    features, grid, points, is_box = make_inputs()
    exact = run(decoder, features, grid, points, is_box)
    decoder.to(dtype)
    outputs = run(decoder, features.to(dtype), grid.to(dtype), points.to(dtype), is_box)
    assert outputs.iou_scores.dtype == torch.float32
    for name in FIELDS:
        value, wanted = getattr(outputs, name), getattr(exact, name)
        if name != "iou_scores":
            assert value.dtype == dtype
        scale = wanted.abs().max()
        assert (value.float() - wanted).abs().max() < 0.08 * scale, name
