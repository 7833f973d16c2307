"""Training of the view namer on drawn photos: what learns, where it starts, resuming, views."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.photos import write_photos
from tests.tiny import tiny_config, tiny_tap
from tests.tiny_predictor import tiny_vocabulary
from tests.training.states import assert_resumes
from tests.training.tiny_naming import (
    SIDE,
    TWO_LOOKS,
    load,
    naming_config,
    read_rows,
    save_outliner,
)
from tests.training.tiny_runs import embed_by_hash
from tokenize_anything import TAPPredictor
from tokenize_anything.checkpoints import save_model
from tokenize_anything.cli import main
from tokenize_anything.modeling import ViewNamer
from tokenize_anything.training.config import DataConfig, load_config, save_config
from tokenize_anything.training.naming_config import NameSamplingConfig, NamingConfig
from tokenize_anything.training.naming_training import NamerTrainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names") / "set"
    write_photos(root)
    return root


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_outliner(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def make_config(folder: Path, model_path: Path, tmp_path: Path) -> Any:
    def make(**changes: Any) -> NamingConfig:
        values: dict[str, Any] = {"output": tmp_path / "run", "model": model_path}
        return naming_config(folder, **(values | changes))

    return make


@pytest.fixture(scope="module")
def trained_path(folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after a short run."""
    config = naming_config(folder, tmp_path_factory.mktemp("trained"), model_path)
    return NamerTrainer(config, embed_by_hash).run()


