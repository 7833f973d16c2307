"""The automatic mode against a plain search, and what must not change its answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_predictor import assert_same, make_photo, tiny_predictor
from tokenize_anything import EncodedImage, PointPrompts, RegionPredictions, TAPPredictor
from tokenize_anything.everything import _ViewSearch
from tokenize_anything.everything_config import EverythingConfig, PhotoView
from tokenize_anything.geometry import mask_iou
from tokenize_anything.image_transform import restore_masks
from tokenize_anything.mask_filtering import clean_mask

HEIGHT, WIDTH = 41, 67
POINTS_PER_ROUND = 128
CONFIG = EverythingConfig(
    points_per_side=7, min_iou=0.4, min_stability=0.3, max_overlap=0.5, min_region_area=4
)


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    """A tiny model whose masks depend on the click, and which thinks well of half of them."""
    predictor = tiny_predictor()
    decoder = predictor.model.image_decoder
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if value.ndim > 1 and name.startswith(("transformer", "upscale")):
                value.mul_(2.5)
        decoder.iou_head.layers[-1].bias += 1.0
    return predictor


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def regions(predictor: TAPPredictor, photo: np.ndarray) -> RegionPredictions:
    found: RegionPredictions = predictor.predict_everything(photo, config=CONFIG, top_k=2)
    return found


def everything(predictor: TAPPredictor, photo: Any, **changes: Any) -> RegionPredictions:
    config = dataclasses.replace(CONFIG, **changes)
    found: RegionPredictions = predictor.predict_everything(photo, config=config, captions=False)
    return found


def keep_distinct(rows: list[tuple[float, int]], masks: Any, limit: float) -> list[int]:
    """Numbers of candidates (score, number), best first, that overlap with no better one."""
    kept: list[int] = []
    for _, number in sorted(rows, key=lambda row: (-row[0], row[1])):
        if all(mask_iou(masks[number][None], masks[k][None])[0, 0] <= limit for k in kept):
            kept.append(number)
    return kept


def find_plainly(
    predictor: TAPPredictor, photo: np.ndarray, config: EverythingConfig
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Candidate numbers (click * 4 + slot), scores and masks of the regions, with every mask made
    at once and every candidate compared with every other one of its round."""
    encoded, side = predictor.encode_images(photo), config.points_per_side
    points = [
        ((column + 0.5) * WIDTH / side - 0.5, (row + 0.5) * HEIGHT / side - 0.5)
        for row in range(side)
        for column in range(side)
    ]
    outputs = predictor.decode_regions(encoded, PointPrompts.from_points(np.maximum(points, 0)))
    logits = outputs.mask_logits.numpy()
    cell = encoded.frame.padded_size / logits.shape[-1]
    rows, columns = (int(np.ceil(size / cell)) for size in encoded.frame.scaled_hw)
    seen = logits.reshape(-1, *logits.shape[2:])[:, :rows, :columns]
    scores = outputs.iou_scores.numpy().ravel()
    pool: list[int] = []
    for start in range(0, len(points), POINTS_PER_ROUND):
        numbers = [
            number
            for number in range(4 * start, min(4 * (start + POINTS_PER_ROUND), len(seen)))
            if number % 4 and scores[number] >= config.min_iou and (seen[number] > 0).any()
            if (seen[number] > config.stability_offset).sum()
            >= config.min_stability * (seen[number] > -config.stability_offset).sum()
        ]
        rows_of_round = [(scores[number], number) for number in [*pool, *numbers]]
        pool = keep_distinct(rows_of_round, seen > 0, config.max_overlap)[: config.max_regions]
    flat = outputs.mask_logits.flatten(0, 1)[pool]
    masks = {
        number: clean_mask(mask, config.min_region_area)
        for number, mask in zip(pool, restore_masks(flat, encoded.frame), strict=True)
    }
    filled = [(scores[number], number) for number in pool if masks[number].any()]
    kept = keep_distinct(filled, masks, config.max_overlap)
    return kept, scores[kept], np.array([masks[number] for number in kept])


