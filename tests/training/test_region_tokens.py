"""Tokens of boxes and of points of predicted masks: against the long way, and kept on disk."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.tiny import tiny_config, tiny_tap
from tests.tiny_predictor import sharpen
from tokenize_anything import TAPPredictor
from tokenize_anything.data.coco_lvis import read_regions
from tokenize_anything.data.region_captions import CaptionedRegion, captioned_regions
from tokenize_anything.data.region_dataset import read_image
from tokenize_anything.image_transform import ImageFrame, prepare_images, restore_masks
from tokenize_anything.modeling import RegionOutputs
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.training import semantic_token_cache
from tokenize_anything.training.caption_config import RegionTokenConfig
from tokenize_anything.training.region_tokens import RegionTokens, draw_points
from tokenize_anything.training.semantic_token_cache import (
    fill_cache,
    load_tokens,
    read_cache,
    save_tokens,
    split_blocks,
    tokens_key,
    weights_digest,
)


def make_source(folder: Path, *, seed: int = 5, **changes: object) -> RegionTokens:
    if not folder.exists():
        write_photos(folder)
    records, texts = read_regions([folder / "photos.json"], folder / "images")
    config = RegionTokenConfig(**({"point_views": 3, "max_points": 4} | changes))  # type: ignore
    regions = captioned_regions(records, texts)
    return RegionTokens(sharpen(tiny_tap()), records, regions, config, seed)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> RegionTokens:
    return make_source(tmp_path_factory.mktemp("tokens") / "set")


@torch.no_grad()
def decode_plainly(
    source: RegionTokens, row: int, prompts: PointPrompts
) -> tuple[RegionOutputs, ImageFrame]:
    """All slots of one prompt on the image of a region, with nothing shared."""
    path = source.records[source.regions[row].image_index].path
    pixels, (frame,) = prepare_images([path], source.model.config)
    context = source.model.prepare_regions(source.model.encode_images(pixels))
    coords = torch.from_numpy(frame.to_model_frame(prompts.coords_xy))
    return source.model.decode_regions(
        context, coords[None], torch.tensor(prompts.labels)[None]
    ), frame


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["semantic", "mask"])
def test_view_0_is_the_token_of_the_box(source: RegionTokens, kind: str) -> None:
    asked = RegionTokens(
        source.model, source.records, source.regions,
        RegionTokenConfig(token=kind, point_views=0), seed=0,  # type: ignore[arg-type]
    )  # fmt: skip
    rows = np.array([0, 3, len(source.regions) - 1])
    tokens = asked.select(rows, np.zeros(3, np.int64))
    for token, row in zip(tokens, rows.tolist(), strict=True):
        box = PointPrompts.from_boxes([source.regions[row].box_xyxy])
        outputs, _ = decode_plainly(source, row, box)
        wanted = outputs.semantic_tokens if kind == "semantic" else outputs.mask_tokens
        torch.testing.assert_close(token, wanted[0, 0], rtol=1e-4, atol=1e-4)


def test_other_views_are_points_of_the_predicted_mask(source: RegionTokens) -> None:
    """Points are drawn from the mask of the box, brought to the photo's size."""
    seen = 0
    for row in range(len(source.regions)):
        box = PointPrompts.from_boxes([source.regions[row].box_xyxy])
        outputs, frame = decode_plainly(source, row, box)
        mask = restore_masks(outputs.mask_logits[:, :1], frame)[0]
        if not mask.any():
            continue
        rng = np.random.default_rng((source.seed, row, 2))
        points = draw_points(mask, source.config.max_points, rng)
        outputs, _ = decode_plainly(source, row, PointPrompts.from_points(points[None]))
        slot = 1 + int(outputs.iou_scores[0, 1:].argmax())
        token = source.select(np.array([row]), np.array([2]))
        torch.testing.assert_close(token, outputs.semantic_tokens[:, slot], rtol=1e-4, atol=1e-4)
        seen += 1
    assert seen >= 3


