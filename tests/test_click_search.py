"""The automatic mode of models with a network for clicks, against a plain search."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.clicking import HEIGHT, SIDE, WIDTH, make_predictor, networks_of
from tests.tiny_predictor import assert_same, make_photo
from tokenize_anything import EverythingConfig, RegionPredictions, TAPPredictor, click_search
from tokenize_anything.centred_views import CentredView
from tokenize_anything.click_search import CLICKS_AT_ONCE
from tokenize_anything.click_windows import list_windows
from tokenize_anything.everything import find_everything
from tokenize_anything.everything_config import POINTS_PER_ROUND
from tokenize_anything.geometry import mask_iou, masks_to_boxes
from tokenize_anything.image_transform import normalize_pixels, pixel_padding
from tokenize_anything.mask_filtering import clean_mask
from tokenize_anything.view_names import write_names

CONFIG = EverythingConfig(
    points_per_side=5, min_iou=0.3, min_stability=0.2, max_overlap=0.6, min_region_area=9
)


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return make_searcher()


def make_searcher(**changes: float) -> TAPPredictor:
    """One that is sure of its masks, and thinks well of half of them."""
    predictor = make_predictor(**({"namer_size": 0} | changes))
    network = networks_of(predictor)[0]
    with torch.no_grad():
        for name, factor in (("mask_head", 6.0), ("iou_head.layers.2", 0.15)):
            network.get_parameter(f"{name}.weight").mul_(factor)
            network.get_parameter(f"{name}.bias").mul_(factor)
        network.get_parameter("iou_head.layers.2.bias").add_(0.5 - 0.15 * 34)
    return predictor


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


def search(predictor: TAPPredictor, photo: Any, **changes: Any) -> RegionPredictions:
    config = dataclasses.replace(CONFIG, **changes)
    found: RegionPredictions = predictor.predict_everything(photo, config=config, captions=False)
    return found


def box_overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.maximum(sides, 0).prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared)


def box_of(logits: np.ndarray, window: CentredView) -> np.ndarray:
    """The box of a window's mask in the photo, a cell of the window at a time."""
    cell, corners = window.side / len(logits) / window.scale, []
    for row, column in zip(*np.nonzero(logits > 0), strict=True):
        x, y = window.origin_xy[0] + column * cell, window.origin_xy[1] + row * cell
        corners.append([x, y, x + cell, y + cell])
    low, high = np.min(corners, axis=0)[:2], np.max(corners, axis=0)[2:]
    x0, y0, x1, y1 = window.source_xyxy
    return np.array([max(low[0], x0), max(low[1], y0), min(high[0], x1), min(high[1], y1)])


