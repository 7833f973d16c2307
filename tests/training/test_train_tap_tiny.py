"""The recipe of the built-in model: its files, and all phases in a row on drawn photos."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from tests.data.photos import SHAPES, write_photos
from tests.training.tiny_runs import MODEL, caption_config, embed_by_hash, pretrain_config
from tokenize_anything.build import load_model
from tokenize_anything.companions import find_companions
from tokenize_anything.config import tap_tiny
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.config import (
    PretrainConfig,
    config_to_dict,
    load_config,
)
from tokenize_anything.training.view_config import ViewConfig

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
    sys.modules.pop("pack_tap_tiny", None)


def test_the_committed_phases_follow_each_other(tool: ModuleType) -> None:
    phases = [load_config(PretrainConfig, path) for path in tool.STAGE1]
    captions = load_config(CaptionConfig, tool.STAGE2)
    assert sorted(TOOL.parent.glob("configs/tap_tiny_*.yaml")) == [
        *tool.STAGE1,
        tool.STAGE2,
        tool.VIEWS,
    ]
    assert phases[0].init_from is None
    stages: list[PretrainConfig | CaptionConfig] = [*phases, captions]
    for before, after in itertools.pairwise(stages):
        assert after.init_from == f"{before.output_folder}/model.safetensors"
    assert len({config.seed for config in phases}) == len(phases)
    last = config_to_dict(phases[-1].model)
    different = {k for k, v in config_to_dict(tap_tiny()).items() if v != last[k]}
    assert different <= {"image_size", "view_dim", "vocabulary_size"}
    views = load_config(ViewConfig, tool.VIEWS)
    assert views.fresh and load_config(ViewConfig, tool.CONFIGS / "curve_views.yaml").fresh
    assert (views.view_dim, views.view_size) == (tap_tiny().view_dim, tap_tiny().view_size)
    assert (captions.image_size or phases[-1].model.image_size) == tap_tiny().image_size


def write_config(
    path: Path, config: PretrainConfig | CaptionConfig | ViewConfig, **places: str
) -> Path:
    """A configuration with relative paths, as the committed ones have."""
    values = config_to_dict(config)
    values["data"] = {"annotation_files": ["photos.json"], "image_folder": "images"}
    path.write_text(yaml.safe_dump(values | places), encoding="utf-8")
    return path


def test_all_phases_run_and_are_packed_into_one_file(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_photos(data)
    first = pretrain_config(data, out, num_steps=2, stop_step=1)
    captions = caption_config(data, out, out, out, num_steps=2, fresh_text_decoder=True)
    stage1 = [
        write_config(tmp_path / "a.yaml", first, output_folder="a"),
        write_config(
            tmp_path / "b.yaml", first, output_folder="b", init_from="a/model.safetensors"
        ),
    ]
    stage2 = write_config(
        tmp_path / "c.yaml", captions, output_folder="c", init_from="b/model.safetensors",
        text_tokenizer="text.model",
    )  # fmt: skip
    monkeypatch.setattr(tool, "embed_texts_cached", lambda texts, path: embed_by_hash(texts))
    outlines = ViewConfig(
        data=captions.data, output_folder="v", view_dim=2, view_size=32, batch_size=2, num_steps=2,
        num_workers=0, precision="float32",
    )  # fmt: skip
    views = write_config(tmp_path / "v.yaml", outlines, output_folder="v")
    packed = tool.train(data, out, stage1, stage2, views)
    assert packed == out / "tap_tiny.safetensors"
    model = load_model(packed, device="cpu", dtype="float32")
    companions = find_companions(packed, packed, None, model.config.vocabulary_size)
    assert companions.concepts is not None and companions.text_tokenizer is not None
    assert companions.concepts.names == tuple(sorted(SHAPES))
    assert companions.concepts.weights.shape[0] == MODEL.semantic_dim
    assert companions.text_tokenizer.vocabulary_size == model.config.vocabulary_size
    assert model.config.view_dim == 2
    before = load_model(out / "v" / "model.safetensors", device="cpu", dtype="float32").state_dict()
    last = {
        name
        for name, value in model.state_dict().items()
        if name.startswith("view_segmenter.")
        and not torch.allclose(value.float(), before[name].float(), rtol=2e-3, atol=1e-5)
    }
    assert last and all("view_segmenter.semantic_head" in name for name in last)
    trained = load_model(out / "c" / "model.safetensors", device="cpu", dtype="float32")
    names = [n for n in model.state_dict() if not n.startswith("view_segmenter.")]
    for name, value in ((name, model.state_dict()[name]) for name in names):
        before = trained.state_dict()[name]
        if "semantic_head" in name or "iou_head" in name:  # learnt once more, on tokens
            assert not torch.allclose(value, before, rtol=1e-3, atol=1e-6), name
        else:  # but for float16
            torch.testing.assert_close(value, before, rtol=1e-3, atol=1e-6, msg=name)
    tool.train(data, out, stage1, stage2, views)  # all is finished already
    again = load_model(packed, device="cpu", dtype="float32").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
