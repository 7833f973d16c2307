"""Fine-tuning on own photos: from a COCO file to one model file, and what stops it in time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.data.photos import SHAPES, write_json, write_photos
from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer
from tests.tiny_predictor import tiny_vocabulary
from tests.training.tiny_runs import embed_by_hash
from tokenize_anything import TAPPredictor, TextTokenizer
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions
from tokenize_anything.training.caption_tokenizer import caption_texts
from tokenize_anything.training.config import DataConfig
from tokenize_anything.training.finetune import FinetuneConfig, choose_steps, finetune
from tokenize_anything.training.own_photos import survey_photos

SPACE = "a-tower@0123"


class HashTower:
    """A text encoder without weights."""

    identity, logit_scale = SPACE, 40.0

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return embed_by_hash(texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with names and captions, and a whole tiny model to start from."""
    root = tmp_path_factory.mktemp("own") / "set"
    file = write_photos(root)
    tokenizer = TextTokenizer.from_bytes(TextTokenizer.train(caption_texts([file]), 60))
    config = tiny_config(vocabulary_size=tokenizer.vocabulary_size, max_text_length=29)
    companions = Companions(tiny_vocabulary(config=config), tokenizer, SPACE)
    tensors, metadata = companions.pack()
    save_model(
        tiny_tap(config), root / "start.safetensors", metadata=metadata, extra_tensors=tensors
    )
    return root


def make_config(folder: Path, out: Path, **changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = dict(
        data=DataConfig(
            annotation_files=(str(folder / "photos.json"),), image_folder=str(folder / "images")
        ),
        output_folder=str(out),
        model=str(folder / "start.safetensors"),
        num_steps=3,
        caption_steps=2,
        batch_size=2,
        device="cpu",
        num_workers=0,
    )
    return FinetuneConfig(**(values | changes))


def change(folder: Path, target: Path, **edits: Any) -> DataConfig:
    """The photos with an edited copy of their annotations; a key of None is taken out."""
    content = json.loads((folder / "photos.json").read_text())
    for entry in [*content["annotations"], *content["images"]]:
        for key in [key for key, value in edits.items() if value is None]:
            entry.pop(key, None)
    for key, value in edits.items():
        if value is not None:
            content[key] = value
    return DataConfig(
        annotation_files=(str(write_json(target, content)),), image_folder=str(folder / "images")
    )


def tensors_of(path: Path) -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(path).items()}


def changed_parts(before: Path, after: Path) -> set[str]:
    """Parts of the model in which some parameter moved, by more than the rounding to float16."""
    old, new = tensors_of(before), tensors_of(after)
    return {
        name.partition(".")[0]
        for name in old.keys() & new.keys()
        if old[name].shape == new[name].shape
        and not name.startswith("extra.")
        and not torch.allclose(old[name].half().float(), new[name], rtol=2e-3, atol=1e-4)
    }


# --- what comes out ------------------------------------------------------------------------------


