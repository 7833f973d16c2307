"""Stage 2: captions learnt word for word, frozen parts, resuming, what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.data.photos import coco, write_json, write_photos
from tests.tiny import tiny_tap, tiny_tokenizer, tiny_tokenizer_model
from tests.tiny_predictor import sharpen, tiny_vocabulary
from tests.training.tiny_runs import caption_config, caption_model_config, data_config
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions
from tokenize_anything.modeling import TAP
from tokenize_anything.text_generation import generate
from tokenize_anything.text_tokenizer import TextTokenizer
from tokenize_anything.training.caption_config import (
    CaptionConfig,
    CaptionValidationConfig,
    RegionTokenConfig,
)
from tokenize_anything.training.caption_finetune import CaptionTrainer
from tokenize_anything.training.caption_tokenizer import caption_texts, train_caption_tokenizer
from tokenize_anything.training.checkpointing import load_training_state
from tokenize_anything.training.config import DataConfig, load_config
from tokenize_anything.training.optimizer import OptimizerConfig
from tokenize_anything.training.region_tokens import TokenSource
from tokenize_anything.training.semantic_token_cache import CachedTokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a tokenizer of their texts, and a model with as many words."""
    root = tmp_path_factory.mktemp("captions") / "set"
    file = write_photos(root)
    tokenizer = train_caption_tokenizer([file], root / "text.model", vocabulary_size=60)
    model = sharpen(tiny_tap(caption_model_config(tokenizer.vocabulary_size)))
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
            fresh_text_decoder=True, text_dropout=0.0, num_steps=120, log_every=50,
            tokens=RegionTokenConfig(point_views=1),
            optimizer=OptimizerConfig(peak_lr=4e-3, warmup_steps=5, weight_decay=0.0),
        )
    )  # fmt: skip
    path = trainer.run()
    tokenizer = trainer.tokenizer
    rows = np.repeat(np.arange(4), 2)  # each region from its box, then from points
    tokens = trainer.token_source().select(rows, np.tile([0, 1], 4))
    written = generate(
        load_model(path, device="cpu").text_decoder, tokens,
        start_id=tokenizer.start_id, end_id=tokenizer.end_id,
    )  # fmt: skip
    assert len(trainer.regions) == 4
    expected = [trainer.regions[row].texts[0] for row in rows]
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
        tokens = trainer.token_source()
        losses.append([trainer.train_step(tokens)["loss"] for _ in range(3)])
    assert losses[0] == losses[1]
    assert len({round(loss, 4) for loss in losses[0]}) == 3


def test_longer_texts_are_drawn_more_often(folder: Path, tmp_path: Path) -> None:
    trainer = CaptionTrainer(make_config(folder, tmp_path))
    words = [np.mean([len(text.split()) for text in region.texts]) for region in trainer.regions]
    assert len(set(words)) > 2
    np.testing.assert_allclose(trainer.weights, np.sqrt(words) / np.sum(np.sqrt(words)), rtol=1e-6)


def test_tokens_computed_on_the_fly_teach_the_same(folder: Path, tmp_path: Path) -> None:
    rows = []
    for cached in (True, False):
        tokens = RegionTokenConfig(point_views=2, cached=cached)
        trainer = CaptionTrainer(make_config(folder, tmp_path / str(cached), tokens=tokens))
        trainer.run()
        rows.append([row.split(",") for row in (tmp_path / str(cached) / "log.csv").open()][1:])
    np.testing.assert_allclose(
        np.array(rows[0], dtype=float), np.array(rows[1], dtype=float), rtol=1e-4
    )
    assert not (tmp_path / "False" / "tokens").exists()


@pytest.mark.parametrize("box_probability, expected", [(1.0, {0}), (0.0, {1, 2}), (0.5, {0, 1, 2})])
def test_views_are_drawn_as_configured(
    folder: Path, tmp_path: Path, box_probability: float, expected: set[int]
) -> None:
    tokens = RegionTokenConfig(point_views=2, box_probability=box_probability)
    trainer = CaptionTrainer(make_config(folder, tmp_path, tokens=tokens, batch_size=60))
    seen = Recording(trainer.token_source())
    trainer.train_step(seen)
    assert set(seen.views.tolist()) == expected
    if box_probability == 0.5:
        assert 15 < (seen.views == 0).sum() < 45


