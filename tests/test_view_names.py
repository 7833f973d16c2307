"""Views with a box in their middle, and what the namer says about the regions in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny_predictor import make_mixed_prompts, make_photo, tiny_predictor, write_plainly
from tokenize_anything import PointPrompts, RegionPredictions, TAPPredictor
from tokenize_anything.view_names import (
    MIN_SIDE,
    NAMING_ZOOM,
    VIEWS_AT_ONCE,
    CentredView,
    RegionName,
    name_regions,
)

HEIGHT, WIDTH, SIDE = 149, 211, 64
PADDING = (123, 116, 103)
BOXES = {
    "inside": [101.0, 53.0, 124.5, 72.25],
    "corner": [0.0, 0.0, 40.0, 31.0],
    "far corner": [190.5, 101.0, 211.0, 149.0],
    "beyond": [-40.0, 20.0, 31.0, 170.0],
    "whole": [0.0, 0.0, 211.0, 149.0],
    "one pixel": [47.0, 131.0, 48.0, 132.0],
    "nothing": [60.5, 31.0, 60.5, 31.0],
    "a line": [7.0, 100.0, 200.0, 100.5],
}


def canvas_around(image: np.ndarray, view: CentredView, padding: tuple[int, ...]) -> np.ndarray:
    """What a view shows, before any resampling: the photo in the middle of much padding."""
    room = 400
    canvas = np.zeros((HEIGHT + 2 * room, WIDTH + 2 * room, *image.shape[2:]), np.float64)
    canvas[:] = padding if image.ndim == 3 else 0
    canvas[room : room + HEIGHT, room : room + WIDTH] = image
    x, y = (round(value) + room for value in view.origin_xy)
    width = round(view.side / view.scale)
    return canvas[y : y + width, x : x + width]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


# --- views -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("zoom", [0.5, NAMING_ZOOM])
def test_the_box_is_in_the_middle_and_fills_its_share(kind: str, zoom: float) -> None:
    box = np.array(BOXES[kind])
    view = CentredView.around(box, (HEIGHT, WIDTH), SIDE, zoom)
    found = view.box_in_view(box)
    assert found.dtype == np.float32
    np.testing.assert_allclose((found[:2] + found[2:]) / 2, SIDE / 2, atol=1e-3)
    long_side = (box[2:] - box[:2]).max()
    share = zoom if long_side > MIN_SIDE * zoom else long_side / MIN_SIDE
    assert (found[2:] - found[:2]).max() == pytest.approx(share * SIDE, rel=1e-4)
    corners = found.reshape(2, 2) / view.scale + view.origin_xy  # and back
    np.testing.assert_allclose(corners.reshape(4), box, atol=1e-3)


@pytest.mark.parametrize("kind", BOXES)
def test_what_is_shown_lies_where_the_box_says(kind: str) -> None:
    """Photos whose brightness is the column or the row, and padding where they end."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    image = np.stack([columns, rows, np.full_like(rows, 77)], axis=-1)
    view = CentredView.around(BOXES[kind], (HEIGHT, WIDTH), SIDE, NAMING_ZOOM)
    shown = view.show(image, (1, 2, 3)).astype(float)
    places = (np.arange(SIDE) + 0.5) / view.scale - 0.5  # middles of view pixels, from the origin
    slack = max(1.0, 1 / view.scale) + 0.51  # whole pixels are cut out
    close = 0.6 if view.scale > 1 else slack  # brightness is in whole numbers
    is_shown = shown[..., 2] == 77
    for axis, limit in ((0, WIDTH), (1, HEIGHT)):
        wanted = places + view.origin_xy[axis]
        found = shown[..., axis] if axis == 0 else shown[..., axis].T
        seen = is_shown if axis == 0 else is_shown.T
        for line, parts in zip(found, seen, strict=True):
            clipped = wanted.clip(0, limit - 1)
            np.testing.assert_allclose(line[parts], clipped[parts], atol=close)
        inside = (wanted > slack) & (wanted < limit - 1 - slack)
        outside = (wanted < -slack) | (wanted > limit - 1 + slack)
        assert seen.any(axis=0)[inside].all() and not seen[:, outside].any()
    np.testing.assert_array_equal(shown[~is_shown], np.tile([1, 2, 3], ((~is_shown).sum(), 1)))


