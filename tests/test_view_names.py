"""What the namer says about regions, each in a view with its box in the middle, or in two."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny_predictor import make_mixed_prompts, make_photo, tiny_predictor, write_plainly
from tokenize_anything import PointPrompts, RegionPredictions, TAPPredictor
from tokenize_anything.centred_views import CentredView
from tokenize_anything.modeling import ViewNamer
from tokenize_anything.view_names import VIEWS_AT_ONCE, RegionName, name_regions, wide_zoom

HEIGHT, WIDTH, SIDE, WIDE_SIDE = 149, 211, 64, 96
PADDING = (123, 116, 103)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


def make_predictor(wide_size: int = 0) -> TAPPredictor:
    return tiny_predictor(zoom=0.5, view_dim=3, view_size=96, namer_size=SIDE, wide_size=wide_size)


@pytest.fixture(scope="module", params=[0, WIDE_SIDE], ids=["one look", "two looks"])
def predictor(request: pytest.FixtureRequest) -> TAPPredictor:
    return make_predictor(request.param)


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
    """Token and embedding of one region, with views normalised by hand."""
    namer = predictor.model.view_namer
    assert namer is not None
    view = CentredView.around(box, photo.shape[:2], SIDE, 0.7)
    corners = torch.from_numpy(view.box_in_view(box))
    pixels = normalize_plainly(predictor, view.show(photo, PADDING))
    inside = torch.from_numpy(view.show(mask).astype(np.float32) / 255)
    features = namer(*(value[None] for value in (to_tensor(pixels), corners, inside)))
    if namer.wide is not None:
        around = look_around_plainly(predictor, namer, photo, box)
        features = torch.cat([features, around], dim=1)
    token = semantic_token + namer.token_head(features)[0]
    return token, namer.semantic_head(token)


def look_around_plainly(
    predictor: TAPPredictor, namer: ViewNamer, photo: np.ndarray, box: np.ndarray
) -> torch.Tensor:
    """Features (1,F) of a wider view."""
    share = max(0.2, max((box[2:] - box[:2]).max(), 4) / (1.2 * max(photo.shape[:2])))
    view = CentredView.around(box, photo.shape[:2], WIDE_SIDE, share)
    low, high = view.box_in_view(box).reshape(2, 2)
    start = np.arange(WIDE_SIDE)[:, None]
    covered = (np.minimum(start + 1, high) - np.maximum(start, low)).clip(0, 1)
    drawn = np.outer(covered[:, 1], covered[:, 0]).astype(np.float32)
    pixels = normalize_plainly(predictor, view.show(photo, PADDING))
    return namer.look_around(to_tensor(pixels)[None], torch.from_numpy(drawn)[None])


def normalize_plainly(predictor: TAPPredictor, shown: np.ndarray) -> np.ndarray:
    facts = predictor.model.config.pixels
    assert facts.channel_order == "BGR"
    return (shown[..., ::-1].astype(np.float32) - facts.mean) / facts.std


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))


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


@pytest.mark.parametrize(
    ("box", "image_hw", "share"),
    [
        ([10.0, 20.0, 30.0, 35.0], (100, 200), 0.2),  # a small one
        ([0.0, 0.0, 48.0, 9.0], (100, 200), 0.2),  # five times its side is a fifth over the photo
        ([30.0, 7.0, 90.0, 50.0], (100, 200), 0.25),
        ([30.0, 7.0, 73.0, 67.0], (200, 100), 0.25),
        ([0.0, 0.0, 200.0, 100.0], (100, 200), 1 / 1.2),  # the whole photo
        ([-100.0, 0.0, 300.0, 100.0], (100, 200), 2 / 1.2),  # more than that
        ([47.0, 31.0, 48.0, 32.0], (100, 200), 0.2),  # one pixel
        ([3.0, 4.0, 4.0, 5.0], (10, 7), 4 / 12),  # the same in a tiny photo
        ([60.5, 31.0, 60.5, 31.0], (100, 200), 0.2),  # nothing
    ],
)
def test_wider_views_show_five_boxes_and_no_more_than_the_photo(
    box: list[float], image_hw: tuple[int, int], share: float
) -> None:
    """Or a fifth more than that."""
    found = wide_zoom(box, image_hw)
    assert type(found) is float and found == pytest.approx(share)
    view = CentredView.around(box, image_hw, WIDE_SIDE, found)
    assert view.side / view.scale <= 1.2 * max(image_hw) + 1e-6


@pytest.mark.parametrize("wide_size", [0, WIDE_SIDE])
def test_what_is_around_is_seen_in_wider_views_alone(photo: np.ndarray, wide_size: int) -> None:
    """With a region 40 wide, of which the wider view shows 80 pixels to each side."""
    predictor, boxes = make_predictor(wide_size), {0: np.array([90.0, 60.0, 130.0, 80.0])}
    masks = np.zeros((1, HEIGHT, WIDTH), bool)
    masks[0, 60:80, 90:130] = True
    changed = photo.copy()
    changed[:, :60] = 0
    before, after = (ask(predictor, image, masks, boxes)[0] for image in (photo, changed))
    gap = (after.semantic_token - before.semantic_token).abs().max()
    assert gap > 1e-2 if wide_size else gap == 0


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
        np.testing.assert_allclose(found.semantic_embeddings[row], embedding, rtol=1e-5, atol=5e-3)
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
    predictor = make_predictor()
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
