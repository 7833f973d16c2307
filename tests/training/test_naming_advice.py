"""What other namers say, learnt beside the names."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.data.photos import write_photos
from tests.tiny import randomize, tiny_config, tiny_tap
from tests.training.states import assert_resumes
from tests.training.tiny_naming import TWO_LOOKS, load, naming_config, read_rows, save_outliner
from tests.training.tiny_runs import embed_by_hash
from tokenize_anything.checkpoints import save_model
from tokenize_anything.training.naming_config import NameSamplingConfig, NamingConfig
from tokenize_anything.training.naming_training import NamerTrainer
from tokenize_anything.training.relative_paths import resolve_paths

MIXED = NameSamplingConfig(mix=5.0)  # half of the batches are mixtures, none of them trivial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("advice") / "set"
    write_photos(root)
    return root


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_outliner(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def advisers(folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models whose namers differ; the first looks once, the second twice."""
    paths = []
    for seed, sizes in enumerate(({}, TWO_LOOKS)):
        output = tmp_path_factory.mktemp("adviser")
        config = naming_config(folder, output, model_path, num_steps=1, **sizes)
        model = load(NamerTrainer(config, embed_by_hash).run())
        assert model.view_namer is not None
        randomize(model.view_namer, seed + 7)
        paths.append(str(save_model(model, output / "other.safetensors")))
    return paths


@pytest.fixture
def make_trainer(folder: Path, model_path: Path, tmp_path: Path) -> Any:
    def make(**changes: Any) -> NamerTrainer:
        values: dict[str, Any] = {"output": tmp_path / "run", "model": model_path, "views": MIXED}
        return NamerTrainer(naming_config(folder, **(values | changes)), embed_by_hash)

    return make


def test_the_loss_is_a_mean_of_both(make_trainer: Any, advisers: list[str]) -> None:
    """Against the sum written out: the mean of their probabilities, not of their logits."""
    sizes = {"dropout": 0.0, **TWO_LOOKS}
    alone, told = make_trainer(**sizes), make_trainer(
        distill_from=tuple(advisers), distill_share=0.3, **sizes
    )  # fmt: skip
    told.part.load_state_dict(alone.part.state_dict())
    for step in range(4):
        alone.step = told.step = step
        batch = told.draw_batch()
        alone.part.train(), told.part.train()
        own, parts = alone.losses(batch)
        assert float(parts["advice"]) == 0
        alone.part.load_state_dict(told.part.state_dict())  # running means
        vocabulary, probabilities = told.teacher.vocabulary, []
        with torch.no_grad():
            for path in advisers:
                namer = load(Path(path)).eval().view_namer
                assert namer is not None
                looks, wide = batch.looks, batch.wide
                assert wide is not None
                seen = [namer.look(told._pixels(looks), looks.boxes, looks.masks)]
                if namer.wide is not None:
                    seen.append(namer.look_around(told._pixels(wide), wide.boxes))
                tokens = namer.fuse(torch.cat(seen, 1), batch.tokens)
                directions = F.normalize(namer.semantic_head(tokens), dim=-1)
                logits = directions @ vocabulary.weights
                probabilities.append(logits.softmax(-1))
            mean = sum(probabilities) / 2
            student = copy.deepcopy(told.part).train()
            seen = [
                student.look(told._pixels(looks), looks.boxes, looks.masks),
                student.look_around(told._pixels(wide), wide.boxes),
            ]
            tokens = student.fuse(torch.cat(seen, 1), batch.tokens)
            said = vocabulary.log_probs(student.semantic_head(tokens))
            advice = (mean * (mean.log() - said)).sum(-1).mean()
        loss, parts = told.losses(batch)
        assert float(parts["concept"]) == pytest.approx(float(own.detach()), rel=1e-4)
        assert float(parts["advice"]) == pytest.approx(float(advice), rel=1e-3)
        expected = 0.7 * float(own.detach()) + 0.3 * float(advice)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)
        assert loss.requires_grad


def test_who_says_the_same_learns_nothing(make_trainer: Any, advisers: list[str]) -> None:
    changes = {"model": advisers[1], "distill_from": (advisers[1],), "distill_share": 1.0}
    trainer = make_trainer(dropout=0.0, **changes, **TWO_LOOKS)
    trainer.part.eval()
    loss, _ = trainer.losses(trainer.draw_batch())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    largest = max(float(p.grad.abs().max()) for p in trainer.part.parameters() if p.requires_grad)
    assert largest < 1e-3


def test_advice_is_learnt(make_trainer: Any, advisers: list[str]) -> None:
    path = Path(advisers[0])
    before = path.read_bytes()
    still = NameSamplingConfig(mix=0.0, erase=0.0, hide_mask=0.0, colour=0.1)
    trainer = make_trainer(
        distill_from=(advisers[0],), distill_share=1.0, num_steps=45, batch_size=12, dropout=0.0,
        views=still,
    )  # fmt: skip
    rows = read_rows(trainer.run().parent)
    said = [float(row["advice"]) for row in rows]
    assert np.mean(said[-10:]) < 0.5 * np.mean(said[:5])
    assert [row["loss"] for row in rows] == [row["advice"] for row in rows]
    assert path.read_bytes() == before


def test_killed_and_resumed_equals_uninterrupted(
    folder: Path, model_path: Path, advisers: list[str], tmp_path: Path
) -> None:
    shared = {"model": model_path, "distill_from": tuple(advisers), **TWO_LOOKS}
    whole = naming_config(folder, tmp_path / "whole", **shared)
    parts = naming_config(folder, tmp_path / "parts", save_every=3, **shared)
    assert_resumes(NamerTrainer, whole, parts)


def test_advisers_that_cannot_be_asked(
    make_trainer: Any, model_path: Path, advisers: list[str], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"distill_from: expected models with a view namer, .*tiny"
    ):
        make_trainer(distill_from=(str(model_path),))
    message = f"the namer of {advisers[1]} wants wider views of 64 pixels, got wide_size 0"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(distill_from=(advisers[1],))
    other = tiny_tap(
        tiny_config(zoom=0.5, view_dim=5, view_size=64, namer_size=32, semantic_dim=19)
    )
    path = save_model(other, tmp_path / "other.safetensors")
    message = f"dimensions, as {model_path} has, got (64, 19) in {path}"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(distill_from=(str(path),))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_trainer(distill_from=(str(tmp_path / "nowhere.safetensors"),))
    with pytest.raises(ValueError, match=re.escape("distill_share: expected 0 to 1, got 1.5")):
        make_trainer(distill_share=1.5)


def test_their_paths_are_those_of_earlier_runs(folder: Path, model_path: Path) -> None:
    config = naming_config(folder, Path("run"), model_path, distill_from=("tap_tiny", "a/b.st"))
    resolved: NamingConfig = resolve_paths(config, "data", "out")
    assert resolved.distill_from == ("tap_tiny", str(Path("out", "a", "b.st")))
