"""What large photos are spared: whole photos for small views, masks nobody sees, empty corners."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_predictor import make_mixed_prompts, make_photo, tiny_predictor
from tokenize_anything import TAPPredictor, region_decoding, zooming
from tokenize_anything.centred_views import CentredView, ImagePyramid
from tokenize_anything.click_windows import list_windows
from tokenize_anything.region_decoding import decode_image

HEIGHT, WIDTH, SIDE = 149, 211, 64
SIZES = {"view_dim": 3, "view_size": 96, "click_size": 64, "namer_size": 64}


# --- the pyramid -------------------------------------------------------------------------------


@pytest.mark.parametrize("image_hw", [(HEIGHT, WIDTH), (64, 96), (1, 7), (1, 1)])
def test_levels_are_means_of_four_pixels(image_hw: tuple[int, int]) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (*image_hw, 3), np.uint8)
    before, pyramid = photo.copy(), ImagePyramid(photo)
    assert pyramid.shape == photo.shape and pyramid.level(0) is photo
    for number in range(1, 5):
        last = pyramid.level(number - 1).astype(float)
        even = np.pad(last, [(0, n % 2) for n in last.shape[:2]] + [(0, 0)], mode="edge")
        means = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 3).mean(axis=(1, 3))
        found = pyramid.level(number)
        assert found.shape == means.shape and found.dtype == np.uint8
        assert np.abs(found - means).max() <= 0.5
        assert pyramid.level(number) is found  # made once
    np.testing.assert_array_equal(photo, before)


def test_views_that_show_little_are_those_of_the_photo() -> None:
    photo = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    pyramid, count = ImagePyramid(photo), 0
    for click in ((70, 81), (0, 148), (210, 3)):
        for window in list_windows(click, (HEIGHT, WIDTH), SIDE):
            assert window.scale > 1 / 8
            shown = window.show(pyramid, (1, 2, 3))
            np.testing.assert_array_equal(shown, window.show(photo, (1, 2, 3)))
            count += 1
    assert count == 15 and len(pyramid._levels) == 1


@pytest.mark.parametrize("click", [(803, 402), (1, 2), (1206, 898), (400, 899)])
def test_views_of_a_pyramid_are_a_quarter_of_a_pixel_off_at_most(click: tuple[int, int]) -> None:
    """On brightness that grows with the column or the row, which tells where a pixel is from."""
    height, width = 901, 1207
    rows, columns = np.mgrid[:height, :width]
    photo = np.stack([columns / 5, rows / 4, np.full(rows.shape, 77)], axis=-1).astype(np.uint8)
    slopes, levels, pyramid = np.array([1 / 5, 1 / 4, 0]), set(), ImagePyramid(photo)
    for window in list_windows(click, (height, width), 32):
        levels.add(len(pyramid._levels))
        exact = window.show(photo, (9, 8, 7)).astype(float)
        found = window.show(pyramid, (9, 8, 7)).astype(float)
        allowed = 0.25 * slopes / window.scale + 1.5  # brightness is cut to whole numbers
        assert (np.abs(found - exact) <= allowed).all()
        np.testing.assert_array_equal(found[..., 2] == 77, exact[..., 2] == 77)
    assert len(pyramid._levels) == 4


@pytest.mark.parametrize("box", [[-2000.0, 100.0, -900.0, 900.0], [3000.0, 890.0, 4100.0, 1700.0]])
def test_a_view_beside_the_photo_shows_its_last_pixels(box: list[float]) -> None:
    photo = np.full((901, 1207, 3), 201, np.uint8)
    view = CentredView.around(box, photo.shape[:2], 32, 0.7)
    x0, _, x1, _ = view.source_xyxy
    assert view.scale < 1 / 16 and x1 - x0 == 1
    exact, found = view.show(photo, (9, 8, 7)), view.show(ImagePyramid(photo), (9, 8, 7))
    assert (found == 201).any()
    np.testing.assert_array_equal(found, exact)


# --- masks of the first look -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (SIZES, 0),
        (SIZES | {"view_corrects": True}, 0),
        ({"view_dim": 3, "view_size": 96}, 3),
        ({}, 7),
    ],
    ids=["all networks", "corrected", "outlines of boxes and sketches", "views alone"],
)
def test_only_masks_that_count_are_made_and_nothing_changes(
    overrides: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = tiny_predictor(zoom=0.5, **overrides)
    photo, prompts = make_photo(HEIGHT, WIDTH), make_mixed_prompts(HEIGHT, WIDTH)
    restored: list[int] = []
    plain = region_decoding.restore_masks

    def count(logits: Any, *args: Any) -> np.ndarray:
        restored.append(len(logits))
        return plain(logits, *args)

    monkeypatch.setattr(region_decoding, "restore_masks", count)
    found = predictor.predict_mask_concept_caption(photo, prompts=prompts)
    few, restored[:] = sum(restored), []
    monkeypatch.setattr(zooming, "_first_counts", lambda _, p: np.ones(len(p), bool))
    wanted = predictor.predict_mask_concept_caption(photo, prompts=prompts)
    assert sum(restored) == len(prompts) == 7
    assert few == expected
    for name in ("masks", "iou_scores", "semantic_tokens", "semantic_embeddings", "mask_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    assert found.captions == wanted.captions


@torch.inference_mode()
def test_masks_that_are_not_wanted_stay_empty() -> None:
    predictor = tiny_predictor()
    encoded = predictor.encode_images(make_photo(HEIGHT, WIDTH))
    prompts = make_mixed_prompts(HEIGHT, WIDTH)
    every = decode_image(predictor.model, encoded, prompts, chunk=2)
    wanted = np.arange(7) % 3 == 1
    some = decode_image(predictor.model, encoded, prompts, chunk=2, has_mask=wanted)
    np.testing.assert_array_equal(some.masks[wanted], every.masks[wanted])
    assert every.masks[~wanted].any() and not some.masks[~wanted].any()
    assert some.iou_scores.equal(every.iou_scores)


@torch.inference_mode()
@pytest.mark.parametrize("asked", [[1, 4], [], range(7)])
def test_prompts_that_are_not_asked_stay_blank(asked: Sequence[int]) -> None:
    predictor = tiny_predictor()
    encoded = predictor.encode_images(make_photo(HEIGHT, WIDTH))
    prompts = make_mixed_prompts(HEIGHT, WIDTH)
    every = decode_image(predictor.model, encoded, prompts, chunk=2)
    is_asked = np.isin(np.arange(7), asked)
    some = decode_image(predictor.model, encoded, prompts, chunk=2, is_asked=is_asked)
    for field in dataclasses.fields(some):
        whole, part = np.asarray(getattr(every, field.name)), np.asarray(getattr(some, field.name))
        np.testing.assert_allclose(part[is_asked], whole[is_asked], 1e-4, 1e-5, err_msg=field.name)
        assert not part[~is_asked].any(), field.name


def test_every_prompt_is_asked_once_on_the_whole_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A click by the box of its mask, the others as they are; masks come from the networks."""
    predictor, prompts = tiny_predictor(zoom=0.5, **SIZES), make_mixed_prompts(HEIGHT, WIDTH)
    asked: list[int] = []
    plain = region_decoding.decode_chunks

    def count(model: Any, encoded: Any, some: Any, **kwargs: Any) -> Any:
        asked.append(len(some))
        assert not kwargs["with_masks"]
        return plain(model, encoded, some, **kwargs)

    monkeypatch.setattr(region_decoding, "decode_chunks", count)
    predictor.predict_mask_concept_caption(make_photo(HEIGHT, WIDTH), prompts=prompts)
    assert sum(asked) == len(prompts) == 7


