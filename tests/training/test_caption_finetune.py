"""Stage 2: captions learnt word for word, frozen parts, kept tokens, resuming, what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.data.photos import coco, write_json, write_photos
from tests.tiny import tiny_tap, tiny_tokenizer, tiny_tokenizer_model
from tests.training.test_pretrain import Killed, assert_equal_states
from tests.training.tiny_runs import caption_config, caption_model_config
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.image_transform import prepare_images
from tokenize_anything.modeling import TAP
from tokenize_anything.prompts import PointPrompts
from tokenize_anything.text_generation import generate
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import caption_texts, train_caption_tokenizer
from tokenize_anything.training.checkpointing import load_training_state
from tokenize_anything.training.config import CaptionConfig, DataConfig, load_config
from tokenize_anything.training.optimizer import OptimizerConfig
from tokenize_anything.training.semantic_token_cache import load_tokens, save_tokens, tokens_key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a tokenizer of their texts, and a model with as many words."""
    root = tmp_path_factory.mktemp("captions") / "set"
    file = write_photos(root)
    tokenizer = train_caption_tokenizer([file], root / "text.model", vocabulary_size=60)
    model = tiny_tap(caption_model_config(tokenizer.vocabulary_size))
    with torch.no_grad():  # random weights tell regions apart, but not by much
        model.image_decoder.transformer.norm.weight.mul_(8)
    save_model(model, root / "stage1.safetensors")
    return root


def make_config(folder: Path, output: Path, **changes: Any) -> CaptionConfig:
    return caption_config(
        folder, output, folder / "stage1.safetensors", folder / "text.model", **changes
    )


def image_side(model: TAP) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.startswith("text_decoder.")}


# --- learning ------------------------------------------------------------------------------------


def keep_four_texts(folder: Path, tmp_path: Path) -> Path:
    """Annotations of four regions with a sentence each."""
    content = json.loads((folder / "photos.json").read_text())
    sentences = [
        "a red ball",
        "this blue brick",
        "two kites fly",
        "nobody knows",
    ]
    with_mask = [a for a in content["annotations"] if "segmentation" in a][:4]
    for annotation, sentence in zip(with_mask, sentences, strict=True):
        annotation.pop("category_id", None)
        annotation["captions"] = [sentence]
    images = [{k: v for k, v in i.items() if k != "captions"} for i in content["images"]]
    return write_json(tmp_path / "four.json", coco(images, with_mask))


def test_four_regions_are_learnt_word_for_word(folder: Path, tmp_path: Path) -> None:
    file = keep_four_texts(folder, tmp_path)
    train_caption_tokenizer([file], tmp_path / "text.model", vocabulary_size=60)
    trainer = CaptionTrainer(
        caption_config(
            folder, tmp_path / "run", folder / "stage1.safetensors", tmp_path / "text.model",
            data=DataConfig(annotation_files=(str(file),), image_folder=str(folder / "images")),
            fresh_text_decoder=True, text_dropout=0.0, num_steps=200,
            optimizer=OptimizerConfig(peak_lr=4e-3, warmup_steps=5, weight_decay=0.0),
        )
    )  # fmt: skip
    path = trainer.run()
    tokenizer = trainer.tokenizer
    written = generate(
        load_model(path, device="cpu").text_decoder, trainer.semantic_tokens(),
        start_id=tokenizer.start_id, end_id=tokenizer.end_id,
    )  # fmt: skip
    assert len(trainer.regions) == 4
    expected = [region.texts[0] for region in trainer.regions]
    assert tokenizer.decode(written.token_ids) == expected


def test_only_the_text_decoder_learns(folder: Path, tmp_path: Path) -> None:
    trainer = CaptionTrainer(make_config(folder, tmp_path, num_steps=2))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trained = load_model(trainer.run(), device="cpu")
    for name, value in trained.state_dict().items():
        is_same = torch.equal(value, before[name])
        assert is_same != name.startswith("text_decoder."), name
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == name.startswith("text_decoder."), name
        assert (parameter.grad is not None) == name.startswith("text_decoder."), name


def test_a_run_keeps_its_configuration_and_log(folder: Path, tmp_path: Path) -> None:
    trainer = CaptionTrainer(make_config(folder, tmp_path, num_steps=4, log_every=2))
    trainer.run()
    assert load_config(CaptionConfig, tmp_path / "config.yaml") == trainer.config
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,loss,lr"
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "4"]


def test_each_step_draws_its_own_captions(folder: Path, tmp_path: Path) -> None:
    standing = OptimizerConfig(peak_lr=1e-12, warmup_steps=0, weight_decay=0.0)
    losses = []
    for run in range(2):
        trainer = CaptionTrainer(
            make_config(folder, tmp_path / str(run), optimizer=standing, text_dropout=0.0)
        )
        tokens = trainer.semantic_tokens()
        losses.append([trainer.train_step(tokens)["loss"] for _ in range(3)])
    assert losses[0] == losses[1]
    assert len({round(loss, 4) for loss in losses[0]}) == 3


