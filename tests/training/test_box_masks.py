"""Masks of boxes moved by a constant that goes into the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.tiny import tiny_tap
from tests.tiny_predictor import sharpen
from tokenize_anything import PointPrompts, TAPPredictor
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.training.box_masks import (
    NEAR_EDGE,
    collect_edge_channels,
    constant_direction,
    shift_box_masks,
)


def test_a_constant_direction_is_found_exactly():
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(101, 7, generator=generator)
    wanted = torch.tensor([0.5, -2.0, 0.0, 1.0, 0.25, 3.0, -1.0])
    channels[:, 3] = 1 - (channels @ wanted - channels[:, 3])  # now the product is 1 everywhere
    found, share = constant_direction(channels)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert share == pytest.approx(1)
    _, share = constant_direction(torch.randn(5003, 7, generator=generator))
    assert share < 0.01  # noise has no constant direction


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match=r"channels: expected \(N,C\) .* got \(3, 7\)"):
        constant_direction(torch.zeros(3, 7))


def test_channels_are_those_near_the_edges_of_boxes(tmp_path: Path):
    records = read_regions([write_photos(tmp_path)], tmp_path / "images")[0]
    model = sharpen(tiny_tap())
    channels = collect_edge_channels(model, records)
    predictor, expected = TAPPredictor(model), 0
    for record in records:
        boxes = PointPrompts.from_boxes(np.stack([region.box_xyxy for region in record.regions]))
        outputs = predictor.decode_regions(predictor.encode_images(read_image(record)), boxes)
        expected += int((outputs.mask_logits[:, 0].abs() < NEAR_EDGE).sum())
    assert channels.shape == (expected, model.config.decoder_dim // 8)
    assert expected > len(records)


def test_only_the_first_slot_moves_and_by_the_constant():
    model, photo = sharpen(tiny_tap()), np.random.default_rng(3).integers(0, 256, (41, 67, 3))
    predictor, box = TAPPredictor(model), PointPrompts.from_boxes([[5, 7, 30, 37]])
    encoded = predictor.encode_images(photo.astype(np.uint8))
    before = predictor.decode_regions(encoded, box)
    direction = torch.linspace(-1, 1, model.config.decoder_dim // 8)
    shift_box_masks(model, direction, 0.75)
    after = predictor.decode_regions(encoded, box)
    torch.testing.assert_close(after.mask_logits[:, 1:], before.mask_logits[:, 1:])
    torch.testing.assert_close(after.iou_scores, before.iou_scores)
    shift_box_masks(model, direction, -0.75)
    zero = model.image_decoder.mask_heads[0].layers[2]
    with torch.no_grad():
        zero.weight.zero_()
        zero.bias.copy_(direction)
    moved = (
        before.mask_logits[:, :1] + 0.75 * predictor.decode_regions(encoded, box).mask_logits[:, :1]
    )
    torch.testing.assert_close(after.mask_logits[:, :1], moved, rtol=1e-4, atol=1e-4)
