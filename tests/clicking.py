"""Predictors with networks for clicks and outlines, and what they say by the public steps."""

from __future__ import annotations

import numpy as np
import torch

from tests.tiny_predictor import make_photo, tiny_predictor
from tokenize_anything import PointPrompts, TAPPredictor
from tokenize_anything.click_windows import list_windows
from tokenize_anything.image_transform import normalize_pixels, pixel_padding
from tokenize_anything.modeling import ClickSegmenter, ViewSegmenter

HEIGHT, WIDTH, SIDE = 149, 211, 64
SMALL = [101.0, 53.0, 124.0, 72.0]
SIZES = {"zoom": 0.5, "view_dim": 3, "view_size": 96, "namer_size": 64, "click_size": SIDE}


def make_predictor(**changes: float) -> TAPPredictor:
    """One whose masks have a shape, and whose best window is not always the same.

    `changes` are of the configuration.
    """
    predictor = tiny_predictor(**(SIZES | changes))
    windows = list_windows((101, 67), (HEIGHT, WIDTH), SIDE)
    shown = np.stack([window.show(make_photo(HEIGHT, WIDTH)) for window in windows])
    pixels = normalize_pixels(torch.from_numpy(shown), predictor.model.config.pixels)
    click = torch.full((5, 1, 2), 31.5), torch.ones(5, 1)
    clicker, outliner = networks_of(predictor)
    with torch.no_grad():
        for network in (clicker, outliner):
            for name, value in network.named_parameters():
                if value.ndim > 1:
                    value.mul_(0.05 if name.startswith("mixer") else 0.5)
            for head in (network.mask_head, network.iou_head.layers[-1]):
                head.weight.mul_(30.0)
        said = clicker(pixels[None], click[0][None], click[1][:1]), outliner(pixels, *click)
        for network, outputs in zip((clicker, outliner), said, strict=True):
            network.mask_head.bias.sub_(outputs.mask_logits.median())
    return predictor


def networks_of(predictor: TAPPredictor) -> tuple[ClickSegmenter, ViewSegmenter]:
    model = predictor.model
    assert model.click_segmenter is not None and model.view_segmenter is not None
    return model.click_segmenter, model.view_segmenter


def all_clicks() -> PointPrompts:
    """One to four clicks, a sketch, some at corners of the photo; a row each."""
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[40:81, 100:141] = True
    return PointPrompts.concatenate(
        [
            PointPrompts.from_points([[101, 67]]),
            PointPrompts.from_points([[[101, 67], [60, 20]]], [[1, 0]]),
            PointPrompts.from_points([[[140, 90], [150, 99], [117, 83], [31, 7]]], [[1, 1, 1, 0]]),
            PointPrompts.from_masks(drawn),
            PointPrompts.from_points([[[103, 66], [117, 83], [40, 12]]], [[1, 1, 0]]),
            PointPrompts.from_points([[0, 0], [WIDTH, HEIGHT], [17, 130]]),
            PointPrompts.from_points([[[80, 31], [9, 9]]], [[0, 1]]),
        ]
    )


@torch.inference_mode()
def answer_plainly(
    predictor: TAPPredictor, photo: np.ndarray, prompt: PointPrompts
) -> tuple[np.ndarray, float, int, np.ndarray]:
    """Mask, score and window of one prompt, and the scores of all windows, by the public steps."""
    model, network = predictor.model, networks_of(predictor)[0]
    labels = prompt.labels[0, : int(prompt.num_points[0])]
    points = prompt.coords_xy[0, : len(labels)]
    inside = points[labels == 1]
    gaps = ((inside - inside.mean(axis=0)) ** 2).sum(axis=1)
    windows = list_windows(inside[gaps.argmin()], (HEIGHT, WIDTH), SIDE)
    shown = [window.show(photo, pixel_padding(model.config.pixels)) for window in windows]
    pixels = normalize_pixels(torch.from_numpy(np.stack(shown)), model.config.pixels)[None]
    coords = torch.from_numpy(np.stack([window.points_in_view(points) for window in windows]))
    asked = pixels, coords[None], torch.from_numpy(labels.copy())[None]
    found = network(*asked)
    scores = found.iou_scores[0].numpy()
    best = int(scores.argmax())
    mask = windows[best].restore_mask(found.mask_logits[0, best].numpy(), (HEIGHT, WIDTH))
    return mask, float(scores[best]), best, scores