def test_longer_texts_are_drawn_more_often(folder: Path, tmp_path: Path) -> None:
    trainer = CaptionTrainer(make_config(folder, tmp_path))
    words = [np.mean([len(text.split()) for text in region.texts]) for region in trainer.regions]
    assert len(set(words)) > 2
    np.testing.assert_allclose(trainer.weights, np.sqrt(words) / np.sum(np.sqrt(words)), rtol=1e-6)


# --- resuming ------------------------------------------------------------------------------------


class DiesAtStep4(CaptionTrainer):
    def train_step(self, tokens: Tensor) -> dict[str, float]:
        if self.step == 4:
            raise Killed
        return super().train_step(tokens)


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    CaptionTrainer(make_config(folder, tmp_path / "whole")).run()
    config = make_config(folder, tmp_path / "parts", save_every=3)
    with pytest.raises(Killed):
        DiesAtStep4(config).run()
    resumed = CaptionTrainer(config)
    torch.rand(3)  # whatever else happened in the process
    resumed.run()
    names = ("whole", "parts")
    states = [load_training_state(tmp_path / name / "training_state.pt") for name in names]
    assert states[0]["step"] == 6
    assert_equal_states(states[0], states[1])
    logs = [(tmp_path / name / "log.csv").read_bytes() for name in names]
    assert logs[0] == logs[1]


# --- semantic tokens -----------------------------------------------------------------------------


def test_tokens_are_those_of_each_box_alone(folder: Path, tmp_path: Path) -> None:
    trainer = CaptionTrainer(make_config(folder, tmp_path))
    tokens, model = trainer.semantic_tokens(), trainer.model
    assert tokens.shape == (len(trainer.regions), model.config.decoder_dim)
    for row in (0, 3, len(trainer.regions) - 1):
        region = trainer.regions[row]
        pixels, (frame,) = prepare_images([trainer.records[region.image_index].path], model.config)
        prompts = PointPrompts.from_boxes([region.box_xyxy])
        coords = torch.from_numpy(frame.to_model_frame(prompts.coords_xy))
        with torch.no_grad():
            outputs = model.decode_regions(
                model.prepare_regions(model.encode_images(pixels)),
                coords[None], torch.tensor(prompts.labels)[None],
            )  # fmt: skip
        torch.testing.assert_close(tokens[row], outputs.semantic_tokens[0, 0], rtol=1e-4, atol=1e-4)


def test_kept_tokens_equal_fresh_ones(folder: Path, tmp_path: Path) -> None:
    fresh = CaptionTrainer(make_config(folder, tmp_path)).semantic_tokens()
    path = tmp_path / "semantic_tokens.safetensors"
    written = path.stat().st_mtime_ns
    kept = CaptionTrainer(make_config(folder, tmp_path)).semantic_tokens()
    assert torch.equal(kept, fresh)
    assert path.stat().st_mtime_ns == written
    elsewhere = CaptionTrainer(make_config(folder, tmp_path / "b")).semantic_tokens()
    assert torch.equal(elsewhere, fresh)


def test_tokens_are_made_again_when_they_would_differ(folder: Path, tmp_path: Path) -> None:
    trainer = CaptionTrainer(make_config(folder, tmp_path))
    key = tokens_key(trainer.model, trainer.records, trainer.regions)
    assert key == tokens_key(trainer.model, trainer.records, trainer.regions)
    others = [tokens_key(trainer.model, trainer.records, trainer.regions[:-1])]
    with torch.no_grad():
        trainer.model.text_decoder.norm.bias.add_(1)
        assert tokens_key(trainer.model, trainer.records, trainer.regions) == key
        trainer.model.image_decoder.iou_token.add_(1e-3)
    others.append(tokens_key(trainer.model, trainer.records, trainer.regions))
    trainer.records.reverse()
    others.append(tokens_key(trainer.model, trainer.records, trainer.regions))
    assert len({key, *others}) == 4


def test_tokens_of_another_key_or_damaged_ones_are_not_used(tmp_path: Path) -> None:
    path, tokens = tmp_path / "tokens.safetensors", torch.randn(5, 3)
    assert load_tokens(path, "key") is None
    save_tokens(path, tokens, "key")
    kept = load_tokens(path, "key")
    assert kept is not None and torch.equal(kept, tokens)
    assert load_tokens(path, "other key") is None
    path.write_bytes(path.read_bytes()[:50])
    assert load_tokens(path, "key") is None


# --- tokenizer and model -------------------------------------------------------------------------