# --- masks of windows --------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 3, 31])
def test_masks_are_restored_where_they_can_be(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some cells of a window, at its ends and within: what all of the window would give."""
    rng, windows = np.random.default_rng(cells), []
    for click in ((70, 81), (0, 148), (210, 3)):
        windows += list_windows(click, (HEIGHT, WIDTH), SIDE)
    windows.append(CentredView.around([20, 30, 90, 80], (HEIGHT, WIDTH), SIDE, 0.7))
    smaller = 0
    for window in windows:
        for row, column in ((0, 0), (31, 31), (0, 17), (12, 0), *rng.integers(0, 32, (5, 2))):
            logits = rng.uniform(-3, -1, (32, 32)).astype(np.float32)
            logits[row : row + cells, column : column + cells] += 5
            found = window.restore_mask(logits, (HEIGHT, WIDTH))
            reach = window._reach(logits > 0)
            with monkeypatch.context() as patch:
                patch.setattr(CentredView, "_reach", lambda self, _: self.source_xyxy)
                wanted = window.restore_mask(logits, (HEIGHT, WIDTH))
            assert (found != wanted).mean() < 1e-3  # places are rounded to parts of a cell
            smaller += reach != window.source_xyxy
    assert smaller > (100 if cells < 31 else 5)


def test_a_window_without_a_mask_gives_none() -> None:
    window = list_windows((70, 81), (HEIGHT, WIDTH), SIDE)[1]
    assert not window.restore_mask(np.full((32, 32), -1.0, np.float32), (HEIGHT, WIDTH)).any()


def test_clicks_on_a_large_photo_are_those_on_a_small_one() -> None:
    """The same photo with each pixel four times as wide: the same windows, so the same answers."""
    predictor: TAPPredictor = tiny_predictor(zoom=0.5, **SIZES)
    small = make_photo(HEIGHT, WIDTH)
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    points = np.array([[60.0, 70.0], [101.0, 20.0]])
    found = predictor.predict_mask_concept_caption(large, points=4 * points + 1.5)
    wanted = predictor.predict_mask_concept_caption(small, points=points)
    np.testing.assert_allclose(found.iou_scores, wanted.iou_scores, rtol=0.02)
    shrunk = found.masks.reshape(-1, HEIGHT, 4, WIDTH, 4).mean(axis=(2, 4)) > 0.5
    assert (shrunk != wanted.masks).mean() < 0.02