def test_one_file_with_the_new_names_and_captions(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = finetune(make_config(folder, out, peak_lr=1e-2), tower=HashTower())
    assert report.model_path == out / "model.safetensors"
    assert (report.has_new_concepts, report.has_new_captions) == (True, True)
    assert report.survey.names == tuple(sorted(SHAPES))
    moved = changed_parts(folder / "start.safetensors", report.model_path)
    assert moved == {"prompt_encoder", "image_decoder", "text_decoder"}
    predictor = TAPPredictor.from_pretrained(report.model_path, device="cpu")
    assert predictor.concepts is not None and predictor.concepts.names == tuple(sorted(SHAPES))
    wanted = 40 * embed_by_hash([f"a {name}" for name in sorted(SHAPES)]).T
    torch.testing.assert_close(predictor.concepts.weights, wanted, rtol=1e-3, atol=1e-2)
    assert predictor.concepts.space == SPACE
    start = TAPPredictor.from_pretrained(folder / "start.safetensors", device="cpu")
    assert predictor.text_tokenizer == start.text_tokenizer
    regions = predictor.predict_mask_concept_caption(
        str(folder / "images" / "0.png"), boxes=[[5, 7, 25, 24]], top_k=3
    )
    assert set(regions.concepts[0]) == set(SHAPES)
    # The same command again finds everything done.
    written = report.model_path.stat().st_mtime_ns
    assert finetune(make_config(folder, out, peak_lr=1e-2), tower=HashTower()) == report
    assert report.model_path.stat().st_mtime_ns == written


@pytest.mark.parametrize("freeze", [("image_encoder",), ("image_encoder", "view_namer")])
def test_a_namer_learns_the_names_too(
    folder: Path, tmp_path: Path, freeze: tuple[str, ...]
) -> None:
    views = {"view_dim": 2, "view_size": 32, "namer_size": 32, "wide_size": 32, "click_size": 64}
    config = tiny_config(zoom=0.5, **views)
    tensors, metadata = Companions(tiny_vocabulary(config=config), tiny_tokenizer(), SPACE).pack()
    start = save_model(
        tiny_tap(config), tmp_path / "start.safetensors", metadata=metadata, extra_tensors=tensors
    )
    data = change(folder, tmp_path / "named.json", captions=None)
    changes: dict[str, Any] = dict(data=data, model=str(start), freeze=freeze, peak_lr=1e-2)
    report = finetune(make_config(folder, tmp_path / "out", **changes), tower=HashTower())
    moved = changed_parts(start, report.model_path)
    learnt = {"view_namer"} - set(freeze)
    assert moved == {"prompt_encoder", "image_decoder"} | learnt
    assert (tmp_path / "out" / "names").is_dir() == bool(learnt)
    predictor = TAPPredictor.from_pretrained(report.model_path, device="cpu")
    assert predictor.model.config == config
    found = predictor.predict_mask_concept_caption(
        str(folder / "images" / "0.png"), boxes=[[5, 7, 25, 24]], captions=False
    )
    assert found.concepts[0][0] in SHAPES


def test_names_alone_leave_the_captions(folder: Path, tmp_path: Path) -> None:
    data = change(folder, tmp_path / "named.json", captions=None)
    report = finetune(
        make_config(folder, tmp_path / "out", data=data, peak_lr=1e-2), tower=HashTower()
    )
    assert (report.has_new_concepts, report.has_new_captions) == (True, False)
    moved = changed_parts(folder / "start.safetensors", report.model_path)
    assert moved == {"prompt_encoder", "image_decoder"}


def test_captions_alone_leave_the_names(folder: Path, tmp_path: Path) -> None:
    data = change(folder, tmp_path / "described.json", category_id=None)
    report = finetune(make_config(folder, tmp_path / "out", data=data, peak_lr=1e-2, image_size=72))
    assert (report.has_new_concepts, report.has_new_captions) == (False, True)
    assert changed_parts(folder / "start.safetensors", report.model_path) == {"text_decoder"}
    predictor = TAPPredictor.from_pretrained(report.model_path, device="cpu")
    assert predictor.concepts is not None and "spoon" in predictor.concepts.names
    assert predictor.model.config.image_size == 72


def test_with_everything_frozen_the_names_are_new_all_the_same(
    folder: Path, tmp_path: Path
) -> None:
    parts = ("image_encoder", "prompt_encoder", "image_decoder", "text_decoder")
    report = finetune(make_config(folder, tmp_path / "out", freeze=parts), tower=HashTower())
    assert changed_parts(folder / "start.safetensors", report.model_path) == set()
    predictor = TAPPredictor.from_pretrained(report.model_path, device="cpu")
    assert predictor.concepts is not None and predictor.concepts.names == tuple(sorted(SHAPES))


def test_a_fresh_text_decoder_has_a_tokenizer_of_its_own(folder: Path, tmp_path: Path) -> None:
    config = make_config(
        folder, tmp_path / "out", fresh_text_decoder=True,
        freeze=("image_encoder", "prompt_encoder", "image_decoder"),
    )  # fmt: skip
    predictor = TAPPredictor.from_pretrained(
        finetune(config, tower=HashTower()).model_path, device="cpu"
    )
    assert predictor.text_tokenizer is not None
    pieces = predictor.text_tokenizer.vocabulary_size
    assert predictor.model.text_decoder.word_proj.out_features == pieces != 60


def test_steps_follow_the_size_of_the_data() -> None:
    assert choose_steps(500, 8, 12) == 750
    assert choose_steps(3, 8, 12) == 100
    assert choose_steps(10**6, 8, 12) == 4000


# --- resuming ------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """Ends in stage 2, as a kill would leave it, then runs again."""
    whole = finetune(make_config(folder, tmp_path / "whole"), tower=HashTower()).model_path
    config = make_config(folder, tmp_path / "parts")
    path = finetune(config, tower=HashTower()).model_path
    path.unlink()
    (tmp_path / "parts" / "captions" / "training_state.pt").unlink()
    again = finetune(config, tower=HashTower()).model_path
    first, second = load_file(whole), load_file(again)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_folder_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    config = make_config(folder, tmp_path / "out")
    finetune(config, tower=HashTower())
    other = dataclasses.replace(config, peak_lr=1e-3)
    with pytest.raises(ValueError, match=r"output_folder: .*out holds a run with other settings"):
        finetune(other, tower=HashTower())


# --- the data, before anything is trained --------------------------------------------------------


def test_the_survey_counts(folder: Path) -> None:
    survey = survey_photos(make_config(folder, folder).data)
    assert dataclasses.asdict(survey) == {
        "num_images": 4, "num_regions": 14, "num_masks": 8, "num_named": 10, "num_captioned": 4,
        "names": tuple(sorted(SHAPES)),
    }  # fmt: skip


def test_data_without_names_and_captions_is_refused(folder: Path, tmp_path: Path) -> None:
    data = change(folder, tmp_path / "mute.json", category_id=None, captions=None)
    message = r"data: expected category names or captions in .*mute\.json.*got 12 regions with nei"
    with pytest.raises(ValueError, match=message):
        finetune(make_config(folder, tmp_path / "out", data=data))


def test_a_category_without_a_name_is_refused(folder: Path, tmp_path: Path) -> None:
    data = change(folder, tmp_path / "nameless.json", categories=[{"id": 1, "name": " "}])
    with pytest.raises(ValueError, match=r"nameless\.json: category 1 has no name"):
        finetune(make_config(folder, tmp_path / "out", data=data))


def test_missing_photos_are_listed(folder: Path, tmp_path: Path) -> None:
    data = dataclasses.replace(make_config(folder, tmp_path).data, image_folder=str(tmp_path))
    message = r"images: 4 of the 4 photos in .* are missing: .*0\.png; .*3\.png; is .* their folder"
    with pytest.raises(FileNotFoundError, match=message):
        finetune(make_config(folder, tmp_path / "out", data=data))


def test_photos_that_cannot_be_used_are_listed_together(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (folder / "images").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:99])
    cv2.imwrite(str(images / "3.png"), np.zeros((5, 6, 3), np.uint8))
    data = dataclasses.replace(make_config(folder, tmp_path).data, image_folder=str(images))
    message = r"images: 2 of 4 photos cannot be used: .*1\.png.*3\.png is \(5, 6\)"
    with pytest.raises(ValueError, match=message):
        finetune(make_config(folder, tmp_path / "out", data=data))


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freeze": ("encoder",)}, r"freeze: expected some of \['image_encoder', .*got \['encod"),
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"caption_steps": 0}, "caption_steps: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"data": DataConfig(photo_folder="photos")}, "data: expected COCO-style annotation files"),
    ],
)
def test_wrong_settings_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(folder, tmp_path, **changes)


def test_a_model_of_unknown_space_is_refused(folder: Path, tmp_path: Path) -> None:
    bare = save_model(tiny_tap(), tmp_path / "bare.safetensors")
    data = change(folder, tmp_path / "named.json", captions=None)
    config = make_config(folder, tmp_path / "out", data=data, model=str(bare))
    with pytest.raises(ValueError, match="does not say which text encoder its concepts belong to"):
        finetune(config)


def test_captions_need_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    bare = save_model(tiny_tap(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"text_tokenizer: .*bare\.safetensors brings none"):
        finetune(make_config(folder, tmp_path / "out", model=str(bare)), tower=HashTower())


def test_a_size_that_nothing_uses_is_refused(folder: Path, tmp_path: Path) -> None:
    parts = ("image_encoder", "prompt_encoder", "image_decoder", "text_decoder")
    config = make_config(folder, tmp_path / "out", freeze=parts, image_size=72)
    with pytest.raises(ValueError, match="image_size: expected None"):
        finetune(config, tower=HashTower())
