"""The tools that draw the curves of the built-in model, on drawn photos."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.photos import SHAPES, write_photos
from tests.training.tiny_naming import save_outliner
from tests.training.tiny_runs import MODEL, embed_by_hash
from tokenize_anything.build import load_model
from tokenize_anything.concepts import SOURCE_TEMPLATE, TARGET_TEMPLATE
from tokenize_anything.evaluation.caption_scores import cider
from tokenize_anything.evaluation.region_truth import TrueRegion
from tokenize_anything.training.config import PretrainConfig, load_config, save_config
from tokenize_anything.training.naming_config import NamingConfig

TOOLS = Path(__file__).parents[2] / "tools"
CONFIGS = TOOLS / "configs"
NEEDS_METRICS = "pycocoevalcap is not installed"
IN_VOCABULARY = "of those in the vocabulary, "


@pytest.fixture
def load_tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.syspath_prepend(str(TOOLS))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if str(TOOLS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos to learn from and to be scored on."""
    file = write_photos(tmp_path / "data")
    for name in ("train.json", "train_boxes.json", "val.json"):
        file.with_name(name).write_bytes(file.read_bytes())
    return file.parent


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_names_that_are_not_in_the_vocabulary_count_as_wrong(load_tool: Any) -> None:
    scores = np.log([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    names = np.array([0, 0, -1, 1])  # first, last, unknown, first
    rows = load_tool("eval_names").vocabulary_rows("a", scores, names)
    assert {metric: value for _, metric, value in rows} == {
        f"concept top-1 {IN_VOCABULARY}val": pytest.approx(2 / 3),
        f"concept top-5 {IN_VOCABULARY}val": 1,
        "concept top-1 val": 0.5,
        "concept top-5 val": 0.75,
    }


def test_first_names_as_captions(load_tool: Any) -> None:
    """Regions without a name count for captions alone, those with neither for nothing."""
    pytest.importorskip("pycocoevalcap", reason=NEEDS_METRICS)
    tool, names = load_tool("eval_names"), ["dog", "ox", "shoes"]
    said, truths = (0, 1, 2, 1, 0), ("dog", "ox", "dog", None, None)
    texts = (("a dog",), ("an ox",), ("a dog",), ("an ox", "a bull"), ())
    regions = [
        TrueRegion(i, None, (0, 0, 1, 1), name, references)
        for i, (name, references) in enumerate(zip(truths, texts, strict=True))
    ]
    found = tool.name_rows("a", np.log(0.1 + np.eye(3)[list(said)]), regions, names)
    values = {metric: value for _, metric, value in found}
    captions = ["a dog", "an ox", "shoes", "an ox"]
    assert values[tool.FIRST_NAME_CIDER] == pytest.approx(cider(captions, texts[:4]))
    assert values["concept top-1 val"] == pytest.approx(2 / 3)


def test_curves_of_names(
    load_tool: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row for each figure of each run; widths and teachers share the crops of all photos."""
    pytest.importorskip("pycocoevalcap", reason=NEEDS_METRICS)
    tool, runs = load_tool("eval_name_curve"), load_tool("name_curve_runs")
    config = load_config(NamingConfig, CONFIGS / "curve_names.yaml")
    start = save_outliner(tmp_path / "start.safetensors")
    config = dataclasses.replace(config, init_from=str(start), crop_size=64, batch_size=5)
    save_config(dataclasses.replace(config, num_steps=50), tmp_path / "names.yaml")
    monkeypatch.setattr(tool, "CONFIG", tmp_path / "names.yaml")
    teachers = {"minilm": embed_by_hash, "random": lambda texts: -embed_by_hash(texts)}
    monkeypatch.setattr(runs, "TEACHERS", teachers)
    prepared, make_views, scored = [], runs.NamerTrainer.make_views, []
    name_boxes = runs.name_boxes

    def count(trainer: Any, data: Any) -> Any:
        prepared.append(trainer.config.max_images)
        return make_views(trainer, data)

    def look(predictor: Any, images: Any) -> Any:
        scored.append(predictor.concepts.weights)
        return name_boxes(predictor, images)

    monkeypatch.setattr(runs.NamerTrainer, "make_views", count)
    monkeypatch.setattr(runs, "name_boxes", look)
    out, table = tmp_path / "out", tmp_path / "curves.csv"
    words = ["eval_name_curve.py", "--data", str(folder), "--out", str(out), "--table", str(table)]
    more = ["--photos", "3", "--dims", "2", "--teachers", "random"]
    monkeypatch.setattr(sys, "argv", [*words, *more])
    tool.main()
    rows = read_table(table)
    subjects = ["names, max_images 3", "names, namer_dim 2", "names, teacher random"]
    assert [row["subject"] for row in rows[::6]] == subjects and len(rows) == 18
    assert {row["metric"] for row in rows[:6]} == {
        "accuracy, train, last 300 steps",
        load_tool("eval_names").FIRST_NAME_CIDER,
        *(f"concept top-{k} {kind}val" for k in (1, 5) for kind in ("", IN_VOCABULARY)),
    }
    assert all(0 <= float(row["value"]) <= 1 for row in rows if "CIDEr" not in row["metric"])
    assert prepared == [3, 0]
    source = embed_by_hash([SOURCE_TEMPLATE.format(name) for name in SHAPES]).T
    for weights, sign in zip(scored, (1, 1, -1), strict=True):  # each in its own concept space
        scale = weights.norm(dim=0)
        torch.testing.assert_close(weights / scale, sign * source)
    narrow = load_model(out / "namer_dim_2" / "model.safetensors", device="cpu")
    assert narrow.config.namer_dim == 2


def test_teachers_know_a_name_in_either_sentence(load_tool: Any) -> None:
    """Without likeness between names, the two templates of one name must still agree."""
    embed = load_tool("text_teachers").embed_at_random
    names = ["sea lion", "cat"]
    found = embed([t.format(n) for t in (SOURCE_TEMPLATE, TARGET_TEMPLATE) for n in names])
    assert torch.equal(found[:2], found[2:])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    assert abs(float(found[0] @ found[1])) < 0.3


def test_curve_of_encoders(
    load_tool: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load_tool("eval_encoder_curve")
    config = load_config(PretrainConfig, CONFIGS / "curve_encoder.yaml")
    model = dataclasses.replace(MODEL, zoom=0.5)
    config = dataclasses.replace(config, model=model, sine_positions=0.0, batch_size=2)
    save_config(dataclasses.replace(config, num_steps=1), tmp_path / "encoder.yaml")
    monkeypatch.setattr(tool, "CONFIG", tmp_path / "encoder.yaml")
    monkeypatch.setattr(tool, "embed_texts_cached", lambda texts, path: embed_by_hash(texts))
    out, table = tmp_path / "out", tmp_path / "curves.csv"
    words = ["eval_encoder_curve.py", "--data", str(folder), "--out", str(out)]
    monkeypatch.setattr(
        sys, "argv", [*words, "--table", str(table), "--sizes", "64x4", "128x8", "--steps", "2"]
    )
    with pytest.warns(UserWarning, match="no text tokenizer"):  # none is wanted
        tool.main()
    rows = read_table(table)
    assert {row["subject"] for row in rows} == {
        f"encoder {size}, 2 steps" for size in ("64x4", "128x8")
    }
    sizes = []
    for row in rows:
        if row["metric"] == "parameters of the encoder, millions":
            sizes.append(float(row["value"]))
        else:
            assert 0 <= float(row["value"]) <= 1
    assert len(rows) == 12 and 0 < 3 * sizes[0] < sizes[1]
    model = load_model(
        tmp_path / "out/curve_encoder/128x8_2/model.safetensors", device="cpu"
    ).config
    assert (model.encoder_dim, model.encoder_depth, model.encoder_heads) == (128, 8, 2)
    assert model.encoder_mlp_dim == 512
