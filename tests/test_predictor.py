"""The main call: the same answers alone, together, in chunks, in threads and the long way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import tiny_config
from tests.tiny_predictor import (
    answer_plainly,
    assert_same,
    make_mixed_prompts,
    make_photo,
    tiny_predictor,
)
from tokenize_anything import (
    EncodedImage,
    PointPrompts,
    RegionPredictions,
    TAPPredictor,
)

SIZES_HW = [(41, 67), (53, 29), (23, 23)]
HEIGHT, WIDTH = SIZES_HW[0]
CONFIG = tiny_config()


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return tiny_predictor()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def prompts() -> PointPrompts:
    return make_mixed_prompts(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def encoded(predictor: TAPPredictor, photo: np.ndarray) -> EncodedImage:
    return predictor.encode_images(photo)


@pytest.fixture(scope="module")
def regions(predictor: TAPPredictor, photo: np.ndarray, prompts: PointPrompts) -> RegionPredictions:
    found: RegionPredictions = predictor.predict_mask_concept_caption(
        photo, prompts=prompts, top_k=3
    )
    return found


@pytest.fixture
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_chunk(predictor: TAPPredictor, region_chunk: int) -> TAPPredictor:
    return TAPPredictor(
        predictor.model,
        concepts=predictor.concepts,
        text_tokenizer=predictor.text_tokenizer,
        region_chunk=region_chunk,
    )


# --- what comes out -----------------------------------------------------------------------------


def test_shapes_and_kinds(regions: RegionPredictions) -> None:
    assert type(regions) is RegionPredictions
    assert len(regions) == 7
    assert (regions.masks.shape, regions.masks.dtype) == ((7, HEIGHT, WIDTH), np.bool_)
    for name, shape in (
        ("boxes_xyxy", (7, 4)),
        ("iou_scores", (7,)),
        ("concept_scores", (7, 3)),
        ("caption_scores", (7,)),
        ("semantic_tokens", (7, CONFIG.decoder_dim)),
        ("semantic_embeddings", (7, CONFIG.semantic_dim)),
        ("mask_tokens", (7, CONFIG.decoder_dim)),
    ):
        values = getattr(regions, name)
        assert (values.shape, values.dtype) == (shape, np.float32), name
    assert regions.mask_index.dtype == np.int64
    assert [len(names) for names in regions.concepts] == [3] * 7
    assert all(isinstance(caption, str) for caption in regions.captions)
    assert len(set(regions.captions)) > 1  # or the comparisons below would say little
    assert 0.02 < regions.masks.mean() < 0.98


def test_every_region_is_what_the_long_way_gives(
    predictor: TAPPredictor,
    photo: np.ndarray,
    prompts: PointPrompts,
    regions: RegionPredictions,
) -> None:
    """Also: what a region gets does not depend on the prompts beside it."""
    wanted = []
    for row in range(len(prompts)):
        count = prompts.num_points[row]  # without what only fills the array
        prompt = PointPrompts(prompts.coords_xy[[row], :count], prompts.labels[[row], :count])
        wanted.append(answer_plainly(predictor, photo, prompt, top_k=3))
    assert_same(regions, RegionPredictions.concatenate(wanted))
    assert regions.mask_index[[2, 4, 5]].tolist() == [0, 0, 0]
    assert (regions.mask_index[[0, 1, 3, 6]] > 0).all()


def test_padding_that_is_written_counts(predictor: TAPPredictor, photo: np.ndarray) -> None:
    """It is a token that the model was trained with; only what `pad_to` appends is neutral."""
    click = PointPrompts.from_points([[7, 9]])
    wanted = predictor.predict_mask_concept_caption(photo, prompts=click)
    neutral = predictor.predict_mask_concept_caption(photo, prompts=click.pad_to(5))
    assert_same(neutral, wanted)
    written = PointPrompts([[[7, 9], [0, 0], [0, 0]]], [[1, 4, 4]])
    different = predictor.predict_mask_concept_caption(photo, prompts=written)
    assert np.abs(different.semantic_tokens - wanted.semantic_tokens).max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_chunks_of_any_size(
    predictor: TAPPredictor,
    encoded: EncodedImage,
    prompts: PointPrompts,
    regions: RegionPredictions,
    chunk: int,
) -> None:
    in_chunks = with_chunk(predictor, chunk)
    found = in_chunks.predict_mask_concept_caption(encoded, prompts=prompts, top_k=3)
    assert_same(found, regions)
    outputs = in_chunks.decode_regions(encoded, prompts)
    wanted = predictor.decode_regions(encoded, prompts)
    for name, values in vars(outputs).items():
        torch.testing.assert_close(values, getattr(wanted, name), rtol=0, atol=2e-5)


def test_one_region_after_the_other(
    predictor: TAPPredictor,
    encoded: EncodedImage,
    prompts: PointPrompts,
    regions: RegionPredictions,
) -> None:
    single = [
        predictor.predict_mask_concept_caption(encoded, prompts=prompt, top_k=3)
        for prompt in prompts
    ]
    assert_same(RegionPredictions.concatenate(single), regions)


# --- several images -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple])
def test_list_in_list_out(predictor: TAPPredictor, regions: RegionPredictions, kind: Any) -> None:
    """Images of different sizes, with different numbers of prompts of different lengths."""
    photos = [make_photo(*size_hw, seed=seed) for seed, size_hw in enumerate(SIZES_HW)]
    mixed = [make_mixed_prompts(*size_hw) for size_hw in SIZES_HW]
    asked = [mixed[0], mixed[1][[2, 0]], PointPrompts.from_points([])]
    many = predictor.predict_mask_concept_caption(kind(photos), prompts=kind(asked), top_k=3)
    assert type(many) is list
    assert [len(record) for record in many] == [7, 2, 0]
    assert [record.image_size_hw for record in many] == SIZES_HW
    assert_same(many[0], regions)
    alone = predictor.predict_mask_concept_caption(photos[1], prompts=asked[1], top_k=3)
    assert_same(many[1], alone)


def test_lists_of_one_and_of_none(predictor: TAPPredictor, photo: np.ndarray) -> None:
    (only,) = predictor.predict_mask_concept_caption([photo], points=[[[3, 4]]])
    assert_same(only, predictor.predict_mask_concept_caption(photo, points=[[3, 4]]))
    assert predictor.predict_mask_concept_caption([], points=[]) == []
    assert predictor.predict_mask_concept_caption([]) == []
    assert predictor.encode_images([]) == []


def test_every_argument_as_a_list(predictor: TAPPredictor) -> None:
    photos = [make_photo(*size_hw) for size_hw in SIZES_HW[:2]]
    mask = np.zeros(SIZES_HW[1])
    mask[3:9, 4:20] = 0.5
    given: dict[str, Any] = {
        "points": [np.array([[3, 4], [5, 6]]), None],
        "labels": [[1, 0], None],
        "boxes": [None, torch.tensor([[2, 3, 20, 30]])],
        "masks": [None, mask],
        "prompts": [PointPrompts.from_points([[9, 9]]), None],
    }
    many = predictor.predict_mask_concept_caption(photos, **given)
    assert [len(record) for record in many] == [3, 2]
    for index in (0, 1):
        own = {name: values[index] for name, values in given.items()}
        assert_same(many[index], predictor.predict_mask_concept_caption(photos[index], **own))


def test_images_do_not_see_each_other(predictor: TAPPredictor) -> None:
    first, *others = (make_photo(HEIGHT, WIDTH, seed=seed) for seed in (1, 2, 3))
    found = [
        predictor.predict_mask_concept_caption([other, first], points=[[[3, 4]], [[5, 6]]])[1]
        for other in others
    ]
    np.testing.assert_array_equal(found[0].semantic_tokens, found[1].semantic_tokens)
    np.testing.assert_array_equal(found[0].masks, found[1].masks)


@pytest.mark.usefixtures("_one_torch_thread")
def test_threads_share_a_predictor(predictor: TAPPredictor) -> None:
    sizes = SIZES_HW * 3
    photos = [make_photo(*size_hw, seed=seed) for seed, size_hw in enumerate(sizes)]

    def answer(index: int) -> RegionPredictions:
        found: RegionPredictions = predictor.predict_mask_concept_caption(
            photos[index], prompts=make_mixed_prompts(*sizes[index])[index % 3 :], top_k=2
        )
        return found

    wanted = [answer(index) for index in range(len(photos))]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, range(len(photos))))
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)


# --- kinds of prompts ---------------------------------------------------------------------------


def test_kinds_come_in_a_fixed_order(
    predictor: TAPPredictor, photo: np.ndarray, encoded: EncodedImage
) -> None:
    masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    masks[0, 3:20, 5:9] = 1
    masks[1, 30:, 20:50] = 255
    given: dict[str, Any] = {
        "prompts": make_mixed_prompts(HEIGHT, WIDTH)[[4, 6]],
        "masks": masks,
        "boxes": [[2, 3, 30, 40], [20, 1, 66, 13]],
        "points": [[[5, 6], [7, 8]], [[30, 20], [11, 40]]],
    }
    together = predictor.predict_mask_concept_caption(photo, labels=[[1, 0], [1, 1]], **given)
    given["points"] = PointPrompts.from_points(given["points"], [[1, 0], [1, 1]])
    single = [
        predictor.predict_mask_concept_caption(encoded, prompts=given["points"]),
        predictor.predict_mask_concept_caption(encoded, boxes=given["boxes"]),
        predictor.predict_mask_concept_caption(encoded, masks=masks[0]),
        predictor.predict_mask_concept_caption(encoded, masks=masks[1]),
        predictor.predict_mask_concept_caption(encoded, prompts=given["prompts"]),
    ]
    assert_same(together, RegionPredictions.concatenate(single))


def test_labels_matter_and_are_foreground_by_default(
    predictor: TAPPredictor, encoded: EncodedImage
) -> None:
    points = [[5, 6], [30, 20]]
    usual = predictor.predict_mask_concept_caption(encoded, points=points)
    same = predictor.predict_mask_concept_caption(encoded, points=points, labels=[1, 1])
    other = predictor.predict_mask_concept_caption(encoded, points=points, labels=[1, 0])
    assert_same(same, usual)
    assert_same(other[0], usual[0])
    assert np.abs(other.semantic_tokens - usual.semantic_tokens)[1].max() > 1e-3


def test_clicks_refine_a_box(predictor: TAPPredictor, encoded: EncodedImage) -> None:
    box, click = [[5, 6, 50, 35]], [[[20, 20]]]
    plain = predictor.predict_mask_concept_caption(encoded, boxes=box)
    refined = predictor.predict_mask_concept_caption(
        encoded, prompts=PointPrompts.from_boxes(box, click, [[0]])
    )
    written = PointPrompts([[[5, 6], [50, 35], [20, 20]]], [[2, 3, 0]])
    assert_same(predictor.predict_mask_concept_caption(encoded, prompts=written), refined)
    assert np.abs(refined.semantic_tokens - plain.semantic_tokens).max() > 1e-3


@pytest.mark.parametrize(
    "form",
    [
        lambda values: values,
        lambda values: np.array(values, np.float64),
        lambda values: np.array(values, np.int16),
        torch.tensor,
        lambda values: torch.tensor(values, dtype=torch.bfloat16),
        lambda values: torch.tensor(values, dtype=torch.float32, requires_grad=True),
        lambda values: [torch.tensor(row) for row in values],
        lambda values: tuple(tuple(row) for row in values),
    ],
)
def test_numbers_in_any_form(
    predictor: TAPPredictor, encoded: EncodedImage, regions: RegionPredictions, form: Any
) -> None:
    points, boxes = [[33, 20], [4, 40]], [[2, 3, 30, 40]]
    wanted = predictor.predict_mask_concept_caption(
        encoded, prompts=PointPrompts.from_points(points), boxes=None
    )
    found = predictor.predict_mask_concept_caption(encoded, points=form(points), boxes=form(boxes))
    assert_same(found[:2], wanted)
    assert found.mask_index[2] == 0