def test_a_model_that_looks_twice_gives_the_tokens_of_its_predictor(source: RegionTokens) -> None:
    model = sharpen(tiny_tap(tiny_config(zoom=0.5)))
    predictor = TAPPredictor(model)
    tokens = RegionTokens(model, source.records, source.regions, source.config, seed=0)
    for row, region in enumerate(source.regions):
        rgb = read_image(source.records[region.image_index])
        found = predictor.predict_mask_concept_caption(rgb, boxes=[region.box_xyxy])
        token = tokens.select(np.array([row]), np.array([0]))
        np.testing.assert_allclose(token, found.semantic_tokens, rtol=1e-4, atol=1e-4)


def test_a_region_gets_the_same_alone_and_beside_others(source: RegionTokens) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(source.regions), 23)
    views = rng.integers(0, 4, 23)
    together = source.select(rows, views)
    for place in range(0, 23, 4):
        alone = source.select(rows[place : place + 1], views[place : place + 1])
        torch.testing.assert_close(together[place : place + 1], alone, rtol=1e-4, atol=1e-4)


def test_views_differ_and_depend_on_the_seed(source: RegionTokens, tmp_path: Path) -> None:
    rows = np.arange(len(source.regions)).repeat(4)
    views = np.tile(np.arange(4), len(source.regions))
    tokens = source.select(rows, views).unflatten(0, (-1, 4))
    assert not torch.allclose(tokens[:, 1], tokens[:, 2], atol=1e-3)
    assert torch.equal(tokens, source.select(rows, views).unflatten(0, (-1, 4)))
    other = RegionTokens(
        source.model, source.records, source.regions, source.config, seed=source.seed + 1
    ).select(rows, views)
    torch.testing.assert_close(other.unflatten(0, (-1, 4))[:, 0], tokens[:, 0])
    assert not torch.allclose(other.unflatten(0, (-1, 4))[:, 1], tokens[:, 1], atol=1e-3)


def test_an_empty_mask_leaves_the_token_of_the_box(source: RegionTokens) -> None:
    model = sharpen(tiny_tap())
    with torch.no_grad():
        for parameter in model.image_decoder.mask_heads.parameters():
            parameter.zero_()  # all logits are 0, which is not above it
    empty = RegionTokens(model, source.records, source.regions, source.config, seed=1)
    by_box, by_points = empty.select(np.array([2, 2]), np.array([0, 1]))
    assert torch.equal(by_box, by_points)


# --- points --------------------------------------------------------------------------------------


def test_points_are_pixels_of_the_mask() -> None:
    mask = np.zeros((7, 13), bool)
    mask[2, 3] = mask[5, 11] = True
    seen, counts = set(), set()
    for seed in range(40):
        points = draw_points(mask, 3, np.random.default_rng(seed))
        counts.add(len(points))
        seen |= {tuple(point) for point in points.tolist()}
        if len(points) == 2:
            assert len({tuple(point) for point in points.tolist()}) == 2
    assert counts == {1, 2, 3}
    assert seen == {(3, 2), (11, 5)}


# --- on disk -------------------------------------------------------------------------------------


def test_kept_tokens_equal_computed_ones(
    source: RegionTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic_token_cache, "BLOCK_IMAGES", 3)
    fill_cache(source, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00000.safetensors", "00001.safetensors",
    ]  # fmt: skip
    cached = read_cache(source, tmp_path)
    assert cached.tokens.shape == (len(source.regions), 4, source.model.config.decoder_dim)
    rng = np.random.default_rng(1)
    rows, views = rng.integers(0, len(source.regions), 31), rng.integers(0, 4, 31)
    torch.testing.assert_close(
        cached.select(rows, views), source.select(rows, views), rtol=1e-4, atol=1e-4
    )