@torch.inference_mode()
def search_plainly(
    predictor: TAPPredictor, photo: np.ndarray, config: EverythingConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Masks and scores: one click at a time, every candidate compared with every better one."""
    model, side = predictor.model, config.points_per_side
    padding, pool = pixel_padding(model.config.pixels), []
    for number in range(side**2):
        row, column = divmod(number, side)
        click = (column + 0.5) * WIDTH / side - 0.5, (row + 0.5) * HEIGHT / side - 0.5
        windows = list_windows(click, (HEIGHT, WIDTH), SIDE)
        shown = np.stack([window.show(photo, padding) for window in windows])
        pixels = normalize_pixels(torch.from_numpy(shown), model.config.pixels)[None]
        middle = torch.full((1, len(windows), 1, 2), (SIDE - 1) / 2)
        outputs = networks_of(predictor)[0](pixels, middle, torch.ones(1, 1, dtype=torch.long))
        for window, logits, score in zip(
            windows, outputs.mask_logits[0].numpy(), outputs.iou_scores[0].tolist(), strict=True
        ):
            offset = config.stability_offset
            is_stable = (logits > offset).sum() >= config.min_stability * (logits > -offset).sum()
            if score >= config.min_iou and is_stable and (logits > 0).any():
                pool.append((score, logits, window, box_of(logits, window)))
        if (number + 1) % POINTS_PER_ROUND == 0 or number + 1 == side**2:
            kept: list[Any] = []
            for each in sorted(pool, key=lambda each: -each[0]):
                if all(box_overlap(each[3], other[3]) <= config.max_overlap for other in kept):
                    kept.append(each)
            pool = kept[: config.max_regions]
    masks = [
        clean_mask(window.restore_mask(logits, (HEIGHT, WIDTH)), config.min_region_area)
        for _, logits, window, _ in pool
    ]
    chosen: list[int] = []
    for place, mask in enumerate(masks):
        overlaps = [mask_iou(mask[None], masks[other][None])[0, 0] for other in chosen]
        if mask.any() and all(overlap <= config.max_overlap for overlap in overlaps):
            chosen.append(place)
    return np.stack([masks[n] for n in chosen]), np.array([pool[n][0] for n in chosen])


@pytest.mark.parametrize("side", [5, 12])  # one round of clicks, and two
def test_the_regions_are_those_of_a_plain_search(
    predictor: TAPPredictor, photo: np.ndarray, side: int
) -> None:
    config = dataclasses.replace(CONFIG, points_per_side=side, max_regions=20)
    masks, scores = search_plainly(predictor, photo, config)
    found = search(predictor, photo, points_per_side=side, max_regions=20)
    assert 4 <= len(found) <= 20
    np.testing.assert_allclose(found.iou_scores, scores, atol=1e-4)
    assert found.masks.shape == masks.shape and (found.masks != masks).mean() <= 1e-3


def test_every_option_does_something(predictor: TAPPredictor, photo: np.ndarray) -> None:
    usual = len(search(predictor, photo))
    assert len(search(predictor, photo, min_iou=0.6)) < usual
    assert len(search(predictor, photo, min_stability=0.9)) < usual
    assert len(search(predictor, photo, max_overlap=0.95)) > usual
    assert len(search(predictor, photo, max_regions=3)) == 3
    rough = search(predictor, photo, min_region_area=0)
    assert rough.masks.sum() != search(predictor, photo, min_region_area=90).masks.sum()
    assert len(search(predictor, photo, points_per_side=9)) > usual


def test_tokens_are_those_of_the_boxes(predictor: TAPPredictor, photo: np.ndarray) -> None:
    found = search(predictor, photo)
    boxes = masks_to_boxes(found.masks)
    told = predictor.predict_mask_concept_caption(photo, boxes=boxes, zoom=0, captions=False)
    for name in ("semantic_tokens", "semantic_embeddings", "mask_tokens"):
        np.testing.assert_allclose(getattr(found, name), getattr(told, name), atol=1e-4)
    assert (found.mask_index == 0).all()


def test_the_namer_looks_at_what_was_found(photo: np.ndarray) -> None:
    named = make_searcher(namer_size=64)
    plain = make_searcher()
    state = named.model.state_dict()
    plain.model.load_state_dict({name: state[name] for name in plain.model.state_dict()})
    found, expected = search(named, photo), find_everything(plain.model, photo, CONFIG, chunk=9)
    decoded = expected.decoded
    np.testing.assert_array_equal(found.masks, decoded.masks)
    before = decoded.semantic_tokens.clone()
    with torch.inference_mode():
        write_names(named.model, photo, decoded)
    assert not torch.allclose(before, decoded.semantic_tokens, atol=1e-2)
    np.testing.assert_allclose(found.semantic_tokens, decoded.semantic_tokens, atol=1e-4)
    assert found.parent_index is not None
    np.testing.assert_array_equal(found.parent_index, expected.parent_index)


def test_an_encoded_photo_and_smaller_batches_are_no_different(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    found = search(predictor, photo)
    assert_same(search(predictor, predictor.encode_images(photo)), found)
    few = search(predictor, photo, points_per_batch=3)
    assert len(few) == len(found) and (few.masks != found.masks).mean() < 1e-3
    np.testing.assert_allclose(few.iou_scores, found.iou_scores, atol=1e-4)


def test_clicks_come_in_batches_and_are_counted(predictor: TAPPredictor, photo: np.ndarray) -> None:
    sizes: list[int] = []
    done: list[int] = []
    network = networks_of(predictor)[0]
    hook = network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for at_once in (None, 7):
        config = dataclasses.replace(CONFIG, points_per_side=6, points_per_batch=at_once)
        find_everything(predictor.model, photo, config, chunk=9, advance=done.append)
    hook.remove()
    assert sizes == [CLICKS_AT_ONCE, CLICKS_AT_ONCE, 4, 7, 7, 7, 7, 7, 1]
    assert done == sizes


def test_crops_add_clicks(
    predictor: TAPPredictor, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer of crops searches four quarters beside the whole, with a click in each."""
    whole = search(predictor, photo, points_per_side=2)
    more = search(predictor, photo, points_per_side=2, crop_layers=1)
    assert len(more) > len(whole)
    assert more.iou_scores[0] >= whole.iou_scores[0]
    asked = []

    def search_by_clicks(model: Any, rgb: Any, clicks_xy: np.ndarray, *others: Any) -> Any:
        asked.append(clicks_xy)
        return search_plainly_by_clicks(model, rgb, clicks_xy[:0], *others)

    search_plainly_by_clicks = click_search.search_by_clicks
    monkeypatch.setattr(click_search, "search_by_clicks", search_by_clicks)
    search(predictor, photo, points_per_side=2, crop_layers=1, crop_overlap=0.0)
    expected = [(x, y) for y in (HEIGHT / 4, 3 * HEIGHT / 4) for x in (WIDTH / 4, 3 * WIDTH / 4)]
    np.testing.assert_allclose(asked[0], np.array(expected * 2) - 0.5, atol=1)


def test_a_model_that_looks_once_clicks_with_its_decoder(photo: np.ndarray) -> None:
    predictor = make_searcher(zoom=0.0)
    found = search(predictor, photo, min_iou=0.0, min_stability=0.0)
    assert len(found) and (found.mask_index > 0).all()


def test_nothing_found_is_no_regions(photo: np.ndarray) -> None:
    predictor = make_searcher()
    with torch.no_grad():
        networks_of(predictor)[0].get_parameter("mask_head.bias").fill_(-1e6)
    before = photo.copy()
    found = search(predictor, photo)
    assert len(found) == 0 and found.masks.shape == (0, HEIGHT, WIDTH)
    np.testing.assert_array_equal(photo, before)
