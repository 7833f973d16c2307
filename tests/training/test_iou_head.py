"""The IoU head, trained alone on what a model really gets right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.tiny import tiny_config, tiny_tap
from tests.tiny_predictor import sharpen
from tokenize_anything import TAPPredictor
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.data.samples import RegionAnnotation
from tokenize_anything.geometry import decode_rle, innermost_point
from tokenize_anything.training.iou_head import (
    IouSamples,
    IouSampling,
    collect_iou_samples,
    draw_prompts,
    fit_iou_head,
    ious_in_view,
)
from tokenize_anything.training.token_heads import HeadConfig
from tokenize_anything.views import View


def records_of(folder: Path):
    return read_regions([write_photos(folder)], folder / "images")[0]


def test_samples_are_what_the_predictor_says(tmp_path):
    """Boxes without noise, on the photo alone: the routed slot and its mask are the predictor's."""
    records = records_of(tmp_path)
    model = sharpen(tiny_tap())
    samples = collect_iou_samples(model, records, IouSampling(box_noise=0.0))
    regions = sum(region.rle is not None for record in records for region in record.regions)
    assert samples.tokens.shape == (2 * regions, model.config.decoder_dim)
    assert samples.ious.shape == (2 * regions, 4)
    assert samples.is_box.tolist() == [False, True] * regions
    with torch.no_grad():
        scores = model.image_decoder.iou_head(samples.tokens)[samples.is_box, 0]
    expected = []
    for record in records:
        for region in record.regions:
            if region.rle is not None:
                found = TAPPredictor(model).predict_mask_concept_caption(
                    read_image(record), boxes=[region.box_xyxy]
                )
                mask, truth = found.masks[0], decode_rle(region.rle)
                expected.append((found.iou_scores[0], (mask & truth).sum() / (mask | truth).sum()))
    got = np.stack([scores.numpy(), samples.ious[samples.is_box, 0].numpy()], axis=1)
    order = lambda pairs: np.array(sorted(map(tuple, np.round(pairs, 4).tolist())))  # noqa: E731
    np.testing.assert_allclose(order(got), order(np.array(expected)), atol=2e-4)


def test_a_model_that_looks_twice_is_asked_in_its_views(tmp_path):
    records = records_of(tmp_path)
    once = collect_iou_samples(sharpen(tiny_tap()), records)
    twice = collect_iou_samples(sharpen(tiny_tap(tiny_config(zoom=0.5))), records)
    assert len(twice.tokens) > len(once.tokens)
    assert ((twice.ious >= 0) & (twice.ious <= 1)).all()


def test_what_a_view_cuts_off_counts_as_missed():
    truth = np.zeros((7, 11), bool)
    truth[2:5, 3:9] = True  # 18 pixels, 9 of them in the view
    found = np.zeros((4, 5, 6), bool)
    found[1, :, :] = True  # 30 pixels
    found[2, 2:5, 3:6] = True  # the 9
    ious = ious_in_view(found, truth, View(0, (0, 0, 6, 5)))
    np.testing.assert_allclose(ious, [0, 9 / 39, 9 / 18, 0])


def test_clicks_lie_on_their_region_and_boxes_near_it():
    mask = np.zeros((31, 53), bool)
    mask[5:9, 30:50] = True
    region = RegionAnnotation(box_xyxy=(30, 5, 50, 9))
    rng, places = np.random.default_rng(0), []
    for _ in range(30):
        click, box = draw_prompts(region, mask, IouSampling(box_noise=0.05), rng)
        x, y = click.coords_xy[0, 0].astype(int)
        assert mask[y, x]
        places.append((x, y))
        assert np.abs(box.coords_xy[0].ravel() - [30, 5, 50, 9]).max() <= 0.2 * 20
        assert np.abs(box.coords_xy[0, :, 1] - [5, 9]).max() <= 0.2 * 4
    assert 8 <= places.count(innermost_point(mask)) <= 22  # half of them, the others anywhere
    assert len(set(places)) >= 6


def test_seed_and_limits(tmp_path):
    records = records_of(tmp_path)
    model = sharpen(tiny_tap())
    one = collect_iou_samples(model, records, IouSampling(max_images=2, regions_per_image=1))
    assert len(one.tokens) == 4
    again = collect_iou_samples(model, records, IouSampling(max_images=2, regions_per_image=1))
    assert torch.equal(one.tokens, again.tokens) and torch.equal(one.ious, again.ious)


def test_fit_lowers_the_error_and_changes_the_head_alone():
    model = tiny_tap()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(90, model.config.decoder_dim, generator=generator)
    ious = tokens[:, :4].sigmoid()
    samples = IouSamples(tokens, ious, torch.arange(90) % 3 == 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def errors() -> tuple[float, float]:
        with torch.no_grad():
            squares = (model.image_decoder.iou_head(tokens) - ious).square()
        return float(squares[samples.is_box, 0].mean()), float(squares[~samples.is_box, 1:].mean())

    box, click = errors()
    config = HeadConfig(token_dropout=0.0, token_noise=0.0, batch_size=31, num_epochs=60)
    fit_iou_head(model, samples, config)
    assert errors()[0] < 0.3 * box and errors()[1] < 0.3 * click
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert changed == {name for name in before if "iou_head" in name}


def test_bad_samples():
    nothing = IouSamples(torch.zeros(0, 32), torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"samples: expected tokens .S,.* of at least one sample"):
        fit_iou_head(tiny_tap(), nothing)
