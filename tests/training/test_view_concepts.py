"""The naming head of the view segmenter, trained alone on kept features."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.photos import SHAPES, write_photos
from tests.tiny import tiny_config, tiny_tap
from tests.tiny_predictor import tiny_vocabulary
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.training.token_heads import HeadConfig
from tokenize_anything.training.view_concepts import collect_view_features, fit_view_concepts
from tokenize_anything.view_outlines import choose_views
from tokenize_anything.views import known_extents, prepare_views

VOCABULARY = tiny_vocabulary((*SHAPES[::-1], "cloud"))


def make_model() -> TAP:
    return tiny_tap(tiny_config(zoom=0.5, view_dim=2, view_size=32))


def test_features_are_those_that_outlines_are_named_by(tmp_path: Path) -> None:
    records, texts = read_regions([write_photos(tmp_path / "set")], tmp_path / "set" / "images")
    model = make_model()
    assert model.view_segmenter is not None
    features, names = collect_view_features(model, records, texts, VOCABULARY)
    expected, rows = [], []
    for record in records:
        rgb = read_image(record)
        for photo in (rgb, np.ascontiguousarray(rgb[:, ::-1])):
            for region in record.regions:
                text = texts.texts[region.text_index] if region.text_index >= 0 else ""
                if text not in SHAPES or region.is_whole_image:
                    continue
                x0, y0, x1, y1 = region.box_xyxy
                if photo is not rgb:
                    x0, x1 = record.width - x1, record.width - x0
                prompt = PointPrompts.from_boxes([[x0, y0, x1, y1]])
                views = choose_views(known_extents(prompt), photo.shape[:2])
                seen = prepare_views(photo, prompt, views, model.config, side=32)
                with torch.no_grad():
                    one = model.view_segmenter(seen.pixels, seen.coords_xy, seen.labels)
                expected.append(one.semantic_embeddings[0])
                rows.append(VOCABULARY.names.index(text))
    found = model.view_segmenter.semantic_head(features)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-3)
    assert names.tolist() == rows and len(rows) > 12
    alone, _ = collect_view_features(model, records, texts, VOCABULARY, mirrored=False)
    assert 2 * len(alone) == len(features)


def test_learns_the_names_and_changes_the_head_alone() -> None:
    model = make_model()
    assert model.view_segmenter is not None
    generator = torch.Generator().manual_seed(3)
    places = torch.randn(len(VOCABULARY), 40, generator=generator) * 2
    names = np.arange(60) % len(VOCABULARY)
    features = places[names] + 0.1 * torch.randn(60, 40, generator=generator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = HeadConfig(batch_size=17, num_epochs=40, token_noise=0.05, token_dropout=0.0)
    fit_view_concepts(model, features, names, VOCABULARY, config)
    with torch.no_grad():
        log_probs = VOCABULARY.log_probs(model.view_segmenter.semantic_head(features))
    assert (log_probs.argmax(dim=1).numpy() == names).all()
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert changed == {name for name in before if name.startswith("view_segmenter.semantic_head")}


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((7, 39), 7, "features: expected (7,40), a row for each of at least one name, got (7, 39)"),
        ((7, 40), 6, "features: expected (6,40)"),
        ((0, 40), 0, "features: expected (0,40), a row for each of at least one name"),
    ],
)
def test_bad_input(shape: tuple[int, int], count: int, message: str) -> None:
    names = np.zeros(count, np.int64)
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_view_concepts(make_model(), torch.zeros(shape), names, VOCABULARY)
    with pytest.raises(ValueError, match="expected one with a view segmenter, got view_dim 0"):
        fit_view_concepts(tiny_tap(), torch.zeros(shape), names, VOCABULARY)
