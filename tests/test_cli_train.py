"""`tap train`: what the words mean, and each kind of training on drawn photos with a tiny model."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.photos import write_json, write_photos
from tests.tiny import tiny_config, tiny_tap
from tests.training.tiny_runs import caption_config, pretrain_config
from tokenize_anything import TAPPredictor, TextTokenizer
from tokenize_anything.checkpoints import save_model
from tokenize_anything.cli import main, make_parser
from tokenize_anything.cli_train import run_captions, run_finetune, run_pretrain
from tokenize_anything.companions import Companions
from tokenize_anything.training.caption_config import CaptionValidationConfig
from tokenize_anything.training.caption_tokenizer import caption_texts
from tokenize_anything.training.config import DataConfig, config_to_dict, load_config
from tokenize_anything.training.finetune import FinetuneConfig

yaml = pytest.importorskip("yaml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with described photos and a model to start from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    file = write_photos(tmp_path / "set")
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation.pop("category_id", None)
    write_json(tmp_path / "set" / "described.json", content)
    tokenizer = TextTokenizer.from_bytes(TextTokenizer.train(caption_texts([file]), 60))
    config = tiny_config(vocabulary_size=tokenizer.vocabulary_size, max_text_length=29)
    tensors, metadata = Companions(None, tokenizer).pack()
    save_model(tiny_tap(config), "start.safetensors", metadata=metadata, extra_tensors=tensors)
    return tmp_path


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "tap: error" in line]
    assert len(lines) == 1
    return lines[0]


def write_config(path: Path, config: Any, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(config_to_dict(config) | changes), encoding="utf-8")
    return path


# --- words ---------------------------------------------------------------------------------------


def parse(*words: str) -> argparse.Namespace:
    return make_parser().parse_args(["train", *words])


def test_without_a_kind_it_is_fine_tuning() -> None:
    words = ("--data", "a.json", "b.json", "--images", "dir", "--out", "tuned", "--lr", "0.5",
             "--model", "tap_vit_l", "--freeze", "image_encoder", "text_decoder")  # fmt: skip
    plain, named = parse(*words), parse("finetune", *words)
    assert plain.run is named.run is run_finetune
    assert vars(plain) == vars(named)
    assert (plain.data, plain.freeze) == (["a.json", "b.json"], ["image_encoder", "text_decoder"])
    assert parse("--freeze").freeze == []


def test_defaults_are_those_of_the_configuration() -> None:
    arguments = parse()
    config = FinetuneConfig(data=DataConfig(annotation_files=("a",)), output_folder="out")
    assert tuple(arguments.freeze) == config.freeze
    found = (arguments.model, arguments.batch_size, arguments.lr, arguments.device, arguments.seed)
    assert found == (config.model, config.batch_size, config.peak_lr, config.device, config.seed)


@pytest.mark.parametrize("kind, run", [("pretrain", run_pretrain), ("captions", run_captions)])
def test_kinds_take_a_configuration(kind: str, run: Any) -> None:
    arguments = parse(kind, "stage.yaml", "--data", "d", "--out", "o")
    assert arguments.run is run
    assert (arguments.config, arguments.data, arguments.out) == ("stage.yaml", "d", "o")


# --- training ------------------------------------------------------------------------------------


def test_own_photos_give_a_model_for_predict(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train", "--data", "set/described.json", "--images", "set/images", "--out", "tuned",
        "--model", "start.safetensors", "--caption-steps", "2", "--device", "cpu",
    ]  # fmt: skip
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "wrote tuned/model.safetensors",
        "4 photos, 14 regions: 8 with a mask, 0 with a name, 4 with a caption",
        "no category names in the data: it keeps the names of start.safetensors",
        "next: tap predict PHOTO --model tuned/model.safetensors --point X,Y",
    ]
    saved = load_config(FinetuneConfig, "tuned/finetune.yaml")
    assert (saved.caption_steps, saved.freeze) == (2, ("image_encoder",))
    predictor = TAPPredictor.from_pretrained("tuned/model.safetensors", device="cpu")
    assert predictor.predict_mask_concept_caption("set/images/0.png", points=[[9, 9]]).captions


def test_stage_1_and_stage_2_from_configurations(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataConfig(annotation_files=("described.json",), image_folder="images")
    first = pretrain_config(
        Path(), Path("one"), data=data, num_steps=1, concept_loss="none",
        model=tiny_config(max_text_length=29),
    )  # fmt: skip
    second = caption_config(
        Path(), Path("two"), Path("one/model.safetensors"), Path("text.model"), data=data,
        num_steps=2, fresh_text_decoder=True,
        validation=CaptionValidationConfig(data=data, max_regions=3),
    )  # fmt: skip
    write_config(folder / "one.yaml", first)
    write_config(folder / "two.yaml", second)
    places = ["--data", "set", "--out", "runs"]
    pytest.importorskip("pycocoevalcap", reason="needs tokenize-anything[eval]")
    assert main(["train", "pretrain", "one.yaml", *places]) == 0
    assert main(["train", "captions", "two.yaml", *places]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "wrote runs/one/model.safetensors", "wrote runs/two/model.safetensors",
    ]  # fmt: skip
    assert (folder / "runs" / "text.model").is_file()
    header, row = (folder / "runs" / "two" / "validation.csv").read_text().split()
    assert header == "step,loss,cider"
    assert all(float(value) >= 0 for value in row.split(","))


# --- errors --------------------------------------------------------------------------------------


def test_what_is_missing_is_said_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--images", "dir"]) == 2
    assert "the following arguments are required: --data, --out" in error_of(capsys)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data", "none.json"], "annotations: no file at none.json"),
        (["--data", "set/described.json", "--freeze", "head"], "freeze: expected some of"),
        (["--data", "set/described.json", "--model", "tap_huge"], "unknown model 'tap_huge'"),
        (["--data", "set/described.json", "--steps", "0"], "num_steps: expected at least 1, got 0"),
    ],
)
def test_wrong_words_end_with_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    places = ["--images", "set/images", "--out", "tuned", "--device", "cpu"]
    assert main(["train", *words, *places]) == 2
    assert message in error_of(capsys)


def test_a_broken_loss_ends_with_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = caption_config(
        Path("set"), Path("run"), Path("start.safetensors"), Path("text.model"),
        fresh_text_decoder=True, num_steps=40,
    )  # fmt: skip
    rate = dataclasses.replace(config.optimizer, peak_lr=1e30, warmup_steps=0)
    write_config(folder / "run.yaml", dataclasses.replace(config, optimizer=rate))
    assert main(["train", "captions", "run.yaml"]) == 2
    message = error_of(capsys)
    assert "at step" in message and ".png" in message and "lower the learning rate" in message


def test_long_captions_are_named_on_stderr(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((folder / "set" / "described.json").read_text())
    content["annotations"][0]["captions"] = ["red brick " * 250]
    write_json(folder / "set" / "photos.json", content)
    config = caption_config(
        Path("set"), Path("run"), Path("start.safetensors"), Path("text.model"),
        fresh_text_decoder=True, num_steps=1,
    )  # fmt: skip
    write_config(folder / "run.yaml", config)
    assert main(["train", "captions", "run.yaml"]) == 0
    assert "tap: left out 1 texts of more than 28 tokens" in capsys.readouterr().err
