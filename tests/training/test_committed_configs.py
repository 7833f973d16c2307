"""The committed configurations: the paper's recipe, and the ablation at small scale."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.data.photos import write_photos
from tests.training.tiny_runs import MODEL, embed_by_hash
from tokenize_anything.config import PRESETS
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.config import PretrainConfig, load_config, save_config

TOOLS = Path(__file__).parents[2] / "tools"
CONFIGS = TOOLS / "configs"


@pytest.mark.parametrize("name, drop_path", [("tap_vit_b", 0.1), ("tap_vit_l", 0.2)])
def test_the_papers_recipe(name: str, drop_path: float) -> None:
    """Numbers of section 4.1 of the paper."""
    first = load_config(PretrainConfig, CONFIGS / f"{name}_paper_stage1.yaml")
    second = load_config(CaptionConfig, CONFIGS / f"{name}_paper_captions.yaml")
    assert first.model == PRESETS[name]()
    for config in (first, second):
        rates = config.optimizer
        assert (rates.peak_lr, rates.final_lr_ratio, rates.weight_decay) == (1e-3, 0.01, 0.1)
        assert rates.betas == (0.9, 0.999)
    assert (first.batch_size, first.num_steps, first.drop_path) == (256, 90000, drop_path)
    assert first.augment.scale_range == (0.5, 2.0)
    assert first.sampling.regions_per_image == 64
    assert (first.decoder_dropout, second.text_dropout) == (0.1, 0.3)
    assert (second.batch_size, second.num_steps) == (64 * 8, 30000)
    assert second.init_from == f"{first.output_folder}/model.safetensors"


def test_the_rows_of_the_ablation_differ_in_nothing_but_what_they_compare() -> None:
    """One start without names, one recipe from there; the loss and the token are the tool's."""
    start = load_config(PretrainConfig, CONFIGS / "ablation_start.yaml")
    first = load_config(PretrainConfig, CONFIGS / "ablation_stage1.yaml")
    second = load_config(CaptionConfig, CONFIGS / "ablation_captions.yaml")
    assert (start.concept_loss, start.sampling.ellipse_masks) == ("none", True)
    assert not first.sampling.ellipse_masks
    assert (first.model, first.data) == (start.model, start.data)
    assert first.init_from == f"{start.output_folder}/model.safetensors"
    assert second.init_from == f"{first.output_folder}/model.safetensors"
    assert second.data != first.data  # captions are learnt from other, fewer photos


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("ablation", TOOLS / "ablation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("ablation_runs", None)


def test_the_ablation_fills_its_table(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap", reason="needs tokenize-anything[eval]")
    data, table = tmp_path / "data", tmp_path / "ablation.csv"
    file = write_photos(data)
    for name in ("train.json", "val.json"):
        (data / name).write_bytes(file.read_bytes())
    for name in ("ablation_start.yaml", "ablation_stage1.yaml"):
        first = load_config(PretrainConfig, CONFIGS / name)
        tiny = dataclasses.replace(first, model=MODEL, sine_positions=0.0, batch_size=2)
        save_config(dataclasses.replace(tiny, num_steps=1), tmp_path / name)
    second = load_config(CaptionConfig, CONFIGS / "ablation_captions.yaml")
    save_config(
        dataclasses.replace(second, batch_size=4, num_steps=1),
        tmp_path / "ablation_captions.yaml",
    )
    monkeypatch.setattr(ablation, "CONFIGS", tmp_path)
    monkeypatch.setattr(
        sys.modules["ablation_runs"], "embed_texts_cached",
        lambda texts, path: embed_by_hash(texts),
    )  # fmt: skip
    words = ["ablation.py", "--data", str(data), "--out", str(tmp_path / "out"), "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", [*words, "--table", str(table)])
    ablation.main()
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["concept_loss"], row["token"]) for row in rows] == [
        (loss, token) for loss in ("none", "feature", "concept") for token in ("mask", "semantic")
    ]
    assert {(row["seed"], row["steps"], row["caption_steps"]) for row in rows} == {("3", "1", "1")}
    assert [row["concept_top1"] == "nan" for row in rows] == [True, True, *[False] * 4]
    assert all(0 <= float(row["box_mean_iou"]) <= 1 for row in rows)
    starts = [path.parent.name for path in (tmp_path / "out").glob("start_*/model.safetensors")]
    assert starts == ["start_3"]  # one for all rows of the seed
    assert all(float(row["caption_cider"]) >= 0 for row in rows)
    written = table.read_bytes()
    ablation.main()  # all rows are there
    assert table.read_bytes() == written