@pytest.mark.parametrize(
    "box",
    [[80.0, 46.0, 128.0, 70.0], [-24.0, 0.0, 24.0, 48.0], [172.0, 125.0, 220.0, 149.0]],
    ids=["inside", "left and above", "right and below"],
)
def test_photos_shrink_by_means(noise: np.ndarray, box: list[float]) -> None:
    """By 3, where the photo ends between pixels of the view."""
    view = CentredView.around(box, (HEIGHT, WIDTH), 32, 0.5)
    assert view.scale == pytest.approx(1 / 3)
    expected = canvas_around(noise, view, PADDING).reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    shown = view.show(noise, PADDING)
    assert shown.shape == (32, 32, 3) and shown.dtype == np.uint8
    np.testing.assert_allclose(shown, expected, atol=0.51)
    mask = noise[..., 0] > 100
    expected = canvas_around(mask, view, ()).reshape(32, 3, 32, 3).mean(axis=(1, 3))
    shown = view.show(mask)
    assert shown.shape == (32, 32) and shown.dtype == np.uint8
    np.testing.assert_allclose(shown, 255 * expected, atol=0.51)


def interpolate_plainly(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The image (h,w,3) between its pixels, whose middles are whole numbers; the ends repeat."""
    value = np.zeros(3)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            share = (1 - abs(row - y)) * (1 - abs(column - x))
            nearest = min(max(row, 0), len(image) - 1), min(max(column, 0), image.shape[1] - 1)
            value += share * image[nearest]
    return value


@pytest.mark.parametrize("box", [[80.0, 50.0, 94.0, 58.0], [197.0, 0.0, 211.0, 6.0]])
def test_photos_grow_by_interpolation(noise: np.ndarray, box: list[float]) -> None:
    """By 2, with the last pixels repeated at the ends of what is shown, and padding behind."""
    view = CentredView.around(box, (HEIGHT, WIDTH), 56, 0.5)
    assert view.scale == pytest.approx(2)
    x, y = (round(value) for value in view.origin_xy)
    window = noise[max(y, 0) : y + 28, max(x, 0) : x + 28]
    left, top = 2 * max(-x, 0), 2 * max(-y, 0)
    expected = np.empty((56, 56, 3))
    expected[:] = PADDING
    for row in range(2 * len(window)):
        for column in range(2 * window.shape[1]):
            value = interpolate_plainly(window, column / 2 - 0.25, row / 2 - 0.25)
            expected[top + row, left + column] = value
    np.testing.assert_allclose(view.show(noise, PADDING), expected, atol=0.76)


def test_the_same_size_is_a_copy(noise: np.ndarray) -> None:
    view = CentredView.around([3.0, 60.0, 35.0, 90.0], (HEIGHT, WIDTH), SIDE, 0.5)
    expected = canvas_around(noise, view, (9, 8, 7))
    assert view.scale == 1 and (expected == [9, 8, 7]).all(axis=-1).any()
    np.testing.assert_array_equal(view.show(noise, (9, 8, 7)), expected)


def test_small_boxes_show_some_pixels_around_them(noise: np.ndarray) -> None:
    view = CentredView.around([50.5, 40.5, 51.5, 41.5], (HEIGHT, WIDTH), SIDE, NAMING_ZOOM)
    assert SIDE / view.scale == pytest.approx(MIN_SIDE)
    assert view.source_xyxy == (49, 39, 53, 43) and view.target_xyxy == (0, 0, SIDE, SIDE)
    assert view.show(noise).std() > 10


@pytest.mark.parametrize("box", [[-90.0, -70.0, -50.0, -60.0], [300.0, 20.0, 340.0, 40.0]])
def test_boxes_out_of_sight_show_a_little_of_the_photo(noise: np.ndarray, box: list[float]) -> None:
    """Nothing is promised but padding and at least one pixel."""
    shown = CentredView.around(box, (HEIGHT, WIDTH), SIDE, 0.5).show(noise, PADDING)
    assert 0 < (shown != PADDING).any(axis=-1).mean() < 0.5


def test_photos_of_one_pixel() -> None:
    view = CentredView.around([0.0, 0.0, 1.0, 1.0], (1, 1), 32, 0.5)
    shown = view.show(np.full((1, 1, 3), 201, np.uint8), PADDING)
    assert view.source_xyxy == (0, 0, 1, 1)
    is_photo = (shown == 201).all(axis=-1)
    assert is_photo.sum() == 8 * 8 and (shown[~is_photo] == PADDING).all()


# --- names of regions ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return tiny_predictor(zoom=0.5, view_dim=3, view_size=96, namer_size=SIDE)


def make_regions(count: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Masks, and boxes of all rows but the second; one mask is empty."""
    rng, masks, boxes = np.random.default_rng(7), np.zeros((count, HEIGHT, WIDTH), bool), {}
    for row in range(count):
        x0, y0 = rng.uniform(-9, [WIDTH - 40, HEIGHT - 40])
        width, height = rng.uniform(2, 90, 2)
        boxes[row] = np.array([x0, y0, x0 + width, y0 + height])
        start_x, start_y = max(int(x0), 0), max(int(y0), 0)
        end_x, end_y = max(int(x0 + width), 1), max(int(y0 + height), 1)
        masks[row, start_y : end_y + 1, start_x : end_x + 1] = row != 3
    boxes.pop(1, None)
    return masks, boxes


def make_tokens(count: int) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def ask(
    predictor: TAPPredictor, photo: np.ndarray, masks: np.ndarray, boxes: dict[int, np.ndarray]
) -> list[RegionName]:
    tokens = make_tokens(len(masks))
    return list(name_regions(predictor.model, photo, masks, boxes, tokens))


@torch.inference_mode()
def name_plainly(
    predictor: TAPPredictor,
    photo: np.ndarray,
    mask: np.ndarray,
    box: np.ndarray,
    semantic_token: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token and embedding of one region, with views normalised and flipped by hand."""
    model = predictor.model
    namer, facts = model.view_namer, model.config.pixels
    assert namer is not None and facts.channel_order == "BGR"
    view = CentredView.around(box, photo.shape[:2], SIDE, 0.7)
    x0, y0, x1, y1 = view.box_in_view(box).tolist()
    pixels = (view.show(photo, PADDING)[..., ::-1].astype(np.float32) - facts.mean) / facts.std
    inside = view.show(mask).astype(np.float32) / 255
    added = []
    for corners, step in (((x0, y0, x1, y1), 1), ((SIDE - x1, y0, SIDE - x0, y1), -1)):
        seen = np.ascontiguousarray(pixels[:, ::step].transpose(2, 0, 1), dtype=np.float32)
        drawn = np.ascontiguousarray(inside[:, ::step])
        asked = (torch.from_numpy(seen), torch.tensor(corners), torch.from_numpy(drawn))
        added.append(namer.token_head(namer(*(value[None] for value in asked)))[0])
    token = semantic_token + (added[0] + added[1]) / 2
    return token, namer.semantic_head(token)


def test_names_equal_a_plain_computation(predictor: TAPPredictor, photo: np.ndarray) -> None:
    masks, boxes = make_regions(6)
    found, given = ask(predictor, photo, masks, boxes), make_tokens(6)
    assert [name.row for name in found] == [0, 2, 3, 4, 5]
    for name in found:
        row = name.row
        told = name_plainly(predictor, photo, masks[row], boxes[row], given[row])
        torch.testing.assert_close(name.semantic_token, told[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(name.semantic_embedding, told[1], rtol=1e-3, atol=1e-3)
    added = [name.semantic_token - given[name.row] for name in found]
    assert (added[0] - added[1]).abs().max() > 0.05


def test_what_a_region_gets_does_not_depend_on_the_others(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    masks, boxes = make_regions(VIEWS_AT_ONCE + 4)
    together = ask(predictor, photo, masks, boxes)
    assert [name.row for name in together] == list(boxes) and len(together) > VIEWS_AT_ONCE
    for name in together[1::6]:
        (alone,) = ask(predictor, photo, masks, {name.row: boxes[name.row]})
        for field in ("semantic_embedding", "semantic_token"):
            found, expected = getattr(name, field), getattr(alone, field)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert ask(predictor, photo, masks, {}) == []


def test_masks_and_boxes_count(predictor: TAPPredictor, photo: np.ndarray) -> None:
    masks, boxes = make_regions(1)
    (before,) = ask(predictor, photo, masks, boxes)
    (moved,) = ask(predictor, photo, masks, {0: boxes[0] + 7.0})
    (halved,) = ask(predictor, photo, masks & (np.arange(WIDTH) < boxes[0][[0, 2]].mean()), boxes)
    for other in (moved, halved):
        gap = (other.semantic_embedding - before.semantic_embedding).abs().max()
        assert gap > 1e-3


# --- in predictions --------------------------------------------------------------------------

SMALL, LARGE, BEYOND = (
    [101.0, 53.0, 124.0, 72.0],
    [5.0, 3.0, 203.0, 131.0],
    [-9.0, 90.0, 31.0, 160.0],
)


def without_views(predictor: TAPPredictor) -> TAPPredictor:
    """A predictor of the same weights but those of the networks that look at views."""
    plain = tiny_predictor(zoom=0.5)
    state = predictor.model.state_dict()
    plain.model.load_state_dict({name: state[name] for name in plain.model.state_dict()})
    return plain


def assert_named(
    predictor: TAPPredictor,
    photo: np.ndarray,
    found: RegionPredictions,
    told: RegionPredictions,
    boxes: list[np.ndarray],
) -> None:
    """Tokens are what was told and what the namer sees, and all else is read from them."""
    assert predictor.concepts is not None
    for row, box in enumerate(boxes):
        given = torch.from_numpy(told.semantic_tokens[row].copy())
        token, embedding = name_plainly(predictor, photo, found.masks[row], box, given)
        np.testing.assert_allclose(found.semantic_tokens[row], token, atol=2e-3)
        np.testing.assert_allclose(found.semantic_embeddings[row], embedding, atol=2e-3)
        assert (token - given).abs().max() > 0.05
        names, _ = predictor.concepts.top_k(embedding[None], 1)
        assert found.concepts[row][:1] == names[0]
        written = torch.from_numpy(found.semantic_tokens[row : row + 1].copy())
        with torch.inference_mode():
            assert found.captions[row] == write_plainly(predictor, written)[0]


def test_boxes_get_names_without_a_view_of_the_encoder(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    boxes = [SMALL, LARGE, BEYOND]
    found = predictor.predict_mask_concept_caption(photo, boxes=boxes)
    told = without_views(predictor).predict_mask_concept_caption(photo, boxes=boxes, zoom=0.0)
    assert_named(predictor, photo, found, told, [np.array(box) for box in boxes])
    np.testing.assert_allclose(found.mask_tokens, told.mask_tokens, atol=1e-5)
    closer = without_views(predictor).predict_mask_concept_caption(photo, boxes=boxes)
    assert np.abs(closer.mask_tokens[0] - told.mask_tokens[0]).max() > 1e-2


def test_boxes_with_clicks_are_named_in_their_box(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    prompt = PointPrompts.from_boxes([SMALL], [[[131, 60], [110, 60]]], [[0, 1]])
    found = predictor.predict_mask_concept_caption(photo, prompts=prompt)
    told = without_views(predictor).predict_mask_concept_caption(photo, prompts=prompt, zoom=0.0)
    assert_named(predictor, photo, found, told, [np.array(SMALL)])


@pytest.mark.parametrize("kind", ["a click", "two clicks", "sketch"])
def test_clicks_are_named_in_the_box_of_their_mask(
    predictor: TAPPredictor, photo: np.ndarray, kind: str
) -> None:
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[40:81, 100:141] = True
    prompt = {
        "a click": PointPrompts.from_points([[101, 67]]),
        "two clicks": PointPrompts.from_points([[[101, 67], [60, 20]]], [[1, 0]]),
        "sketch": PointPrompts.from_masks(drawn),
    }[kind]
    found = predictor.predict_mask_concept_caption(photo, prompts=prompt)
    told = without_views(predictor).predict_mask_concept_caption(photo, prompts=prompt)
    rows, columns = np.nonzero(found.masks[0])
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    assert_named(predictor, photo, found, told, [box])
    np.testing.assert_allclose(found.mask_tokens, told.mask_tokens, atol=1e-5)


def test_a_single_look_is_as_without_names(predictor: TAPPredictor, photo: np.ndarray) -> None:
    prompts = make_mixed_prompts(HEIGHT, WIDTH)
    found, expected = (
        each.predict_mask_concept_caption(photo, prompts=prompts, zoom=0.0)
        for each in (predictor, without_views(predictor))
    )
    for name in ("masks", "semantic_tokens", "semantic_embeddings", "mask_tokens", "iou_scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_regions_without_a_mask_are_left_alone(photo: np.ndarray) -> None:
    predictor = tiny_predictor(zoom=0.5, view_dim=3, view_size=96, namer_size=SIDE)
    segmenter, namer = predictor.model.view_segmenter, predictor.model.view_namer
    assert segmenter is not None and namer is not None
    with torch.no_grad():
        segmenter.mask_head.bias.fill_(-1e6)
        namer.semantic_head.layers[-1].bias.fill_(1e3)  # no name goes unseen
    found, told = (
        predictor.predict_mask_concept_caption(photo, boxes=[SMALL, LARGE], zoom=zoom)
        for zoom in (None, 0.0)
    )
    assert not found.masks.any() and told.masks.any()
    np.testing.assert_allclose(found.semantic_tokens, told.semantic_tokens, atol=1e-5)
    assert np.abs(found.semantic_embeddings).max() < 100


def test_what_a_prompt_gets_does_not_depend_on_other_prompts(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    prompts = make_mixed_prompts(HEIGHT, WIDTH)
    together = predictor.predict_mask_concept_caption(photo, prompts=prompts)
    for row in (0, 1, 2, 5):
        alone = predictor.predict_mask_concept_caption(photo, prompts=prompts[[row]])
        for name in ("semantic_tokens", "semantic_embeddings"):
            found = getattr(together, name)[row]
            np.testing.assert_allclose(found, getattr(alone, name)[0], atol=1e-2, err_msg=name)


def test_without_a_namer_boxes_keep_their_view_of_the_encoder(photo: np.ndarray) -> None:
    outliner = tiny_predictor(zoom=0.5, view_dim=3, view_size=96)
    closer, once = (
        outliner.predict_mask_concept_caption(photo, boxes=[SMALL], zoom=zoom)
        for zoom in (0.5, 0.0)
    )
    assert np.abs(closer.mask_tokens - once.mask_tokens).max() > 1e-2
