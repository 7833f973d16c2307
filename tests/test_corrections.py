"""Corrective clicks: which answers are shown to the network for outlines, and what it is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.clicking import (
    HEIGHT,
    SIZES,
    WIDTH,
    all_clicks,
    answer_plainly,
    make_predictor,
    networks_of,
)
from tests.tiny_predictor import make_photo, tiny_predictor
from tokenize_anything import PointPrompts, TAPPredictor
from tokenize_anything.geometry import zoom_window
from tokenize_anything.image_transform import ImageFrame, prepare_images, restore_masks
from tokenize_anything.training.part_training import copy_shared
from tokenize_anything.view_outlines import OUTLINE_ZOOM, show_masks
from tokenize_anything.views import View, known_extents

VIEW = 96  # pixels


def make_corrector() -> TAPPredictor:
    """The weights of `make_predictor`, and some to which the mask that is corrected matters."""
    source = make_predictor(namer_size=0)
    predictor = tiny_predictor(**(SIZES | {"namer_size": 0, "view_corrects": True}))
    state = source.model.state_dict()
    others = {name: value for name, value in state.items() if "view_segmenter.stem" not in name}
    predictor.model.load_state_dict(others, strict=False)
    outliner = networks_of(predictor)[1]
    copy_shared(outliner, networks_of(source)[1])
    with torch.no_grad():
        weight = outliner.get_parameter("stem.0.weight")
        noise = torch.randn(weight[:, 6:].shape, generator=torch.Generator().manual_seed(0))
        weight[:, 6:] = noise
    return predictor


@pytest.fixture(scope="module")
def predictor() -> TAPPredictor:
    return make_corrector()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return make_photo(HEIGHT, WIDTH)


def mask_as_picture(mask: np.ndarray, predictor: TAPPredictor) -> torch.Tensor:
    """What a window's mask (h,w) looks like if it is taken for a photo, (1,v,v) in [0, 1]."""
    config = predictor.model.config
    picture = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
    pixels, (frame,) = prepare_images([picture], config, side=VIEW)
    levels = pixels[:, 0] * config.pixels.std[0] + config.pixels.mean[0]
    height, width = frame.scaled_hw
    shown = torch.zeros(1, VIEW, VIEW)
    shown[:, :height, :width] = levels[:, :height, :width] / 255
    return shown


@torch.inference_mode()
def outline_plainly(
    predictor: TAPPredictor,
    photo: np.ndarray,
    prompt: PointPrompts,
    extent: np.ndarray,
    corrected: np.ndarray | None,
) -> tuple[np.ndarray, float]:
    """The outline of one prompt in the window of an extent (N,2), by the public steps."""
    low, high = extent.min(axis=0), extent.max(axis=0)
    side = float((high - low).max()) / OUTLINE_ZOOM
    window = (0, 0, WIDTH, HEIGHT)
    if side < 0.85 * max(HEIGHT, WIDTH):
        window = zoom_window((low + high) / 2, side, (HEIGHT, WIDTH))
    x0, y0, x1, y1 = window
    crop = np.ascontiguousarray(photo[y0:y1, x0:x1])
    pixels, (frame,) = prepare_images([crop], predictor.model.config, side=VIEW)
    coords = frame.to_model_frame(prompt.coords_xy - np.array([x0, y0], np.float32))
    shown = torch.zeros(1, VIEW, VIEW)
    if corrected is not None:
        shown = mask_as_picture(corrected[y0:y1, x0:x1], predictor)
    asked = pixels, torch.from_numpy(coords), torch.from_numpy(prompt.labels.copy()), shown
    segmenter = networks_of(predictor)[1]
    found = segmenter(*asked, twice=True)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = restore_masks(found.mask_logits, frame)[0]
    return mask, float(found.iou_scores[0])


def around_mask(mask: np.ndarray, prompt: PointPrompts) -> np.ndarray:
    """Corners of a mask's box, and the clicks."""
    rows, columns = np.nonzero(mask)
    corners = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
    clicks = prompt.coords_xy[0][prompt.labels[0] != 4]
    return np.concatenate([np.array(corners, float), clicks.astype(float)])


