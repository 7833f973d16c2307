"""Configurations: YAML round trips, and errors that give the place."""

from __future__ import annotations

import builtins
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.tiny_runs import caption_config, pretrain_config
from tokenize_anything.config import TAPConfig
from tokenize_anything.data.augment import AugmentConfig
from tokenize_anything.training.caption_config import CaptionConfig
from tokenize_anything.training.config import (
    DataConfig,
    PretrainConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    save_config,
)

DATA = {"annotation_files": ["a.json", "b.json"], "image_folder": "images"}
LEAST = {"data": DATA, "output_folder": "out"}


def from_yaml(tmp_path: Path, text: str) -> PretrainConfig:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return load_config(PretrainConfig, tmp_path / "run.yaml")


# --- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        pretrain_config(Path("data"), Path("out"), init_from="ü.safetensors", stop_step=3),
        caption_config(Path("data"), Path("out"), Path("m"), Path("t"), fresh_text_decoder=True),
    ],
)
def test_a_configuration_comes_back_from_its_file(tmp_path: Path, config: Any) -> None:
    save_config(config, tmp_path / "run.yaml")
    assert load_config(type(config), tmp_path / "run.yaml") == config
    values = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
    assert values == config_to_dict(config)
    assert list(values) == [field.name for field in dataclasses.fields(config)]


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        save_config(DataConfig(**DATA), tmp_path / "nowhere" / "run.yaml")  # type: ignore[arg-type]


def test_defaults_fill_what_is_left_out(tmp_path: Path) -> None:
    text = "data: {annotation_files: [a.json, b.json], image_folder: images}\noutput_folder: out\n"
    config = from_yaml(tmp_path, text + "optimizer: {peak_lr: 1}\nstop_step: null\n")
    data = DataConfig(annotation_files=("a.json", "b.json"), image_folder="images")
    expected = PretrainConfig(data=data, output_folder="out")
    expected = dataclasses.replace(
        expected, optimizer=dataclasses.replace(expected.optimizer, peak_lr=1.0)
    )
    assert config == expected
    assert isinstance(config.optimizer.peak_lr, float)
    assert config.last_step == config.num_steps


def test_a_run_may_stop_before_the_end_of_its_schedule() -> None:
    config = pretrain_config(Path("data"), Path("out"), num_steps=30, stop_step=15)
    assert (config.last_step, config.num_steps) == (15, 30)


