"""The four public steps, the options of the main call, and what it does with pixels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_config
from tests.tiny_predictor import (
    NAMES,
    assert_same,
    make_mixed_prompts,
    make_photo,
    tiny_predictor,
)
from tokenize_anything import (
    EncodedImage,
    GenerationConfig,
    PointPrompts,
    RegionPredictions,
    TAPPredictor,
)
from tokenize_anything.image_transform import restore_masks

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


# --- steps --------------------------------------------------------------------------------------


def test_an_encoded_image_is_a_value(
    predictor: TAPPredictor,
    photo: np.ndarray,
    encoded: EncodedImage,
    prompts: PointPrompts,
    regions: RegionPredictions,
) -> None:
    before = encoded.features.clone()
    for _ in range(2):
        again = predictor.predict_mask_concept_caption(encoded, prompts=prompts, top_k=3)
        assert_same(again, regions)
    many = predictor.predict_mask_concept_caption([encoded, photo], prompts=[prompts] * 2, top_k=3)
    assert_same(many[0], many[1])
    assert torch.equal(encoded.features, before)
    assert encoded.original_hw == (HEIGHT, WIDTH)
    assert encoded.features.shape == (CONFIG.decoder_dim, CONFIG.grid_size, CONFIG.grid_size)
    assert_same(
        predictor.predict_mask_concept_caption(copy.deepcopy(encoded), prompts=prompts, top_k=3),
        regions,
    )


def test_the_four_steps_give_what_the_main_call_gives(
    predictor: TAPPredictor, photo: np.ndarray, prompts: PointPrompts, regions: RegionPredictions
) -> None:
    (encoded,) = predictor.encode_images([photo])
    outputs = predictor.decode_regions(encoded, prompts)
    side = 4 * CONFIG.grid_size
    assert outputs.mask_logits.shape == (7, 4, side, side)
    tokens, embeddings = (
        outputs.select(values) for values in (outputs.semantic_tokens, outputs.semantic_embeddings)
    )
    names, scores = predictor.describe_concepts(embeddings, top_k=3)
    captions, caption_scores = predictor.write_captions(tokens)
    composed = RegionPredictions(
        masks=restore_masks(outputs.select(outputs.mask_logits), encoded.frame),
        iou_scores=outputs.select(outputs.iou_scores).numpy(),
        concepts=names,
        concept_scores=scores,
        captions=captions,  # type: ignore[arg-type]
        caption_scores=caption_scores,
        semantic_tokens=tokens.numpy(),
        semantic_embeddings=embeddings.numpy(),
        mask_tokens=outputs.select(outputs.mask_tokens).numpy(),
        mask_index=outputs.mask_index.numpy(),
    )
    assert_same(composed, regions)


def test_only_the_routed_slot(
    predictor: TAPPredictor, encoded: EncodedImage, prompts: PointPrompts
) -> None:
    every = predictor.decode_regions(encoded, prompts)
    routed = predictor.decode_regions(encoded, prompts, all_slots=False)
    assert routed.mask_logits.shape[:2] == (7, 1)
    torch.testing.assert_close(
        routed.select(routed.mask_logits), every.select(every.mask_logits), rtol=0, atol=2e-5
    )
    torch.testing.assert_close(routed.iou_scores, every.iou_scores, rtol=0, atol=2e-5)


def test_words_from_the_vectors_of_a_record(
    predictor: TAPPredictor, regions: RegionPredictions, recwarn: pytest.WarningsRecorder
) -> None:
    """Arrays of a record are read-only; lists and tensors will do too."""
    names, scores = predictor.describe_concepts(regions.semantic_embeddings, top_k=3)
    assert names == regions.concepts
    np.testing.assert_allclose(scores, regions.concept_scores, atol=1e-6)
    captions, _ = predictor.write_captions(regions.semantic_tokens.tolist())
    assert captions == regions.captions
    assert predictor.write_captions(torch.tensor(regions.semantic_tokens))[0] == captions
    assert not recwarn.list


def test_no_region_at_any_step(predictor: TAPPredictor, encoded: EncodedImage) -> None:
    none = PointPrompts.from_points([])
    for all_slots, num_slots in ((True, 4), (False, 1)):
        outputs = predictor.decode_regions(encoded, none, all_slots=all_slots)
        some = predictor.decode_regions(
            encoded, PointPrompts.from_points([[3, 4]]), all_slots=all_slots
        )
        assert len(outputs) == 0
        for name, values in vars(outputs).items():
            other = getattr(some, name)
            assert (values.shape[1:], values.dtype) == (other.shape[1:], other.dtype), name
        assert outputs.mask_logits.shape[:2] == (0, num_slots)
    names, scores = predictor.describe_concepts(np.zeros(0), top_k=2)
    assert (names, scores.shape) == ([], (0, 2))
    captions, caption_scores = predictor.write_captions(np.zeros((0, CONFIG.decoder_dim)))
    assert (captions, caption_scores.shape) == ([], (0,))


@pytest.mark.parametrize(
    "given",
    [
        {"points": []},
        {"boxes": np.zeros((0, 4))},
        {"masks": np.zeros((0, HEIGHT, WIDTH))},
        {"masks": []},
        {"prompts": PointPrompts.from_points(np.zeros((0, 3, 2)))},
        {"points": [], "boxes": []},
    ],
)
def test_empty_prompts_give_an_empty_record(
    predictor: TAPPredictor, photo: np.ndarray, given: dict[str, Any]
) -> None:
    found = predictor.predict_mask_concept_caption(photo, top_k=2, **given)
    assert len(found) == 0
    assert found.masks.shape == (0, HEIGHT, WIDTH)
    assert found.concept_scores.shape == (0, 2)
    assert found.semantic_tokens.shape == (0, CONFIG.decoder_dim)
    assert found.semantic_embeddings.shape == (0, CONFIG.semantic_dim)
    assert found.boxes_xyxy.shape == (0, 4)
    assert (found.concepts, found.captions) == ([], [])


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (4, 4), (np.int32(2), 2), (99, len(NAMES))])
def test_top_k(predictor: TAPPredictor, encoded: EncodedImage, top_k: Any, count: int) -> None:
    found = predictor.predict_mask_concept_caption(encoded, points=[[3, 4]], top_k=top_k)
    assert found.concept_scores.shape == (1, count)
    assert (np.diff(found.concept_scores) <= 0).all()
    assert len(set(found.concepts[0])) == count
    if count == len(NAMES):
        assert found.concept_scores.sum() == pytest.approx(1.0, abs=1e-6)


def test_captions_can_be_left_out(
    predictor: TAPPredictor, encoded: EncodedImage, prompts: PointPrompts
) -> None:
    found = predictor.predict_mask_concept_caption(encoded, prompts=prompts, captions=False)
    assert found.captions == [None] * 7
    assert found.caption_scores.tolist() == [0.0] * 7
    assert found.concepts[0][0] in NAMES


def test_captions_can_be_searched_and_sampled(
    predictor: TAPPredictor, encoded: EncodedImage, regions: RegionPredictions
) -> None:
    prompts = make_mixed_prompts(HEIGHT, WIDTH)
    for generation in (
        GenerationConfig(num_beams=3),
        GenerationConfig(temperature=3.0, seed=7),
        GenerationConfig(max_new_tokens=2),
    ):
        found = predictor.predict_mask_concept_caption(
            encoded, prompts=prompts, generation=generation
        )
        texts, scores = predictor.write_captions(found.semantic_tokens, generation=generation)
        assert found.captions == texts
        np.testing.assert_array_equal(found.caption_scores, scores)
        assert texts != regions.captions


# --- pixels -------------------------------------------------------------------------------------


def test_inputs_stay_as_they_are(predictor: TAPPredictor) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:9, 5:30] = 200
    given: dict[str, Any] = {
        "images": make_photo(HEIGHT, WIDTH),
        "points": np.array([[3.0, 4.0]]),
        "labels": np.array([0]),
        "boxes": torch.tensor([[-3.0, 2.0, 99.0, 30.0]]),
        "masks": mask,
        "prompts": PointPrompts.from_points([[1, 2]]),
    }
    before = copy.deepcopy(given)
    predictor.predict_mask_concept_caption(**given)
    for name in ("images", "points", "labels", "boxes", "masks"):
        assert (np.asarray(given[name]) == np.asarray(before[name])).all(), name
        assert given[name].dtype == before[name].dtype
    np.testing.assert_array_equal(given["prompts"].coords_xy, before["prompts"].coords_xy)
    picture = Image.fromarray(given["images"])
    predictor.predict_mask_concept_caption(picture, points=[[3, 4]])
    assert (np.asarray(picture) == before["images"]).all()


def test_paths_pictures_arrays_and_tensors_agree(
    predictor: TAPPredictor, photo: np.ndarray, encoded: EncodedImage, tmp_path: Path
) -> None:
    path = tmp_path / "снимок 1.png"
    Image.fromarray(photo).save(path)
    strided = np.asfortranarray(photo)
    for image in (path, str(path), Image.fromarray(photo), torch.tensor(photo), strided):
        assert torch.equal(predictor.encode_images(image).features, encoded.features)
    assert torch.equal(predictor.encode_images([str(path)])[0].features, encoded.features)


def test_channels_are_red_green_blue(predictor: TAPPredictor, photo: np.ndarray) -> None:
    """The model wants BGR and gets it from RGB; a model of RGB gets the same planes unswapped."""
    swapped = np.ascontiguousarray(photo[..., ::-1])
    mean, std = CONFIG.pixels.mean, CONFIG.pixels.std
    pixels = torch.full((1, 3, 48, 48), 0.0)
    for channel in range(3):  # of the padding
        pixels[0, channel] = (int(mean[channel]) - mean[channel]) / std[channel]
    resized = np.asarray(Image.fromarray(photo).resize((48, 29), Image.Resampling.BILINEAR))
    for channel, color in enumerate((2, 1, 0)):  # blue first
        plane = torch.tensor(resized[..., color].astype(np.float64))
        pixels[0, channel, :29] = ((plane - mean[channel]) / std[channel]).float()
    with torch.no_grad():
        wanted = predictor.model.encode_images(pixels)[0]
    torch.testing.assert_close(predictor.encode_images(photo).features, wanted, rtol=0, atol=1e-4)
    assert (predictor.encode_images(swapped).features - wanted).abs().max() > 1e-2