def test_from_the_second_click_on_outlines_correct_the_answer(
    predictor: TAPPredictor, photo: np.ndarray
) -> None:
    clicks = [[101.0 + 3 * k, 67.0 - 5 * (k % 3)] for k in range(6)]
    many = PointPrompts.from_points([[*clicks, [30.0, 120.0]]], [[1] * 6 + [0]])
    prompts = PointPrompts.concatenate([all_clicks(), many])
    found = predictor.predict_mask_concept_caption(photo, prompts=prompts)
    kinds = []
    for row in range(len(prompts)):
        prompt = prompts[row]
        answer, score, *_ = answer_plainly(predictor, photo, prompt)
        mask, labels = answer, prompt.labels[0]
        if (labels == 1).sum() >= 5 and not (labels == 0).any():  # a sketch says how large it is
            kinds.append("sketch")
            mask, score = outline_plainly(
                predictor, photo, prompt, known_extents(prompt)[0], corrected=None
            )
        elif (labels != 4).sum() > 1:
            kinds.append("corrected")
            mask, score = outline_plainly(
                predictor, photo, prompt, around_mask(answer, prompt), corrected=answer
            )
            assert (mask != answer).mean() > 1e-3
            unaware, _ = outline_plainly(
                predictor, photo, prompt, around_mask(answer, prompt), corrected=None
            )
            assert (mask != unaware).mean() > 1e-3  # or this would show little
        assert (found.masks[row] != mask).mean() < 1e-3
        assert found.iou_scores[row] == pytest.approx(score, rel=1e-3, abs=1e-3)
    assert kinds.count("corrected") == 5 and kinds.count("sketch") == 1


def test_an_empty_answer_is_kept(photo: np.ndarray) -> None:
    predictor = make_corrector()
    with torch.no_grad():
        networks_of(predictor)[0].get_parameter("mask_head.bias").fill_(-1e6)
    found = predictor.predict_mask_concept_caption(
        photo, points=[[[101, 67], [60, 20]]], labels=[[1, 0]]
    )
    assert not found.masks.any()


def test_what_is_corrected_stays_as_it_was(predictor: TAPPredictor, photo: np.ndarray) -> None:
    """Rows do not depend on each other, whatever is corrected beside them."""
    prompts = PointPrompts.concatenate([all_clicks(), PointPrompts.from_boxes([[20, 30, 90, 99]])])
    together = predictor.predict_mask_concept_caption(photo, prompts=prompts)
    for row in range(len(prompts)):
        alone = predictor.predict_mask_concept_caption(photo, prompts=prompts[row])
        assert (alone.masks[0] != together.masks[row]).mean() < 1e-3


# --- masks in views --------------------------------------------------------------------------


def test_masks_are_shown_as_the_photo_is(predictor: TAPPredictor) -> None:
    generator = np.random.default_rng(0)
    masks = {
        2: generator.random((HEIGHT, WIDTH)) < 0.4,
        5: np.pad(np.ones((31, 47), bool), ((17, HEIGHT - 48), (101, WIDTH - 148))),
    }
    views = [
        View(2, (13, 17, 113, 86)), View(3, (0, 0, WIDTH, HEIGHT)), View(5, (90, 11, 123, 64)),
    ]  # fmt: skip
    frames = [
        ImageFrame.for_size(y1 - y0, x1 - x0, VIEW)
        for x0, y0, x1, y1 in (view.window_xyxy for view in views)
    ]
    shown = show_masks(masks, views, frames)
    assert shown.shape == (3, VIEW, VIEW) and not shown[1].any()
    for place in (0, 2):
        x0, y0, x1, y1 = views[place].window_xyxy
        expected = mask_as_picture(masks[views[place].row][y0:y1, x0:x1], predictor)[0]
        torch.testing.assert_close(shown[place], expected, atol=1e-4, rtol=0)
    height, width = frames[0].scaled_hw
    assert not shown[0, height:].any() and not shown[0, :, width:].any() and height < VIEW