@pytest.fixture(scope="module")
def wide_path(folder: Path, trained_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model after a short run in which its namer learns to look twice."""
    output = tmp_path_factory.mktemp("wide")
    config = naming_config(folder, output, trained_path, **TWO_LOOKS)
    return NamerTrainer(config, embed_by_hash).run()


BOTH = pytest.mark.parametrize("sizes", [{}, TWO_LOOKS], ids=["one look", "two looks"])

# --- runs ------------------------------------------------------------------------------------


@BOTH
def test_it_learns_names(make_config: Any, sizes: dict[str, int]) -> None:
    mild = NameSamplingConfig(
        zoom_range=(0.6, 0.8), max_shift=0.05, turn=0.0, stretch=0.0, colour=0.1, erase=0.0,
        hide_mask=0.0, mix=0.0,
    )  # fmt: skip
    values = dict(num_steps=45, batch_size=12, fresh=True, dropout=0.0, views=mild)
    config = make_config(**values, **sizes)
    rows = read_rows(NamerTrainer(config, embed_by_hash).run().parent)
    starts, ends = (
        {key: np.mean([float(row[key]) for row in part]) for key in ("accuracy", "loss")}
        for part in (rows[:5], rows[-10:])
    )
    assert starts["accuracy"] < 0.65 and ends["accuracy"] > 0.8
    assert ends["loss"] < 0.4 * starts["loss"]


def test_nothing_else_of_the_model_changes(model_path: Path, trained_path: Path) -> None:
    before, after = load(model_path), load(trained_path)
    assert after.config == dataclasses.replace(before.config, namer_size=SIDE)
    state = after.state_dict()
    for name, value in before.state_dict().items():
        assert torch.equal(state[name], value), name
    assert {name for name in state if name not in before.state_dict()} == {
        name for name in state if name.startswith("view_namer.")
    }
    predictor = TAPPredictor.from_pretrained(trained_path, device="cpu")
    assert predictor.concepts is not None and predictor.concepts.names == tiny_vocabulary().names
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    found = predictor.predict_mask_concept_caption(image, boxes=[[7, 9, 31, 40]])
    assert found.captions[0] is not None and np.isfinite(found.semantic_embeddings).all()


@BOTH
def test_killed_and_resumed_equals_uninterrupted(
    make_config: Any, tmp_path: Path, sizes: dict[str, int]
) -> None:
    whole = make_config(output=tmp_path / "whole", dropout=0.2, **sizes)
    parts = make_config(output=tmp_path / "parts", save_every=3, dropout=0.2, **sizes)
    assert_resumes(NamerTrainer, whole, parts)


@pytest.mark.parametrize("fresh", [False, True])
def test_it_starts_from_the_segmenter(make_config: Any, model_path: Path, fresh: bool) -> None:
    """With all that both networks have; the click maps of the segmenter have no place."""
    segmenter = load(model_path).view_segmenter
    assert segmenter is not None
    source = segmenter.state_dict()
    started = NamerTrainer(make_config(fresh=fresh), embed_by_hash).part.state_dict()
    shared = [name for name in started if name.startswith(("down", "blocks", "stem.1"))]
    assert set(shared) < set(source) and len(shared) > 30
    weights = [name for name in shared if started[name].ndim > 1]
    assert all(torch.equal(started[name], source[name]) != fresh for name in weights)
    assert all(torch.equal(started[name], source[name]) for name in shared) != fresh
    stem = started["stem.0.weight"]
    assert stem.shape[1] == 5 and torch.equal(stem, source["stem.0.weight"][:, :5]) != fresh


def goes_on(config: NamingConfig) -> bool:
    """Whether a run starts with the namer of its model."""
    source = load(Path(config.init_from)).view_namer
    assert source is not None
    trainer = NamerTrainer(config, embed_by_hash)
    assert trainer.model.config.namer_size == config.namer_size
    started = trainer.part.state_dict()
    return all(torch.equal(value, started[name]) for name, value in source.state_dict().items())


def test_an_existing_namer_goes_on(make_config: Any, trained_path: Path) -> None:
    """Whatever the size of its views."""
    assert goes_on(make_config(model=trained_path, namer_size=64))
    assert not goes_on(make_config(model=trained_path, fresh=True))


@BOTH
def test_a_namer_has_a_width_of_its_own(
    make_config: Any, tmp_path: Path, sizes: dict[str, int]
) -> None:
    """One of another width than the segmenter's starts from noise; written, it goes on."""
    path = NamerTrainer(make_config(namer_dim=3, **sizes), embed_by_hash).run()
    model = load(path)
    assert model.config.namer_dim == 3 and model.view_namer is not None
    assert model.view_namer.dims == [3, 6, 12, 24, 24] and model.view_segmenter is not None
    assert model.view_segmenter.dims[0] == model.config.view_dim == 5
    after = {"output": tmp_path / "again", "model": path, **sizes}
    assert goes_on(make_config(**after)) and goes_on(make_config(namer_dim=3, **after))
    other = NamerTrainer(make_config(namer_dim=2, **after), embed_by_hash)
    assert isinstance(other.part, ViewNamer) and other.part.dims[0] == 2
    predictor = TAPPredictor.from_pretrained(path, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    found = predictor.predict_mask_concept_caption(image, boxes=[[7, 9, 31, 40]])
    assert np.isfinite(found.semantic_embeddings).all()


def test_a_namer_that_looks_once_learns_to_look_twice(make_config: Any, trained_path: Path) -> None:
    """It begins with the same loss, and what it knows goes into both looks."""
    source = load(trained_path).view_namer
    assert source is not None
    still = NameSamplingConfig(mix=0.0)
    once, twice = (
        NamerTrainer(make_config(model=trained_path, views=still, **sizes), embed_by_hash)
        for sizes in ({}, TWO_LOOKS)
    )
    started, width = twice.part.state_dict(), source.pooled_dim
    for name, value in source.state_dict().items():
        found = started[name][:, :width] if name == "token_head.weight" else started[name]
        assert torch.equal(found, value), name
    assert torch.equal(started["wide.down.1.0.weight"], started["down.1.0.weight"])
    assert not started["token_head.weight"][:, width:].any()
    losses = []
    for trainer in (once, twice):
        trainer.part.eval()
        losses.append(float(trainer.losses(trainer.draw_batch())[0].detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    average = twice.average.model.state_dict()
    assert all(torch.equal(average[name], value) for name, value in started.items())


def test_a_model_that_looks_twice_is_written(trained_path: Path, wide_path: Path) -> None:
    """With both looks changed, and nothing else."""
    before, after = load(trained_path), load(wide_path)
    assert after.config == dataclasses.replace(before.config, wide_size=TWO_LOOKS["wide_size"])
    old, new = before.state_dict(), after.state_dict()
    for name, value in old.items():
        if not name.startswith("view_namer."):
            assert torch.equal(new[name], value), name
    assert all(name.startswith("view_namer.wide.") for name in new.keys() - old.keys())
    head = new["view_namer.token_head.weight"]
    assert head[:, head.shape[1] // 2 :].any()
    layer = "blocks.2.0.conv1.0.weight"
    close, wide, start = (
        new[f"view_namer.{layer}"], new[f"view_namer.wide.{layer}"], old[f"view_namer.{layer}"]
    )  # fmt: skip
    assert not torch.equal(wide, start) and not torch.equal(close, start)
    assert not torch.equal(wide, close)
    predictor = TAPPredictor.from_pretrained(wide_path, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    found = predictor.predict_mask_concept_caption(image, boxes=[[7, 9, 31, 40]])
    assert found.captions[0] is not None and np.isfinite(found.semantic_embeddings).all()


def test_a_namer_that_looks_twice_goes_on(make_config: Any, wide_path: Path) -> None:
    """Whatever the sizes of its views."""
    assert goes_on(make_config(model=wide_path, **TWO_LOOKS))
    assert goes_on(make_config(model=wide_path, namer_size=64, wide_size=32, wide_crop_size=32))
    assert not goes_on(make_config(model=wide_path, fresh=True, **TWO_LOOKS))


@pytest.mark.parametrize("fresh", [False, True])
def test_both_looks_start_from_the_segmenter(
    make_config: Any, model_path: Path, fresh: bool
) -> None:
    segmenter = load(model_path).view_segmenter
    assert segmenter is not None
    source = segmenter.state_dict()
    config = make_config(fresh=fresh, **TWO_LOOKS)
    started = NamerTrainer(config, embed_by_hash).part.state_dict()
    for look in ("", "wide."):
        for name in ("down.3.0.weight", "blocks.1.1.conv2.0.weight"):
            assert torch.equal(started[look + name], source[name]) != fresh
    stem = started["wide.stem.0.weight"]
    assert stem.shape[1] == 4 and torch.equal(stem, source["stem.0.weight"][:, :4]) != fresh


def test_a_model_without_a_segmenter_is_refused(make_config: Any, tmp_path: Path) -> None:
    path = save_model(tiny_tap(tiny_config()), tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="`tap train views` comes first"):
        NamerTrainer(make_config(model=path), embed_by_hash)


def test_a_broken_loss_names_its_photos(make_config: Any) -> None:
    trainer = NamerTrainer(make_config(), embed_by_hash)
    with torch.no_grad():
        trainer.part.semantic_head.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 0, images \['\d.png'"):
        trainer.run()


def test_half_precision_runs(make_config: Any) -> None:
    rows = read_rows(
        NamerTrainer(make_config(precision="bfloat16", num_steps=2), embed_by_hash).run().parent
    )
    assert len(rows) == 2 and all(np.isfinite(float(row["loss"])) for row in rows)


# --- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"ema_decay": 1.5}, "ema_decay: expected 0 to 1, got 1.5"),
        ({"max_images": -1}, "max_images: expected at least 0, got -1"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"namer_size": 0}, "namer_size: expected at least 1, got 0"),
        ({"namer_size": 100}, "namer_size: expected a multiple of 32, got 100"),
        ({"namer_dim": -1}, "namer_dim: expected at least 0, got -1"),
        ({"view_size": 40}, "view_size: expected a multiple of 32, got 40"),
        ({"view_size": -32}, "view_size: expected a multiple of 32, got -32"),
        ({"box_only_weight": 0.0}, "box_only_weight: expected more than 0, got 0"),
        ({"crop_size": 90}, "crop_size: expected a multiple of 32, got 90"),
        ({"wide_size": 100}, "wide_size: expected a multiple of 32, got 100"),
        ({"wide_size": -32}, "wide_size: expected a multiple of 32, got -32"),
        ({"wide_crop_size": 100}, "wide_crop_size: expected a multiple of 32, got 100"),
        ({"wide_crop_size": 0}, "wide_crop_size: expected at least 1, got 0"),
        ({"dropout": 1.5}, "dropout: expected 0 to 1, got 1.5"),
        ({"box_only_weight": -1.0}, "box_only_weight: expected 0 to 1, got -1.0"),
        ({"data": DataConfig(photo_folder="x")}, "data: expected annotation_files, got a folder"),
    ],
)
def test_bad_configurations(make_config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_config(**changes)


def test_the_command(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    views = NameSamplingConfig(zoom_range=(0.6, 0.9), mix=0.1)
    config = make_config(num_steps=2, views=views, **TWO_LOOKS)
    save_config(config, tmp_path / "names.yaml")
    assert load_config(NamingConfig, tmp_path / "names.yaml") == config
    monkeypatch.setattr(
        "tokenize_anything.cli_train.embed_texts_cached",
        lambda texts, path, embed: embed_by_hash(texts, tiny_config().semantic_dim),
    )
    assert main(["train", "names", str(tmp_path / "names.yaml")]) == 0
    assert f"wrote {tmp_path / 'run' / 'model.safetensors'}" in capsys.readouterr().out
    assert load(tmp_path / "run" / "model.safetensors").view_namer is not None