class Recording:
    """Remembers the views that were asked for."""

    def __init__(self, source: TokenSource) -> None:
        self.source = source

    def select(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        self.views = views
        return self.source.select(rows, views)


# --- resuming ------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for whatever ends a process."""


class DiesAtStep4(CaptionTrainer):
    def train_step(self, tokens: TokenSource) -> dict[str, float]:
        if self.step == 4:
            raise KilledError
        return super().train_step(tokens)


def flatten(state: Any) -> dict[str, Tensor]:
    """Nested tensors by their path."""
    if isinstance(state, Tensor):
        return {"": state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state)
    return {
        f"{key}.{inner}": tensor
        for key, value in pairs
        if isinstance(value, Tensor | dict | list)
        for inner, tensor in flatten(value).items()
    }


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    validation = CaptionValidationConfig(data=data_config(folder), every=2, max_regions=3)
    CaptionTrainer(make_config(folder, tmp_path / "whole", validation=validation)).run()
    config = make_config(folder, tmp_path / "parts", save_every=3, validation=validation)
    with pytest.raises(KilledError):
        DiesAtStep4(config).run()
    resumed = CaptionTrainer(config)
    torch.rand(3)  # whatever else happened in the process
    resumed.run()
    names = ("whole", "parts")
    states = [load_training_state(tmp_path / name / "training_state.pt") for name in names]
    assert states[0]["step"] == 6
    for part in ("text_decoder", "optimizer"):
        torch.testing.assert_close(*(flatten(state[part]) for state in states), rtol=0, atol=0)
    for file in ("log.csv", "validation.csv"):
        whole, parts = ((tmp_path / name / file).read_bytes() for name in names)
        assert whole == parts, file
    for file in ("best.safetensors", "model.safetensors"):
        whole, parts = (load_file(tmp_path / name / file) for name in names)
        torch.testing.assert_close(whole, parts, rtol=0, atol=0)


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


def with_long_captions(folder: Path, tmp_path: Path, *, all_long: bool) -> DataConfig:
    """The first region, or every one, has a caption of 500 words."""
    content = json.loads((folder / "photos.json").read_text())
    long = "brick ball kite corner red " * 100
    for index, annotation in enumerate(content["annotations"]):
        if all_long or index == 0:
            annotation["captions"] = [long]
    for image in content["images"] if all_long else ():
        image.pop("captions", None)
    content["annotations"][1]["captions"] = [long, "a ball"] if not all_long else [long]
    file = write_json(tmp_path / "long.json", content)
    return DataConfig(annotation_files=(str(file),), image_folder=str(folder / "images"))


def test_a_caption_of_500_words_is_counted_named_and_left_out(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = CaptionTrainer(make_config(folder, tmp_path / "whole"))
    data = with_long_captions(folder, tmp_path, all_long=False)
    trainer = CaptionTrainer(make_config(folder, tmp_path / "run", data=data))
    assert len(trainer.long_texts) == 1 and len(trainer.long_texts[0].split()) == 500
    message = "left out 1 texts of more than 28 tokens, the first are ['brick ball kite corner"
    assert message in caplog.text
    assert len(trainer.regions) == len(whole.regions) - 1  # the second region has another caption
    texts = {text for region in trainer.regions for text in region.texts}
    assert "a ball" in texts and not texts & set(trainer.long_texts)


def test_data_with_long_captions_only_is_refused(folder: Path, tmp_path: Path) -> None:
    data = with_long_captions(folder, tmp_path, all_long=True)
    with pytest.raises(ValueError, match=r"got none; 1 texts are too long"):
        CaptionTrainer(make_config(folder, tmp_path / "run", data=data))


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
    tokens = CachedTokens(torch.full((len(trainer.regions), 3, 64), float("nan")))
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
        trainer.token_source()


# --- mixtures that are called by their first concept ------------------------------------------


CALLED = ("apple", "cup", "shoes")


@pytest.fixture(scope="module")
def named(folder: Path) -> Path:
    """The model with concepts."""
    model = load_model(folder / "stage1.safetensors", device="cpu", dtype="float32")
    vocabulary = tiny_vocabulary(CALLED, model.config)
    tensors, metadata = Companions(vocabulary).pack()
    path = folder / "named.safetensors"
    return save_model(model, path, metadata=metadata, extra_tensors=tensors)


def texts_and_tokens(
    trainer: CaptionTrainer, monkeypatch: pytest.MonkeyPatch, steps: int
) -> tuple[list[list[str]], list[Tensor]]:
    """Of each step, as the loss sees them."""
    texts, tokens = [], []

    def loss(visual: Tensor, ids: NDArray[np.int64], is_real: NDArray[np.bool_]) -> Tensor:
        rows = [row[real].tolist()[1:-1] for row, real in zip(ids, is_real, strict=True)]
        texts.append(trainer.tokenizer.decode(rows))
        tokens.append(visual)
        return trainer.model.text_decoder.state_dict(keep_vars=True).popitem()[1].sum() * 0

    monkeypatch.setattr(trainer, "_loss", loss)
    source = trainer.token_source()
    for _ in range(steps):
        trainer.train_step(source)
    return texts, tokens


def is_between(mixed: Tensor, first: Tensor, others: Tensor) -> bool:
    """Whether it is at least half of the first, and the rest one of the others."""
    for other in others:
        way = other - first
        share = float((mixed - first) @ way / (way @ way).clamp(min=1e-9))
        if -1e-4 <= share <= 0.5 + 1e-4 and torch.allclose(mixed, first + share * way, atol=1e-4):
            return True
    return False


def test_mixed_tokens_are_called_by_their_first_concept(
    folder: Path, named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of each step; the others are what they are without it."""
    changes = {"batch_size": 8, "tokens": RegionTokenConfig(point_views=0)}
    seen = {}
    for share in (0.0, 0.375):
        config = caption_config(
            folder, tmp_path / str(share), named, folder / "text.model", concept_share=share,
            **changes,
        )  # fmt: skip
        trainer = CaptionTrainer(config)
        seen[share] = texts_and_tokens(trainer, monkeypatch, 6)
    model = load_model(named, device="cpu", dtype="float32")
    concepts = tiny_vocabulary(CALLED, model.config)
    said = set()
    for texts, tokens, plain_texts, plain in zip(*seen[0.375], *seen[0.0], strict=True):
        assert torch.equal(tokens[3:], plain[3:]) and texts[3:] == plain_texts[3:]
        for row in range(3):
            assert is_between(tokens[row], plain[row], plain[:3])
        with torch.no_grad():
            embeddings = model.image_decoder.semantic_head(tokens[:3])
        best = concepts.log_probs(embeddings).argmax(-1).tolist()
        articles = {"apple": "an apple", "cup": "a cup", "shoes": "shoes"}
        expected = [articles[concepts.names[row]] for row in best]
        ids, is_real = trainer.tokenizer.encode(expected)
        rows = [i[r].tolist()[1:-1] for i, r in zip(ids, is_real, strict=True)]
        assert texts[:3] == trainer.tokenizer.decode(rows)
        said |= set(texts[:3])
    assert len(said) > 1
    pairs = zip(seen[0.375][1], seen[0.0][1], strict=True)
    assert any(not torch.equal(mixed[:3], plain[:3]) for mixed, plain in pairs)


def test_mixtures_need_concepts(folder: Path, tmp_path: Path) -> None:
    message = r"concept_share: expected a model with concepts, got .*stage1\.safetensors without"
    with pytest.raises(ValueError, match=message):
        CaptionTrainer(make_config(folder, tmp_path, concept_share=0.5))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_fraction(folder: Path, tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match=f"concept_share: expected 0 to 1, got {share}"):
        make_config(folder, tmp_path, concept_share=share)