# --- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batchsize": 3}, r"^run: unknown keys \['batchsize'\]; known keys are .*'batch_size'"),
        ({"optimizer": {"lr": 1.0}}, r"^run\.optimizer: unknown keys \['lr'\]"),
        ({"model": {"pixels": {"men": 3}}}, r"^run\.model\.pixels: unknown keys \['men'\]"),
        ({3: 4}, r"^run: unknown keys \['3'\]"),
        ({"optimizer": 3}, r"^run\.optimizer: expected keys and values, got 3"),
        ({"batch_size": "16"}, r"^run\.batch_size: expected int, got '16'"),
        ({"batch_size": 1.5}, r"^run\.batch_size: expected int, got 1\.5"),
        ({"batch_size": True}, r"^run\.batch_size: expected int, got True"),
        ({"drop_path": False}, r"^run\.drop_path: expected float, got False"),
        ({"drop_path": None}, r"^run\.drop_path: expected float, got None"),
        (
            {"drop_path": "1e-3"},
            r"expected float, got '1e-3'; YAML reads 1e-3 as text, write 0.001",
        ),
        ({"compile_model": 1}, r"^run\.compile_model: expected bool, got 1"),
        ({"output_folder": 3}, r"^run\.output_folder: expected str, got 3$"),
        ({"init_from": 3}, r"^run\.init_from: expected str, got 3"),
        ({"stop_step": "3"}, r"^run\.stop_step: expected int, got '3'"),
        (
            {"precision": "float8"},
            r"precision: expected one of \['float32', 'bfloat16', 'float16'\]",
        ),
        ({"model": {"pixels": {"channel_order": "GBR"}}}, r"channel_order: expected one of"),
        ({"data": DATA | {"annotation_files": "a.json"}}, r"annotation_files: expected a list"),
        ({"data": DATA | {"annotation_files": ["a", 3]}}, r"annotation_files\[1\]: expected str"),
        ({"augment": {"scale_range": [0.5]}}, r"scale_range: expected 2 values, got 1: \[0\.5\]"),
        (
            {"augment": {"scale_range": [0.5, "x"]}},
            r"^run\.augment\.scale_range\[1\]: expected float",
        ),
        (
            {"data": {"image_folder": "a"}},
            r"^run\.data: data: expected one of .*'photo_folder', 'shards'\], got none",
        ),
        ({"augment": {"flip": 2}}, r"^run\.augment: flip: expected 0 to 1, got 2\.0"),
        ({"model": {"image_size": 100}}, r"^run\.model: TAPConfig: image_size must be a multiple"),
        ({"batch_size": 0}, r"^run: batch_size: expected at least 1, got 0"),
        ({"save_every": 0}, r"save_every: expected at least 1"),
        ({"num_workers": -1}, r"num_workers: expected at least 0, got -1"),
        ({"ema_decay": 1.5}, r"ema_decay: expected 0 to 1, got 1\.5"),
        ({"stop_step": 5001}, r"stop_step: expected 1 to num_steps = 5000, got 5001"),
        ({"stop_step": 0}, r"stop_step: expected 1 to num_steps"),
        ({"keep_last": -1}, r"keep_last: expected at least 0, got -1"),
        ({"accumulate": 0}, r"accumulate: expected at least 1, got 0"),
        ({"accumulate": 3}, r"accumulate: expected a divisor of batch_size 16, got 3"),
        ({"concept_loss": "l2"}, r"concept_loss: expected one of \['concept', 'feature', 'none'\]"),
        ({"parallel": "dp"}, r"parallel: expected one of \['ddp', 'fsdp'\], got 'dp'"),
        (
            {"data": DATA | {"on_bad_data": "hide"}},
            r"on_bad_data: expected one of \['stop', 'skip'\]",
        ),
        ({"init_from": "a", "init_encoder_from": "b"}, r"init_encoder_from: expected .*, got both"),
        ({"embeddings": "a"}, r"embeddings: expected the three of embeddings, concepts and target"),
        ({"concepts": "a", "target_concepts": "b"}, r"embeddings: expected the three of"),
        ({"precision": "float16", "parallel": "fsdp"}, r"precision: float16 .*use bfloat16"),
        ({"compile_model": True, "parallel": "fsdp"}, r"compile_model: expected parallel: ddp"),
        (
            {"validation": {"data": DATA, "every": 0}},
            r"^run\.validation: every: expected at least 1",
        ),
        ({"validation": {"date": DATA}}, r"^run\.validation: unknown keys \['date'\]"),
        ({"freeze": ["text_decoder"]}, r"freeze: expected some of .*, got \['text_decoder'\]"),
        ({"fresh": ["neck"]}, r"fresh: expected some of .*, got \['neck'\]"),
        (
            {"sampling": {"mask_stride": 5}},
            r"mask_stride: expected a divisor of model\.image_size 384",
        ),
    ],
)
def test_wrong_values_are_refused_with_their_place(changes: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(PretrainConfig, LEAST | changes, "run")


def test_missing_keys_are_listed_together() -> None:
    message = r"the keys \['data', 'init_from', 'output_folder', 'text_tokenizer'\] are missing"
    with pytest.raises(ValueError, match=message):
        config_from_dict(CaptionConfig, {})


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [1", r"run\.yaml is not YAML"),
        ("- 1\n- 2\n", r"run\.yaml: expected keys and values, got \[1, 2\]"),
        ("", r"run\.yaml: the keys \['data', 'output_folder'\] are missing"),
        ("dat: 3\n", r"run\.yaml: unknown keys \['dat'\]"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_yaml(tmp_path, text)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    text = f"data: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n"
    with pytest.raises(ValueError, match="is not YAML"):
        from_yaml(tmp_path, text)
    assert not (tmp_path / "made").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config: no file at .*run\.yaml; expected a YAML"):
        load_config(PretrainConfig, tmp_path / "run.yaml")


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "yaml":
            raise ModuleNotFoundError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install tokenize-anything\[train\]"):
        load_config(PretrainConfig, "run.yaml")


def test_values_are_not_modified() -> None:
    values = {**LEAST, "augment": {"scale_range": [1, 2]}}
    config = config_from_dict(PretrainConfig, values)
    assert values["augment"] == {"scale_range": [1, 2]}
    assert config.augment == AugmentConfig(scale_range=(1.0, 2.0))
    assert isinstance(config.model, TAPConfig)
