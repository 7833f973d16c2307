"""Outlines: which prompts get one, from which view, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny_predictor import make_mixed_prompts, make_photo, tiny_predictor
from tokenize_anything import TAP, PointPrompts, TAPPredictor, zooming
from tokenize_anything.geometry import zoom_window
from tokenize_anything.image_transform import prepare_images, restore_masks
from tokenize_anything.view_outlines import OUTLINE_ZOOM, Outline, outline_regions
from tokenize_anything.views import WIDENING, known_extents
from tokenize_anything.zooming import VIEW_WEIGHT

HEIGHT, WIDTH, SIDE = 149, 211, 96
SMALL, LARGE = [101.0, 53.0, 124.0, 72.0], [5.0, 3.0, 203.0, 131.0]
WHOLE = (0, 0, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return tiny_predictor(zoom=0.5, view_dim=3, view_size=SIDE)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


@torch.inference_mode()
def outline_plainly(
    predictor: TAPPredictor, photo: np.ndarray, prompt: PointPrompts, window: tuple[int, ...]
) -> tuple[np.ndarray, float, torch.Tensor]:
    """One prompt in one window, by the public steps."""
    x0, y0, x1, y1 = window
    crop = np.ascontiguousarray(photo[y0:y1, x0:x1])
    pixels, (frame,) = prepare_images([crop], predictor.model.config, side=SIDE)
    coords = frame.to_model_frame(prompt.coords_xy - np.array([x0, y0], np.float32))
    segmenter = predictor.model.view_segmenter
    assert segmenter is not None
    asked = pixels, torch.from_numpy(coords), torch.from_numpy(prompt.labels.copy())
    found = segmenter(*asked, twice=True)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = restore_masks(found.mask_logits, frame)[0]
    return mask, float(found.iou_scores[0]), found.semantic_embeddings[0]


def without_segmenter(predictor: TAPPredictor) -> TAPPredictor:
    """A predictor of the same weights but those."""
    plain = tiny_predictor(zoom=0.5)
    state = predictor.model.state_dict()
    plain.model.load_state_dict({name: state[name] for name in plain.model.state_dict()})
    return plain


def window_of(low: np.ndarray, high: np.ndarray, room: float = 0.0) -> tuple[int, ...]:
    side = float((high - low).max()) * (1 + room) / OUTLINE_ZOOM
    return zoom_window((low + high) / 2, side, (HEIGHT, WIDTH))


def test_known_extents_are_those_of_boxes_and_many_clicks() -> None:
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[40:81, 100:141] = True
    prompts = PointPrompts.concatenate(
        [
            PointPrompts.from_points([[7.0, 9.0]]),
            PointPrompts.from_boxes([SMALL], [[[131, 60]]], [[0]]),
            PointPrompts.from_masks(drawn),
            PointPrompts.from_points([[[40, 20], [90, 60]]], [[1, 0]]),
        ]
    )
    found = known_extents(prompts)
    assert list(found) == [1, 2]
    np.testing.assert_array_equal(found[1], [[101, 53], [124, 72], [131, 60]])
    clicks = prompts.coords_xy[2][prompts.labels[2] == 1]
    low, high = clicks.min(axis=0), clicks.max(axis=0)
    room = WIDENING / 2 * (high - low).max()
    np.testing.assert_allclose(found[2], [low - room, high + room])


@pytest.mark.parametrize("kind", ["small", "large", "corner", "clicks", "corrected"])
def test_an_outline_is_that_of_its_view(
    predictor: TAPPredictor, photo: np.ndarray, kind: str
) -> None:
    boxes = {"small": SMALL, "large": LARGE, "corner": [0.0, 0.0, 40.0, 31.0]}
    if kind in boxes:
        prompt = PointPrompts.from_boxes([boxes[kind]])
        low, high = np.array(boxes[kind]).reshape(2, 2)
        window = WHOLE if kind == "large" else window_of(low, high)
    elif kind == "corrected":
        prompt = PointPrompts.from_boxes([SMALL], [[[131, 60], [110, 60]]], [[0, 1]])
        window = window_of(np.array([101.0, 53.0]), np.array([131.0, 72.0]))
    else:
        drawn = np.zeros((HEIGHT, WIDTH), bool)
        drawn[40:81, 100:141] = True
        prompt = PointPrompts.from_masks(drawn)
        clicks = prompt.coords_xy[0][prompt.labels[0] == 1].astype(float)
        window = window_of(clicks.min(axis=0), clicks.max(axis=0), WIDENING)
    mask, score, embedding = outline_plainly(predictor, photo, prompt, window)
    found = predictor.predict_mask_concept_caption(photo, prompts=prompt)
    np.testing.assert_array_equal(found.masks[0], mask)
    assert found.iou_scores[0] == pytest.approx(score, rel=1e-4)
    told = without_segmenter(predictor).predict_mask_concept_caption(photo, prompts=prompt)
    np.testing.assert_allclose(found.semantic_tokens, told.semantic_tokens, atol=1e-5)
    assert found.mask_index == told.mask_index
    expected = F.normalize(torch.from_numpy(told.semantic_embeddings[0].copy()), dim=-1)
    expected = expected + VIEW_WEIGHT * F.normalize(embedding, dim=-1)
    np.testing.assert_allclose(found.semantic_embeddings[0], expected, atol=1e-4)


def test_what_a_prompt_gets_does_not_depend_on_the_others(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    prompts = make_mixed_prompts(HEIGHT, WIDTH)
    extents = known_extents(prompts)
    assert len(extents) > 2

    def ask(rows: list[int]) -> list[Outline]:
        model = predictor.model
        with torch.inference_mode():
            return list(outline_regions(model, photo, prompts, {row: extents[row] for row in rows}))

    together = ask(list(extents))
    assert [outline.row for outline in together] == list(extents)
    for outline in together:
        (alone,) = ask([outline.row])
        assert float(alone.iou_score) == pytest.approx(float(outline.iou_score), rel=1e-4)
        assert (alone.mask != outline.mask).mean() < 1e-3


def test_a_single_look_is_as_without_it(predictor: TAPPredictor, photo: np.ndarray) -> None:
    found, expected = (
        each.predict_mask_concept_caption(photo, boxes=[SMALL], zoom=0.0)
        for each in (predictor, without_segmenter(predictor))
    )
    np.testing.assert_array_equal(found.masks, expected.masks)
    np.testing.assert_array_equal(found.semantic_embeddings, expected.semantic_embeddings)


def outline_around(
    predictor: TAPPredictor, photo: np.ndarray, prompt: PointPrompts, mask: np.ndarray
) -> tuple[np.ndarray, float]:
    """The outline in the window of a mask and of the clicks."""
    rows, columns = np.nonzero(mask)
    x, y = prompt.coords_xy[0][prompt.labels[0] != 4].T.astype(float)
    low = np.array([min(columns.min(), *x), min(rows.min(), *y)])
    high = np.array([max(columns.max() + 1, *x), max(rows.max() + 1, *y)])
    side = float((high - low).max()) / OUTLINE_ZOOM
    window = zoom_window((low + high) / 2, side, (HEIGHT, WIDTH)) if side < 0.85 * WIDTH else WHOLE
    outline, score, _ = outline_plainly(predictor, photo, prompt, window)
    return outline, score


@pytest.mark.parametrize("clicks", [[[101, 67]], [[101, 67], [60, 20]]])
@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_few_clicks_take_their_extent_from_the_mask_there_was(
    photo: np.ndarray, clicks: list[list[int]], bias: float
) -> None:
    """A single click keeps its mask unless the outline scores higher; two clicks never do."""
    predictor = tiny_predictor(zoom=0.5, view_dim=3, view_size=SIDE)
    segmenter = predictor.model.view_segmenter
    assert segmenter is not None
    with torch.no_grad():
        segmenter.iou_head.layers[-1].bias.fill_(bias)
    prompt = PointPrompts.from_points([clicks], [[1, 0][: len(clicks)]])
    told = without_segmenter(predictor).predict_mask_concept_caption(photo, prompts=prompt)
    mask, score = outline_around(predictor, photo, prompt, told.masks[0])
    closer, closer_score = outline_around(predictor, photo, prompt, mask)
    if closer_score > score:
        mask, score = closer, closer_score
    found = predictor.predict_mask_concept_caption(photo, prompts=prompt)
    is_outlined = len(clicks) == 2 or bias > 0
    np.testing.assert_array_equal(found.masks[0], mask if is_outlined else told.masks[0])
    expected = score if is_outlined else told.iou_scores[0]
    assert found.iou_scores[0] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(found.semantic_tokens, told.semantic_tokens, atol=1e-5)


@pytest.mark.parametrize("scores", [(0.4, 0.6), (0.6, 0.4)])
def test_the_second_round_counts_where_it_scores_higher(
    predictor: TAPPredictor,
    photo: np.ndarray,
    scores: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outlines with given scores: the windows of random weights all give the same."""
    given = []

    def outline(
        model: TAP,
        rgb: np.ndarray,
        prompts: PointPrompts,
        extents: Mapping[int, np.ndarray],
        corrected: Mapping[int, np.ndarray],
    ) -> Iterator[Outline]:
        assert not corrected
        for row in extents:
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[30 : 50 + 10 * len(given), 40:90] = True
            given.append(mask)
            score = torch.tensor(scores[len(given) - 1])
            yield Outline(row, mask, score, torch.ones(predictor.model.config.semantic_dim))

    monkeypatch.setattr(zooming, "outline_regions", outline)
    prompt = PointPrompts.from_points([[[101, 67], [60, 20]]], [[1, 0]])
    found = predictor.predict_mask_concept_caption(photo, prompts=prompt)
    best = int(np.argmax(scores))
    assert len(given) == 2
    np.testing.assert_array_equal(found.masks[0], given[best])
    assert found.iou_scores[0] == pytest.approx(scores[best])