def test_the_tokenizer_learns_what_stage_2_will_say(folder: Path, tmp_path: Path) -> None:
    texts = caption_texts([folder / "photos.json"])
    assert texts == sorted(set(texts))
    assert {"a ball", "a brick", "a kite", "a green kite in the corner"} < set(texts)
    assert any(text.startswith("a red ball and a ") for text in texts)
    tokenizer = train_caption_tokenizer(
        [folder / "photos.json"], tmp_path / "text.model", vocabulary_size=60
    )
    assert TextTokenizer.from_file(tmp_path / "text.model") == tokenizer
    assert (tmp_path / "text.model").read_bytes() == TextTokenizer.train(texts, 60)
    assert tokenizer.decode(tokenizer.encode(texts)[0]) == texts


def test_a_tokenizer_of_other_pieces_needs_a_fresh_decoder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.model").write_bytes(tiny_tokenizer_model())
    pieces = tiny_tokenizer().vocabulary_size
    stage1 = folder / "stage1.safetensors"
    config = caption_config(folder, tmp_path / "run", stage1, tmp_path / "text.model")
    wanted = load_model(stage1, device="cpu").config.vocabulary_size
    message = rf"text_tokenizer: expected {wanted} pieces, .*got {pieces} .*fresh_text_decoder"
    with pytest.raises(ValueError, match=message):
        CaptionTrainer(config)
    config = caption_config(
        folder, tmp_path / "run", stage1, tmp_path / "text.model", fresh_text_decoder=True,
        num_steps=1,
    )  # fmt: skip
    trainer = CaptionTrainer(config)
    assert trainer.model.text_decoder.word_proj.out_features == pieces
    old = image_side(load_model(stage1, device="cpu"))
    trained = load_model(trainer.run(), device="cpu")
    assert trained.config.vocabulary_size == pieces
    assert all(torch.equal(value, old[name]) for name, value in image_side(trained).items())


def test_the_model_may_be_used_at_another_size(folder: Path, tmp_path: Path) -> None:
    trainer = CaptionTrainer(make_config(folder, tmp_path, image_size=72, num_steps=1))
    trained = load_model(trainer.run(), device="cpu")
    assert trained.config.image_size == 72
    assert trained.image_encoder.pos_embed.shape[0] == 81


def test_text_dropout_is_used(folder: Path, tmp_path: Path) -> None:
    for changes in ({}, {"image_size": 72}, {"fresh_text_decoder": True}):
        trainer = CaptionTrainer(make_config(folder, tmp_path, text_dropout=0.3, **changes))
        dropouts = [m.p for m in trainer.model.text_decoder.modules() if isinstance(m, nn.Dropout)]
        assert set(dropouts) == {0.3}


# --- bad data ------------------------------------------------------------------------------------


def test_a_caption_of_500_words_is_cut(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "photos.json").read_text())
    for annotation in content["annotations"]:
        annotation["captions"] = ["brick ball kite corner red " * 100]
    file = write_json(tmp_path / "long.json", content)
    data = DataConfig(annotation_files=(str(file),), image_folder=str(folder / "images"))
    trainer = CaptionTrainer(make_config(folder, tmp_path / "run", data=data))
    row = trainer.train_step(trainer.semantic_tokens())
    assert np.isfinite(row["loss"])


def test_data_without_texts_is_refused(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "photos.json").read_text())
    for entry in [*content["annotations"], *content["images"]]:
        entry.pop("captions", None)
        entry.pop("category_id", None)
    file = write_json(tmp_path / "mute.json", content)
    data = DataConfig(annotation_files=(str(file),), image_folder=str(folder / "images"))
    with pytest.raises(
        ValueError, match=r"regions with names or captions in .*mute\.json.*got none"
    ):
        CaptionTrainer(make_config(folder, tmp_path / "run", data=data))


def test_a_broken_loss_stops_the_run_and_names_the_images(folder: Path, tmp_path: Path) -> None:
    trainer = CaptionTrainer(make_config(folder, tmp_path, batch_size=50))
    tokens = torch.full((len(trainer.regions), 64), float("nan"))
    message = r"loss is nan at step 0, images \['0\.png', '1\.png', '2\.png', '3\.png'\]"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train_step(tokens)


def test_an_image_of_another_size_is_named(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "photos.json").read_text())
    content["images"][1]["height"] += 1
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    file = write_json(tmp_path / "wrong.json", content)
    data = DataConfig(annotation_files=(str(file),), image_folder=str(folder / "images"))
    trainer = CaptionTrainer(make_config(folder, tmp_path / "run", data=data))
    with pytest.raises(ValueError, match=r"1\.png is \(53, 43\), its annotation says \(54, 43\)"):
        trainer.semantic_tokens()
