"""The whole way by commands: concept files, a store of embeddings, stage 1 killed and resumed,
stage 2."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from tests.data.photos import SHAPES, write_photos
from tests.tiny import tiny_config
from tests.tiny_clip import DIM, make_tiny_clip, needs_open_clip, write_tiny_clip
from tests.training.processes import Process, run_two, start_two, wait_for
from tests.training.states import assert_equal_states
from tests.training.tiny_runs import caption_config, data_config, pretrain_config
from tokenize_anything import ConceptVocabulary, TAPPredictor, load_model
from tokenize_anything.cli import main
from tokenize_anything.training.caption_config import CaptionValidationConfig
from tokenize_anything.training.checkpointing import load_training_state
from tokenize_anything.training.config import save_config

pytest.importorskip("lance", reason="needs tokenize-anything[search]")
CLI = "tokenize_anything.cli"
STEPS, SAVED = 30, 10


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with photos, a small CLIP, and what `tap semantic` makes of them."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "set", count=5)
    write_tiny_clip(tmp_path / "clip", make_tiny_clip())
    Path("names.txt").write_text("\n".join(SHAPES))
    words = ["semantic", "concepts", "names.txt", "--tower", "clip", "--device", "cpu", "--out"]
    assert main([*words, "source.safetensors"]) == 0
    assert main([*words, "target.safetensors", "--target"]) == 0
    build = ["semantic", "build", "set/photos.json", "--images", "set/images", "--tower", "clip",
             "--device", "cpu", "--out", "regions.lance"]  # fmt: skip
    assert main(build) == 0
    assert main(["semantic", "verify", "regions.lance"]) == 0
    return tmp_path


def write_stage_1(folder: Path) -> None:
    # Boxes without a mask have no embedding: the store names them, and so does the run.
    data = dataclasses.replace(data_config(folder / "set"), on_bad_data="skip")
    config = pretrain_config(
        folder / "set", Path("one"), data=data, model=tiny_config(semantic_dim=DIM),
        embeddings=str(folder / "regions.lance"), concepts=str(folder / "source.safetensors"),
        target_concepts=str(folder / "target.safetensors"),
        batch_size=4, num_steps=STEPS, save_every=SAVED,
    )  # fmt: skip
    save_config(config, folder / "stage1.yaml")


def train(out: str) -> list[Process]:
    """Two processes of `tap train pretrain` on gloo."""
    return start_two(CLI, "train", "pretrain", "stage1.yaml", "--out", out)


def assert_ended(started: list[Process]) -> None:
    ended = wait_for(started)
    assert [code for code, _ in ended] == [0, 0], ended


def kill_after(started: list[Process], step: int, log: Path) -> None:
    """SIGKILL to both when the log has the row of a step."""
    while not log.is_file() or f"\n{step}," not in log.read_text():
        assert all(process.poll() is None for process in started), wait_for(started)
        time.sleep(0.02)
    for process in started:
        process.kill()
    assert 0 not in [code for code, _ in wait_for(started)]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@needs_open_clip
def test_from_photos_to_captions_with_a_kill_between(folder: Path) -> None:
    write_stage_1(folder)
    assert_ended(train("whole"))
    started = train("killed")
    kill_after(started, SAVED + 2, folder / "killed" / "one" / "log.csv")
    left = load_training_state(folder / "killed" / "one" / "training_state.pt")
    assert SAVED <= left["step"] < STEPS  # in the middle
    assert_ended(train("killed"))
    states = [
        load_training_state(folder / out / "one" / "training_state.pt")
        for out in ("whole", "killed")
    ]
    assert states[0]["step"] == STEPS
    assert_equal_states(states[0], states[1])
    logs = [(folder / out / "one" / "log.csv").read_text() for out in ("whole", "killed")]
    assert logs[0] == logs[1]
    kept = load_model(folder / "killed" / "one" / "model.safetensors", device="cpu")
    assert_equal_states(dict(kept.state_dict()), dict(states[0]["average"]))
    source = ConceptVocabulary.load(folder / "source.safetensors")
    assert ConceptVocabulary.load(folder / "killed" / "one" / "concepts.safetensors").names == (
        source.names
    )

    validation = CaptionValidationConfig(data=data_config(folder / "set"), every=2, max_regions=7)
    second = caption_config(
        folder / "set", Path("two"), Path("one/model.safetensors"), Path("text.model"),
        fresh_text_decoder=True, num_steps=4, validation=validation,
    )  # fmt: skip
    save_config(second, folder / "stage2.yaml")
    pytest.importorskip("pycocoevalcap", reason="needs tokenize-anything[eval]")
    ended = run_two(CLI, "train", "captions", "stage2.yaml", "--out", "killed")
    assert [code for code, _ in ended] == [0, 0], ended
    predictor = TAPPredictor.from_pretrained(
        folder / "killed" / "two" / "model.safetensors", device="cpu",
        concepts=folder / "source.safetensors", text_tokenizer=folder / "killed" / "text.model",
    )  # fmt: skip
    regions = predictor.predict_mask_concept_caption("set/images/0.png", points=[[9, 9]])
    assert len(regions.captions) == 1 and regions.concepts[0][0] in SHAPES