@pytest.mark.parametrize("side", [7, 12])  # one round of clicks, and two
def test_the_regions_are_those_of_a_plain_search(
    predictor: TAPPredictor, photo: np.ndarray, side: int
) -> None:
    config = dataclasses.replace(CONFIG, points_per_side=side)
    numbers, scores, masks = find_plainly(predictor, photo, config)
    found = everything(predictor, photo, points_per_side=side)
    assert 5 <= len(found) <= 60
    assert found.mask_index.tolist() == [number % 4 for number in numbers]
    np.testing.assert_allclose(found.iou_scores, scores, atol=1e-3)
    assert (np.diff(found.iou_scores) <= 0).all()
    assert (found.masks != masks).mean() <= 1e-3


def test_what_is_left_was_really_filtered(predictor: TAPPredictor, photo: np.ndarray) -> None:
    """Every option does something on this photo, or the search above would prove little."""
    usual = len(everything(predictor, photo))
    assert len(everything(predictor, photo, min_iou=0.8)) < usual
    assert len(everything(predictor, photo, min_stability=0.6)) < usual
    assert len(everything(predictor, photo, stability_offset=3.0)) < usual
    assert len(everything(predictor, photo, max_overlap=0.95)) > usual
    assert len(everything(predictor, photo, max_regions=3)) == 3
    rough = everything(predictor, photo, min_region_area=0)
    assert rough.masks.sum() != everything(predictor, photo, min_region_area=30).masks.sum()
    tree = everything(predictor, photo, min_containment=0.3).parent_index
    strict = everything(predictor, photo, min_containment=1.0).parent_index
    assert (tree >= 0).sum() > (strict >= 0).sum()


def test_regions_have_words_vectors_and_parents(
    predictor: TAPPredictor, photo: np.ndarray, regions: RegionPredictions
) -> None:
    names, scores = predictor.describe_concepts(regions.semantic_embeddings, top_k=2)
    captions, _ = predictor.write_captions(regions.semantic_tokens)
    assert (regions.concepts, regions.captions) == (names, captions)
    np.testing.assert_allclose(regions.concept_scores, scores, atol=1e-6)
    for row, parent in enumerate(regions.parent_index):
        if parent >= 0:
            shared = (regions.masks[row] & regions.masks[parent]).sum()
            assert shared >= CONFIG.min_containment * regions.masks[row].sum()
            assert regions.masks[parent].sum() > regions.masks[row].sum()
    assert (regions.parent_index >= 0).any()


