"""Relative paths of configurations, under the folders of a run."""

from __future__ import annotations

from pathlib import Path

from tests.training.tiny_runs import caption_config, pretrain_config
from tokenize_anything.training.caption_config import CaptionValidationConfig
from tokenize_anything.training.config import DataConfig
from tokenize_anything.training.relative_paths import resolve_paths

DATA = DataConfig(annotation_files=("a.json", "/b.json"), image_folder="images")
PLACED = DataConfig(annotation_files=("data/a.json", "/b.json"), image_folder="data/images")


def test_paths_of_stage_1() -> None:
    config = pretrain_config(
        Path(), Path("run"), data=DATA, init_from="before/model.safetensors",
        concepts="c.safetensors", target_concepts="t.safetensors", embeddings="vectors",
    )  # fmt: skip
    placed = resolve_paths(config, "data", "out")
    assert placed.data == PLACED
    assert (placed.output_folder, placed.init_from) == ("out/run", "out/before/model.safetensors")
    found = (placed.concepts, placed.target_concepts, placed.embeddings)
    assert found == ("data/c.safetensors", "data/t.safetensors", "data/vectors")
    assert placed.model == config.model and placed.optimizer == config.optimizer


def test_names_and_empty_places_stay() -> None:
    shards = DataConfig(shards=("a/*.tar", "/b.tar"))
    config = pretrain_config(Path(), Path("/run"), data=shards, init_from="tap_tiny")
    placed = resolve_paths(config, "data", "out")
    assert placed.data == DataConfig(shards=("data/a/*.tar", "/b.tar"))
    assert (placed.output_folder, placed.init_from) == ("/run", "tap_tiny")
    named = pretrain_config(Path(), Path("run"), init_encoder_from="timm/vit_tiny.mae")
    assert resolve_paths(named, "data", "out").init_encoder_from == "timm/vit_tiny.mae"


def test_paths_of_stage_2_and_its_validation() -> None:
    config = caption_config(
        Path(), Path("run"), Path("tap_vit_l"), Path("text.model"), data=DATA,
        validation=CaptionValidationConfig(data=DATA),
    )  # fmt: skip
    placed = resolve_paths(config, "data", "out")
    assert placed.data == PLACED
    assert placed.validation is not None and placed.validation.data == PLACED
    assert (placed.init_from, placed.text_tokenizer) == ("tap_vit_l", "out/text.model")


def test_without_folders_nothing_changes() -> None:
    config = caption_config(Path("set"), Path("run"), Path("m.safetensors"), Path("text.model"))
    assert resolve_paths(config, "", "") == config
