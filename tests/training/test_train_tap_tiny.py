"""The recipe of the built-in model: its files, and all phases in a row on drawn photos."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from tests.data.photos import SHAPES, write_photos
from tests.training.tiny_runs import MODEL, caption_config, embed_by_hash, pretrain_config
from tokenize_anything.build import load_model
from tokenize_anything.companions import find_companions
from tokenize_anything.config import tap_tiny
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.click_config import ClickConfig
from tokenize_anything.training.config import (
    PretrainConfig,
    config_to_dict,
    load_config,
)
from tokenize_anything.training.naming_config import NamingConfig
from tokenize_anything.training.relative_paths import resolve_paths
from tokenize_anything.training.view_config import ViewConfig
from tokenize_anything.weight_rounding import MIN_ROUNDED_ELEMENTS

TOOL = Path(__file__).parents[2] / "tools" / "train_tap_tiny.py"


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    sys.path.insert(0, str(TOOL.parent))
    spec = importlib.util.spec_from_file_location("train_tap_tiny", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(TOOL.parent))
    for name in ("pack_tap_tiny", "recipe_files"):
        sys.modules.pop(name, None)


def test_the_committed_phases_follow_each_other(tool: ModuleType) -> None:
    files = sorted(tool.CONFIGS.glob("tap_tiny_*.yaml"))
    kinds = [
        re.sub("tap_tiny_(stage1|clicks|corrections|names).", r"\1", path.stem) for path in files
    ]
    phases = [
        load_config(PretrainConfig, f)
        for f, kind in zip(files, kinds, strict=True)
        if kind == "stage1"
    ]
    names = [
        load_config(NamingConfig, f)
        for f, kind in zip(files, kinds, strict=True)
        if kind == "names"
    ]
    others = {f"tap_tiny_{name}" for name in ("captions", "sketches", "stage2", "views")}
    assert set(kinds) == {"stage1", "clicks", "corrections", "names"} | others
    assert phases[0].init_from is None
    stage2 = load_config(CaptionConfig, tool.CONFIGS / "tap_tiny_stage2.yaml")
    views = load_config(ViewConfig, tool.CONFIGS / "tap_tiny_views.yaml")
    clicks = [load_config(ClickConfig, tool.CONFIGS / f"tap_tiny_clicks{x}.yaml") for x in "abc"]
    corrections = [
        load_config(ViewConfig, tool.CONFIGS / f"tap_tiny_corrections{x}.yaml") for x in "ab"
    ]
    sketches = load_config(ViewConfig, tool.CONFIGS / "tap_tiny_sketches.yaml")
    corrected = [*corrections, sketches]
    captions = load_config(CaptionConfig, tool.CONFIGS / "tap_tiny_captions.yaml")
    assert not captions.fresh_text_decoder and captions.text_tokenizer == stage2.text_tokenizer
    assert views.init_from == "without_outlines.safetensors"
    rows: list[list[Any]] = [[*phases, stage2], [views, clicks[0]]]
    for outlines, answers in zip(corrections, clicks[1:], strict=True):
        rows[1] += [outlines, answers]
    rows[1] += [sketches, *names, captions]
    for row in rows:
        for before, after in itertools.pairwise(row):
            assert after.init_from == f"{before.output_folder}/model.safetensors"
    for kin in (phases, clicks, corrected, names):
        assert len({config.seed for config in kin}) == len(kin)
    last = config_to_dict(phases[-1].model)
    different = {k for k, v in config_to_dict(tap_tiny()).items() if v != last[k]}
    added = {"view_dim", "namer_size", "wide_size", "click_size", "view_corrects"}
    assert different <= {"image_size", "vocabulary_size", *added}
    assert views.fresh and load_config(ViewConfig, tool.CONFIGS / "curve_views.yaml").fresh
    for part in (views, *corrected):
        assert (part.view_dim, part.view_size) == (tap_tiny().view_dim, tap_tiny().view_size)
    assert {config.view_corrects for config in corrected} == {tap_tiny().view_corrects}
    assert names[-1].namer_size == tap_tiny().namer_size
    assert names[-1].wide_size == tap_tiny().wide_size
    assert {config.click_size for config in clicks} == {tap_tiny().click_size}
    assert [config.outline_boxes for config in clicks] == [False, True, True]
    assert (stage2.image_size or phases[-1].model.image_size) == tap_tiny().image_size


def write_config(path: Path, config: Any, **places: str) -> None:
    """A configuration with relative paths, as the committed ones have."""
    values = config_to_dict(config)
    values["data"] = {"annotation_files": ["photos.json"], "image_folder": "images"}
    path.write_text(yaml.safe_dump(values | places), encoding="utf-8")


def write_recipe(folder: Path, data: Path, out: Path) -> None:
    """All phases, a step or two long each."""
    folder.mkdir()
    first = pretrain_config(data, out, num_steps=2, stop_step=1)
    told = caption_config(data, out, out, out, num_steps=2, fresh_text_decoder=True)
    again = dataclasses.replace(told, fresh_text_decoder=False, num_steps=1)
    shared: dict[str, Any] = dict(
        data=told.data, output_folder="", num_steps=2, precision="float32"
    )
    outlines = ViewConfig(view_dim=2, view_size=32, batch_size=2, num_workers=0, **shared)
    corrections = dataclasses.replace(outlines, view_corrects=True, second_stage_probability=1.0)
    sketches = dataclasses.replace(corrections, sketch_probability=0.5)
    clicks = ClickConfig(click_size=64, batch_size=2, num_workers=0, **shared)
    named = NamingConfig(namer_size=32, crop_size=64, batch_size=4, **shared)
    wider = dataclasses.replace(named, wide_size=32, wide_crop_size=32)
    phases: list[tuple[str, Any, str, str | None]] = [
        ("stage1a", first, "a", None),
        ("stage1b", first, "b", "a/model.safetensors"),
        ("stage2", told, "c", "b/model.safetensors"),
        ("views", outlines, "v", "without_outlines.safetensors"),
        ("clicksa", clicks, "ka", "v/model.safetensors"),
        ("correctionsa", corrections, "oa", "ka/model.safetensors"),
        ("clicksb", dataclasses.replace(clicks, outline_boxes=True), "kb", "oa/model.safetensors"),
        ("correctionsb", corrections, "ob", "kb/model.safetensors"),
        ("clicksc", dataclasses.replace(clicks, seed=1), "kc", "ob/model.safetensors"),
        ("sketches", sketches, "s", "kc/model.safetensors"),
        ("namesa", named, "na", "s/model.safetensors"),
        ("namesb", named, "nb", "na/model.safetensors"),
        ("namesc", wider, "nc", "nb/model.safetensors"),
        ("captions", again, "d", "nc/model.safetensors"),
    ]
    for name, config, place, start in phases:
        places = {"output_folder": place} | ({"init_from": start} if start else {})
        if name in ("stage2", "captions"):
            places["text_tokenizer"] = "text.model"
        write_config(folder / f"tap_tiny_{name}.yaml", config, **places)


def test_all_phases_run_and_are_packed_into_one_file(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_photos(data)
    write_recipe(tmp_path / "configs", data, out)
    monkeypatch.setattr(tool, "embed_texts_cached", lambda texts, path: embed_by_hash(texts))
    recipe = tool.Recipe(tmp_path / "configs", data, out)
    packed = tool.train(recipe)
    assert packed == out / "tap_tiny.safetensors"
    model = load_model(packed, device="cpu", dtype="float32")
    companions = find_companions(packed, packed, None, model.config.vocabulary_size)
    assert companions.concepts is not None and companions.text_tokenizer is not None
    assert companions.concepts.names == tuple(sorted(SHAPES))
    assert companions.concepts.weights.shape[0] == MODEL.semantic_dim
    assert companions.text_tokenizer.vocabulary_size == model.config.vocabulary_size
    sizes = model.config
    assert (sizes.view_dim, sizes.namer_size, sizes.wide_size, sizes.click_size) == (2, 32, 32, 64)
    state, rounded = model.state_dict(), sys.modules["pack_tap_tiny"].ROUNDED

    def changed_since(path: str) -> set[str]:
        """Parts that differ from those of an earlier phase by more than the packing rounds."""
        before = load_model(out / path, device="cpu", dtype="float32").state_dict()
        found = set()
        for name, value in state.items():
            is_rounded = name.startswith(rounded) and value.numel() >= MIN_ROUNDED_ELEMENTS
            rtol, atol = (0.0, 5e-3) if is_rounded else (1e-3, 1e-6)
            same = name in before and before[name].shape == value.shape
            if not same or not torch.allclose(value, before[name], rtol, atol):
                found.add(re.sub(r"\.(layers|blocks|word|norm|weight|bias).*", "", name))
        return found

    parts = {name.partition(".")[0] for name in changed_since("nc/model.safetensors")}
    assert parts == {"text_decoder"}
    parts = {name.partition(".")[0] for name in changed_since("without_outlines.safetensors")}
    assert parts == {"text_decoder", "click_segmenter", "view_segmenter", "view_namer"}
    parts = {name.partition(".")[0] for name in changed_since("s/model.safetensors")}
    assert parts == {"text_decoder", "view_namer"}
    parts = {name.partition(".")[0] for name in changed_since("kc/model.safetensors")}
    assert parts == {"text_decoder", "view_segmenter", "view_namer"}
    for path in ("ka", "oa"):  # each phase of outlines is in it
        changed = {name.partition(".")[0] for name in changed_since(f"{path}/model.safetensors")}
        assert {"view_segmenter", "click_segmenter"} <= changed, path
    learnt = {name for name in changed_since("c/model.safetensors") if "decoder." in name}
    assert "image_decoder.semantic_head" in learnt
    tool.train(recipe)  # all is finished already
    again = load_model(packed, device="cpu", dtype="float32").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())


def test_a_recipe_seen_through_with_fewer_steps(tool: ModuleType) -> None:
    """All that counts steps shrinks alike, whatever kind the phase is of; nothing else changes."""
    data, out = Path("/photos"), Path("/runs")
    whole, part = (tool.Recipe(tool.CONFIGS, data, out, share) for share in (1.0, 0.01))
    assert whole.phases("stage1?") == [f"stage1{x}" for x in "abcdefghijklmn"]
    assert whole.phases("names?") == [f"names{x}" for x in "abcde"]
    kinds = {"stage1a": PretrainConfig, "captions": CaptionConfig, "views": ViewConfig}
    for phase, kind in (kinds | {"clicksa": ClickConfig, "namese": NamingConfig}).items():
        full, short = (recipe.read(kind, phase) for recipe in (whole, part))
        values = load_config(kind, tool.CONFIGS / f"tap_tiny_{phase}.yaml")
        assert full == resolve_paths(values, data, out)
        assert full.output_folder == f"/runs/{phase}"
        assert short.num_steps == math.ceil(full.num_steps / 100)
        assert short.optimizer.warmup_steps == math.ceil(full.optimizer.warmup_steps / 100) >= 1
        steps: dict[str, Any] = {"num_steps": full.num_steps, "optimizer": full.optimizer}
        if kind is PretrainConfig:
            assert (full.stop_step, short.stop_step) == (1500, 15)
            assert full.compile_model and not short.compile_model
            steps |= {"stop_step": full.stop_step, "compile_model": True}
        assert dataclasses.replace(short, **steps) == full
    for share in (0, -0.5, 1.01):
        message = f"share: expected more than 0 and at most 1, got {share}"
        with pytest.raises(ValueError, match=re.escape(message)):
            tool.Recipe(tool.CONFIGS, data, out, share).read(PretrainConfig, "stage1a")