def test_the_vectors_are_those_of_the_click(
    predictor: TAPPredictor, photo: np.ndarray, regions: RegionPredictions
) -> None:
    numbers, *_ = find_plainly(predictor, photo, CONFIG)
    clicks, slots = np.divmod(numbers, 4)
    points = [
        ((click % 7 + 0.5) * WIDTH / 7 - 0.5, (click // 7 + 0.5) * HEIGHT / 7 - 0.5)
        for click in clicks
    ]
    outputs = predictor.decode_regions(
        predictor.encode_images(photo), PointPrompts.from_points(points)
    )
    rows = np.arange(len(numbers))
    for name in ("semantic_tokens", "semantic_embeddings", "mask_tokens"):
        expected = getattr(outputs, name)[rows, slots].numpy()
        np.testing.assert_allclose(getattr(regions, name), expected, atol=1e-3, err_msg=name)


# --- what must not matter -----------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [7, 128, 1000])
def test_how_many_clicks_are_decoded_at_once(
    predictor: TAPPredictor, photo: np.ndarray, chunk: int
) -> None:
    side = {"points_per_side": 12}
    usual = everything(predictor, photo, **side)
    assert_same(everything(predictor, photo, points_per_batch=chunk, **side), usual)
    other = tiny_predictor(region_chunk=chunk)
    other.model.load_state_dict(predictor.model.state_dict())
    assert_same(everything(other, photo, **side), usual)


def test_a_photo_alone_is_the_photo_among_others(
    predictor: TAPPredictor, photo: np.ndarray, regions: RegionPredictions
) -> None:
    others = [make_photo(23, 31, seed=1), photo, make_photo(53, 29, seed=2)]
    many = predictor.predict_everything(others, config=CONFIG, top_k=2)
    assert [each.image_size_hw for each in many] == [(23, 31), (HEIGHT, WIDTH), (53, 29)]
    assert_same(many[1], regions)
    assert many[1].parent_index.tolist() == regions.parent_index.tolist()
    assert_same(predictor.predict_everything(photo, config=CONFIG, top_k=2), regions)
    assert predictor.predict_everything([], config=CONFIG) == []


def test_kinds_of_photos(predictor: TAPPredictor, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    encoded = predictor.encode_images(photo)
    before = encoded.features.clone()
    usual = everything(predictor, photo)
    for image in (tmp_path / "a.png", Image.fromarray(photo), encoded):
        assert_same(everything(predictor, image), usual)
    assert torch.equal(encoded.features, before)


def test_equal_scores_go_by_the_number_of_the_click(photo: np.ndarray) -> None:
    flat = tiny_predictor()
    with torch.no_grad():
        flat.model.image_decoder.iou_head.layers[-1].weight.zero_()
        flat.model.image_decoder.iou_head.layers[-1].bias.fill_(0.75)
    config = dataclasses.replace(CONFIG, points_per_side=12, max_overlap=0.95)
    numbers, *_ = find_plainly(flat, photo, config)
    assert numbers == sorted(numbers)
    for chunk in (7, 1000):
        found = everything(
            flat, photo, points_per_side=12, max_overlap=0.95, points_per_batch=chunk
        )
        assert found.mask_index.tolist() == [number % 4 for number in numbers]


# --- no work for what is thrown away ------------------------------------------------------------


def test_no_mask_is_made_of_a_bad_score(
    predictor: TAPPredictor, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = predictor.model.image_decoder
    made, restored, described = [], [], []
    make_masks, semantic_head = decoder.make_masks, decoder.semantic_head.forward

    def count_made(prompts: Any, rows: Any, slots: Any) -> Any:
        made.append(len(rows))
        return make_masks(prompts, rows, slots)

    def count_described(tokens: Any) -> Any:
        described.append(len(tokens))
        return semantic_head(tokens)

    def count_restored(logits: Any, frame: Any) -> Any:
        restored.append(len(logits))
        return restore_masks(logits, frame)

    monkeypatch.setattr(decoder, "make_masks", count_made)
    monkeypatch.setattr(decoder.semantic_head, "forward", count_described)
    monkeypatch.setattr("tokenize_anything.everything.restore_masks", count_restored)
    found = everything(predictor, photo)
    points = PointPrompts.from_points
    monkeypatch.undo()
    grid = [((i % 7 + 0.5) * WIDTH / 7 - 0.5, (i // 7 + 0.5) * HEIGHT / 7 - 0.5) for i in range(49)]
    scores = predictor.decode_regions(predictor.encode_images(photo), points(grid)).iou_scores
    assert sum(made) == int((scores[:, 1:] >= CONFIG.min_iou).sum()) < 3 * 49
    assert len(found) <= sum(restored) < sum(made)
    assert described == [len(found)]


def test_nothing_good_enough_gives_no_regions(predictor: TAPPredictor, photo: np.ndarray) -> None:
    config = dataclasses.replace(CONFIG, min_stability=1.0, stability_offset=50.0)
    none, some = predictor.predict_everything([photo, photo], config=config, top_k=3)
    assert len(none) == len(some) == 0
    assert none.masks.shape == (0, HEIGHT, WIDTH)
    assert none.concept_scores.shape == (0, 3)
    assert none.semantic_tokens.shape == (0, predictor.model.config.decoder_dim)
    assert none.semantic_embeddings.shape == (0, predictor.model.config.semantic_dim)
    assert none.parent_index.shape == (0,)
    assert len(everything(predictor, photo, min_region_area=HEIGHT * WIDTH + 1)) == 0


# --- crops --------------------------------------------------------------------------------------


def test_crops_find_what_the_whole_does_not(
    predictor: TAPPredictor, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks of a random model go everywhere, so masks that a crop cuts are let through."""
    whole = everything(predictor, photo)
    monkeypatch.setattr(PhotoView, "cut_sides", lambda *_: (False,) * 4)
    both = everything(predictor, photo, crop_layers=1)
    assert both.image_size_hw == (HEIGHT, WIDTH)
    assert (np.diff(both.iou_scores) <= 0).all()
    is_new = mask_iou(both.masks, whole.masks).max(axis=1) < CONFIG.max_overlap
    assert is_new.any()
    assert not is_new.all()
    ious = mask_iou(both.masks, both.masks) - np.eye(len(both))
    assert ious.max() <= CONFIG.max_overlap
    best = everything(predictor, photo, crop_layers=1, max_regions=3)
    assert len(best) <= 3
    np.testing.assert_array_equal(best.iou_scores[0], both.iou_scores[0])


def test_a_crop_is_searched_like_a_photo(
    predictor: TAPPredictor, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole photo left out, one crop without cut sides gives the regions of a photo."""

    def only_crop(height: int, width: int, config: EverythingConfig) -> list[PhotoView]:
        return [PhotoView((5, 3, 5 + 23, 3 + 31), 7, layer=1)]

    larger = make_photo(60, 50, seed=4)
    monkeypatch.setattr("tokenize_anything.everything.plan_views", only_crop)
    monkeypatch.setattr(PhotoView, "cut_sides", lambda *_: (False,) * 4)
    found = everything(predictor, larger)
    monkeypatch.undo()
    alone = everything(predictor, larger[3:34, 5:28])
    assert len(alone) >= 2
    assert not np.delete(np.delete(found.masks, np.s_[3:34], 1), np.s_[5:28], 2).any()
    np.testing.assert_array_equal(found.masks[:, 3:34, 5:28], alone.masks)
    np.testing.assert_array_equal(found.iou_scores, alone.iou_scores)


@pytest.mark.parametrize(
    ("cut_sides", "dropped"),
    [
        ((False, False, False, False), []),
        ((True, False, False, False), [0, 4]),  # left
        ((False, True, False, False), [1, 4]),  # top
        ((False, False, True, False), [2, 4]),
        ((False, False, False, True), [3, 4]),
        ((True, True, True, True), [0, 1, 2, 3, 4]),
    ],
)
def test_masks_at_a_cut_side_are_cut(
    predictor: TAPPredictor,
    photo: np.ndarray,
    cut_sides: tuple[bool, bool, bool, bool],
    dropped: list[int],
) -> None:
    masks = torch.zeros(6, 9, 11, dtype=torch.bool)
    masks[:, 4, 5] = True  # the last one stays inside
    masks[0, 3, 1] = masks[1, 1, 5] = masks[2, 4, 9] = masks[3, 7, 3] = True
    masks[4] = True
    view = PhotoView((0, 0, WIDTH, HEIGHT), 7, layer=1)
    encoded = predictor.encode_images(photo)
    search = _ViewSearch(predictor.model, encoded, view, CONFIG, cut_sides)
    assert search._touches_cut(masks).nonzero().flatten().tolist() == dropped


def test_crops_of_a_random_model_add_nothing(predictor: TAPPredictor, photo: np.ndarray) -> None:
    """Its masks reach every side, so each mask of a crop is one that the crop cuts."""
    usual = everything(predictor, photo)
    assert_same(everything(predictor, photo, crop_layers=1), usual)


def test_crops_need_the_photo(predictor: TAPPredictor, photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"crop_layers: expected 0 for an EncodedImage, got 1"):
        everything(predictor, predictor.encode_images(photo), crop_layers=1)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        ("no.png", {}, FileNotFoundError, r"image: no file at 'no\.png'"),
        (["no.png", "b"], {}, FileNotFoundError, r"images\[0\]: no file"),
        (3, {}, TypeError, r"image: expected one image"),
        (None, {"config": {"min_iou": 1}}, TypeError, r"config: expected an EverythingConfig"),
        (None, {"top_k": 0}, ValueError, r"top_k"),
        (None, {"generation": 3}, TypeError, r"generation: expected a GenerationConfig, got int"),
    ],
)
def test_bad_input(
    predictor: TAPPredictor,
    photo: np.ndarray,
    images: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        predictor.predict_everything(photo if images is None else images, **options)


def test_a_photo_of_another_model(predictor: TAPPredictor, photo: np.ndarray) -> None:
    encoded = predictor.encode_images(photo)
    other = EncodedImage(encoded.features[:, :2], encoded.frame)
    with pytest.raises(ValueError, match=r"encoded: expected features .* with this predictor"):
        predictor.predict_everything(other)


def test_the_bar_counts_clicks(
    predictor: TAPPredictor, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(CONFIG, points_per_side=3, crop_layers=1)
    predictor.predict_everything([photo, photo], config=config, captions=False, progress=True)
    assert "clicks: 100%" in capsys.readouterr().err
    predictor.predict_everything(photo, config=config, captions=False)
    assert capsys.readouterr().err == ""
