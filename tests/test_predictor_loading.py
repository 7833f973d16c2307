"""Predictors from files and names, in every precision; and the files and parts that are refused."""

from __future__ import annotations

import pickle
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.tiny import tiny_config, tiny_tap, tiny_tokenizer, tiny_tokenizer_model
from tests.tiny_predictor import (
    NAMES,
    assert_same,
    make_mixed_prompts,
    make_photo,
    sharpen,
    tiny_predictor,
    tiny_vocabulary,
)
from tokenize_anything import TAPPredictor
from tokenize_anything.checkpoints import save_model
from tokenize_anything.companions import Companions
from tokenize_anything.hub import TEXT_TOKENIZER_VARIABLE
from tokenize_anything.published_format import save_published_checkpoint
from tokenize_anything.region_decoding import REGION_MEMORY, count_regions_in_memory

HEIGHT, WIDTH = 41, 67
CONFIG = tiny_config(max_text_length=40)  # the length that published files have


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in every kind of file, in a folder that is not ASCII."""
    folder = tmp_path_factory.mktemp("модели") / "模型 1"
    folder.mkdir()
    model = sharpen(tiny_tap(CONFIG)).half().float()  # values that float16 holds
    tensors, metadata = Companions(tiny_vocabulary(), tiny_tokenizer()).pack()
    for name, dtype in (("whole", "float32"), ("half", "float16")):
        save_model(
            model, folder / f"{name}.safetensors", dtype=dtype, metadata=metadata,
            extra_tensors=tensors,
        )  # fmt: skip
    save_model(model, folder / "bare.safetensors")
    save_published_checkpoint(model, folder / "published.pkl", dtype="float32")
    tiny_vocabulary().save(folder / "concepts.safetensors")
    content = [tiny_vocabulary().weights.numpy(), list(NAMES)]
    (folder / "concepts.pkl").write_bytes(pickle.dumps(content))
    (folder / "words.model").write_bytes(tiny_tokenizer_model())
    return folder


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TEXT_TOKENIZER_VARIABLE, raising=False)


def load(path: Path, **options: Any) -> TAPPredictor:
    return TAPPredictor.from_pretrained(path, device="cpu", **options)


def answer(predictor: TAPPredictor, **options: Any) -> Any:
    return predictor.predict_mask_concept_caption(
        make_photo(HEIGHT, WIDTH), prompts=make_mixed_prompts(HEIGHT, WIDTH), **options
    )


# --- files --------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of them asks the network for anything."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = load(folder / "whole.safetensors")
        wanted = answer(whole, top_k=2)
        parts: dict[str, Any] = {"text_tokenizer": folder / "words.model"}
        for file, concepts in (
            ("half.safetensors", None),
            ("bare.safetensors", folder / "concepts.safetensors"),
            ("published.pkl", str(folder / "concepts.pkl")),
            ("published.pkl", tiny_vocabulary()),
        ):
            options = {} if concepts is None else {"concepts": concepts, **parts}
            loaded = load(folder / file, **options)
            assert loaded.dtype == torch.float32
            assert loaded.device == torch.device("cpu")
            assert_same(answer(loaded, top_k=2), wanted)
    assert len(set(wanted.captions)) > 1


def test_a_file_is_the_model_that_was_saved(folder: Path) -> None:
    made = tiny_predictor(max_text_length=40)
    found = answer(load(folder / "whole.safetensors"))
    np.testing.assert_allclose(  # up to the rounding of its weights to float16
        found.semantic_tokens, answer(made).semantic_tokens, rtol=0, atol=0.05
    )


def test_without_tokenizer_and_concepts(folder: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"no text tokenizer for .*bare.safetensors: regions will "
    ):
        predictor = load(folder / "bare.safetensors")
    found = answer(predictor)
    assert found.captions == [None] * 7
    assert found.concepts == [[]] * 7
    assert found.concept_scores.shape == (7, 0)
    with pytest.raises(ValueError, match=r"concepts: this predictor has no vocabulary; pass conc"):
        predictor.describe_concepts(found.semantic_embeddings)
    with pytest.raises(ValueError, match=r"text_tokenizer: this predictor has none; pass text_to"):
        predictor.write_captions(found.semantic_tokens)
    with pytest.warns(UserWarning, match=r"pass text_tokenizer=PATH of the SentencePiece model"):
        load(folder / "published.pkl")


def test_names_choose_among_the_models_own(folder: Path) -> None:
    predictor = load(folder / "whole.safetensors", concepts=["tray", "cup", "日本"])
    assert predictor.concepts is not None
    assert predictor.concepts.names == ("tray", "cup", "日本")
    found, every = answer(predictor, top_k=9), answer(load(folder / "whole.safetensors"), top_k=9)
    for row in range(7):
        scores = dict(zip(every.concepts[row], every.concept_scores[row], strict=True))
        kept = np.array([scores[name] for name in found.concepts[row]])
        np.testing.assert_allclose(found.concept_scores[row], kept / kept.sum(), atol=1e-5)
        assert sorted(found.concepts[row]) == sorted(predictor.concepts.names)


@pytest.mark.parametrize(
    ("file", "options", "kind", "words"),
    [
        ("whole", {"concepts": ["fork"]}, ValueError, r"\['fork'\] not among the 7 names"),
        ("whole", {"concepts": []}, ValueError, r"expected at least one concept, got none"),
        ("bare", {"concepts": ["cup"]}, ValueError, r"concepts: this model has no vocabulary"),
        ("whole", {"concepts": 7}, TypeError, r"concepts: expected a file, .*, got int"),
        ("whole", {"concepts": "absent.pkl"}, FileNotFoundError, r"concepts: no file at absent.p"),
        ("whole", {"concepts": tiny_vocabulary(config=tiny_config(semantic_dim=31))}, ValueError,
         r"concepts: expected weights of 29 rows, the model's semantic width, got 31"),
        ("bare", {"text_tokenizer": "absent.model"}, FileNotFoundError, r"absent.model is no file"),
        ("bare", {"text_tokenizer": tiny_tokenizer()}, TypeError, r"expected the path of a Senten"),
        ("whole", {"dtype": "int8"}, ValueError, r"dtype: expected one of .*'float32'.*'int8'"),
        ("whole", {"dtype": torch.float64}, ValueError, r"dtype: expected one of .*float64"),
        ("whole", {"device": "gpu"}, ValueError, r"device: expected 'auto', 'cpu', 'cuda' or 'mps"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(
    folder: Path, file: str, options: dict[str, Any], kind: Any, words: str
) -> None:
    with pytest.raises(kind, match=words):
        TAPPredictor.from_pretrained(
            folder / f"{file}.safetensors", **({"device": "cpu"} | options)
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_missing(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"device: cuda is not available to torch here; use"):
        TAPPredictor.from_pretrained(folder / "whole.safetensors", device="cuda")


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_bfloat16_on_the_cpu(folder: Path, dtype: Any) -> None:
    exact, rounded = (load(folder / "whole.safetensors", dtype=kind) for kind in ("auto", dtype))
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    photo, prompts = make_photo(HEIGHT, WIDTH), make_mixed_prompts(HEIGHT, WIDTH)
    wanted = exact.decode_regions(exact.encode_images(photo), prompts)
    encoded = rounded.encode_images(photo)
    found = rounded.decode_regions(encoded, prompts)
    assert (encoded.features.dtype, found.iou_scores.dtype) == (torch.bfloat16, torch.float32)
    for name in ("mask_logits", "iou_scores", "semantic_tokens", "semantic_embeddings"):
        values, others = getattr(found, name).float(), getattr(wanted, name)
        assert (values - others).abs().mean() < 0.05 * others.abs().mean(), name
    record = answer(rounded)
    assert record.semantic_tokens.dtype == np.float32
    assert (record.masks != answer(exact).masks).mean() < 0.05
    assert all(record.captions)


def test_half_precision_on_the_cpu(folder: Path) -> None:
    predictor = load(folder / "half.safetensors", dtype="float16")
    assert predictor.dtype == torch.float16
    wanted = answer(load(folder / "half.safetensors"))
    assert np.abs(answer(predictor).semantic_tokens - wanted.semantic_tokens).mean() < 0.01


def test_chunks_are_bounded_by_memory() -> None:
    """Eight copies of the features of each region at once."""
    model = tiny_tap()
    size = 6 * 6 * 64 * 8 * 4
    count = count_regions_in_memory(model)
    assert count * size <= REGION_MEMORY < (count + 1) * size
    assert count_regions_in_memory(model.bfloat16()) == REGION_MEMORY * 2 // size
    assert TAPPredictor(model).region_chunk == REGION_MEMORY * 2 // size


# --- files that are refused ---------------------------------------------------------------------


class Trap:
    """Leaves a mark if somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def write_bad_models(folder: Path, target: Path) -> None:
    whole = (folder / "whole.safetensors").read_bytes()
    (target / "cut.safetensors").write_bytes(whole[:-100])
    (target / "stub.safetensors").write_bytes(whole[:5])
    (target / "empty.safetensors").write_bytes(b"")
    (target / "text.safetensors").write_text("a photo of a cat" * 9)
    with safe_open(folder / "bare.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = file.metadata()
    save_file(tensors, target / "foreign.safetensors")
    other = tiny_config(max_text_length=40, text_mlp_dim=59, encoder_mlp_dim=17)
    save_file(tensors, target / "other.safetensors", header | {"config": other.to_json()})
    arrays = pickle.loads((folder / "published.pkl").read_bytes())
    (target / "trap.pkl").write_bytes(pickle.dumps(arrays | {"x": Trap(target / "mark")}))
    (target / "cut.pkl").write_bytes((folder / "published.pkl").read_bytes()[:-100])
    name = "image_decoder.iou_token.weight"
    (target / "other.pkl").write_bytes(pickle.dumps(arrays | {name: np.zeros((1, 5))}))
    (target / "weights.pth").write_bytes(b"PK")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("cut.safetensors", ValueError, r"cut.safetensors: not a safetensors file, or truncated"),
        ("stub.safetensors", ValueError, r"stub.safetensors: not a safetensors file, or trunca"),
        ("empty.safetensors", ValueError, r"empty.safetensors: not a safetensors file, or trunc"),
        ("text.safetensors", ValueError, r"text.safetensors: not a safetensors file, or"),
        ("foreign.safetensors", ValueError, r"foreign.safetensors: .* not written by this"),
        ("other.safetensors", ValueError, r"encoder.*mlp.* expected \[17, 22\].*text_decoder.*59"),
        ("trap.pkl", ValueError, r"trap.pkl: .*Path.*"),
        ("cut.pkl", ValueError, r"cut.pkl: "),
        ("other.pkl", ValueError, r"other.pkl: .*iou_token.* is \[1, 5\]"),
        ("weights.pth", ValueError, r"weights.pth: expected a .safetensors file, or a published-"),
        ("absent.safetensors", FileNotFoundError, r"absent.safetensors: no such file"),
        (".", ValueError, r"expected a .safetensors file, or a published-format .pkl file"),
    ],
)
def test_files_that_are_refused(
    folder: Path, tmp_path: Path, name: str, kind: Any, words: str
) -> None:
    write_bad_models(folder, tmp_path)
    with pytest.raises(kind, match=words):
        TAPPredictor.from_pretrained(tmp_path / name, device="cpu")
    assert not (tmp_path / "mark").exists()
    pickle.loads((tmp_path / "trap.pkl").read_bytes())
    assert (tmp_path / "mark").exists()  # the trap does work


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        (
            "tap_vit_g",
            ValueError,
            r"unknown model 'tap_vit_g'; did you mean 'tap_vit_.'\? Known na",
        ),
        ("", ValueError, r"expected a .safetensors file|unknown model ''"),
        (None, TypeError, r"name_or_path: expected a name or a path, got NoneType"),
        (b"tap_tiny", TypeError, r"name_or_path: expected a name or a path, got bytes"),
    ],
)
def test_unknown_names(name: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        TAPPredictor.from_pretrained(name)


# --- parts put together by hand -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "kind", "words"),
    [
        ("tap_tiny", {}, TypeError, r"model: expected a TAP, got str; TAPPredictor.from_pretr"),
        (tiny_tap().train(), {}, ValueError, r"model: expected evaluation mode, .*model.eval\(\)"),
        (tiny_tap(), {"concepts": "c.pkl"}, TypeError, r"concepts: expected a ConceptVocabulary"),
        (tiny_tap(), {"text_tokenizer": "t"}, TypeError, r"text_tokenizer: expected a TextTokeni"),
        (tiny_tap(tiny_config(vocabulary_size=47)), {"text_tokenizer": tiny_tokenizer()},
         ValueError, r"text_tokenizer: expected 47 pieces, as the model's text decoder, got 43"),
        (tiny_tap(), {"region_chunk": 0}, ValueError, r"region_chunk: expected .* from 1, got 0"),
        (tiny_tap(), {"region_chunk": 2.5}, ValueError, r"region_chunk: expected .*, got 2.5"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(model: Any, options: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        TAPPredictor(model, **options)