def test_what_is_there_is_not_computed_again(
    source: RegionTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic_token_cache, "BLOCK_IMAGES", 1)
    fill_cache(source, tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 4
    whole = read_cache(source, tmp_path).tokens
    times = [path.stat().st_mtime_ns for path in paths]
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    paths[3].unlink()
    with pytest.raises(ValueError, match=rf"tokens: .*{paths[1].name} is missing or damaged"):
        read_cache(source, tmp_path)
    fill_cache(source, tmp_path)
    again = [path.stat().st_mtime_ns for path in paths]
    assert [a == b for a, b in zip(times, again, strict=True)] == [True, False, True, False]
    assert torch.equal(read_cache(source, tmp_path).tokens, whole)


def test_processes_share_the_blocks(
    source: RegionTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic_token_cache, "BLOCK_IMAGES", 1)
    fill_cache(source, tmp_path, rank=1, world=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00001.safetensors", "00003.safetensors"]
    fill_cache(source, tmp_path, rank=0, world=2)
    assert len(read_cache(source, tmp_path).tokens) == len(source.regions)


def test_the_key_knows_what_tokens_depend_on(tmp_path: Path) -> None:
    def key(source: RegionTokens) -> str:
        rows = next(split_blocks(source.regions))
        return tokens_key(source, rows, weights_digest(source.model))

    folder = tmp_path / "set"
    first = make_source(folder)
    keys = [key(first)]
    assert key(make_source(folder, cached=False, box_probability=0.1)) == keys[0]
    keys += [key(make_source(folder, seed=6)), key(make_source(folder, token="mask"))]
    keys += [key(make_source(folder, max_points=5)), key(make_source(folder, point_views=1))]
    with torch.no_grad():
        first.model.text_decoder.norm.bias.add_(1)
        assert key(first) == keys[0]
        first.model.image_decoder.iou_token.add_(1e-3)
    keys.append(key(first))
    keys.append(key(make_source(folder, precision="bfloat16")))
    twice = make_source(folder)
    twice.model.config = dataclasses.replace(twice.model.config, zoom=0.5)
    keys.append(key(twice))
    moved = make_source(folder)
    region = moved.regions[0]
    moved.regions = [CaptionedRegion(0, (0.0, 0.0, 3.0, 4.0), region.texts), *moved.regions[1:]]
    keys.append(key(moved))
    assert len(set(keys)) == 9


def test_tokens_of_another_key_or_damaged_ones_are_not_used(tmp_path: Path) -> None:
    path, tokens = tmp_path / "tokens.safetensors", torch.randn(5, 3)
    assert load_tokens(path, "key") is None
    save_tokens(path, tokens, "key")
    kept = load_tokens(path, "key")
    assert kept is not None and torch.equal(kept, tokens)
    assert load_tokens(path, "other key") is None
    path.write_bytes(path.read_bytes()[:50])
    assert load_tokens(path, "key") is None


@pytest.mark.skipif(os.name != "posix", reason="needs limits of POSIX")
def test_a_full_disk_stops_clearly_and_keeps_what_was_there(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "tokens.safetensors"
    save_tokens(path, torch.ones(3, 2), "key")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"tokens\.safetensors: could not be written .*free some"):
            save_tokens(path, torch.ones(3000, 2), "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = load_tokens(path, "key")
    assert kept is not None and torch.equal(kept, torch.ones(3, 2))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


# --- bad data ------------------------------------------------------------------------------------


def test_a_box_outside_its_image_is_named(source: RegionTokens) -> None:
    regions = [CaptionedRegion(0, (500.0, 500.0, 520.0, 530.0), ("a ball",))]
    outside = RegionTokens(source.model, source.records, regions, source.config, seed=0)
    with pytest.raises(ValueError, match=r"image: .*0\.png: PointPrompts: .*does not overlap"):
        outside.select(np.array([0]), np.array([0]))


def test_low_precision_gives_nearly_the_same(source: RegionTokens) -> None:
    low = dataclasses.replace(source.config, precision="bfloat16")
    rows, views = np.arange(len(source.regions)), np.zeros(len(source.regions), np.int64)
    exact = source.select(rows, views)
    tokens = RegionTokens(source.model, source.records, source.regions, low, source.seed).select(
        rows, views
    )
    assert tokens.dtype == torch.float32
    assert not torch.equal(tokens, exact)
    errors = (tokens - exact).norm(dim=1) / exact.norm(dim=1)
    assert errors.max() < 0.1
