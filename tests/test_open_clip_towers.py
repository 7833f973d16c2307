"""CLIP towers against open_clip itself; one tower alone; files good and bad."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_clip import (
    CONFIG,
    DIM,
    MEAN,
    SIDE,
    STD,
    embed_plainly,
    make_tiny_clip,
    needs_open_clip,
    use_hub_cache,
    write_hub_cache,
    write_tiny_clip,
)
from tokenize_anything import open_clip_towers
from tokenize_anything.open_clip_files import fingerprint, locate_clip, read_state
from tokenize_anything.open_clip_towers import DEFAULT_CLIP, ClipTowers, _lay_out

pytestmark = needs_open_clip

TEXTS = ["a mug", "a photo of a stapler.", "a zebra crossing"]
PIXELS = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> Any:
    return make_tiny_clip()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("towers") / "tiny", model)


@pytest.fixture(autouse=True)
def _lay_out_most_of_it_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a model of real size: all weights of any size, but not the tables of 11 x 11."""
    monkeypatch.setattr(open_clip_towers, "_LARGE", 128)


# --- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_custom_text", [False, True])
def test_both_towers_are_those_of_open_clip(
    tmp_path: Path, model: Any, folder: Path, has_custom_text: bool
) -> None:
    if has_custom_text:
        model = make_tiny_clip(custom_text=True, seed=5)
        folder = write_tiny_clip(tmp_path, model)
    towers = ClipTowers(str(folder), device="cpu")
    texts, images = towers.embed_texts(TEXTS, batch_size=2), towers.embed_images(PIXELS)
    torch.testing.assert_close(texts, embed_plainly(model, TEXTS), atol=1e-6, rtol=0)
    torch.testing.assert_close(images, embed_plainly(model, PIXELS), atol=1e-6, rtol=0)
    assert texts.dtype == images.dtype == torch.float32
    assert (towers.dim, towers.image_size, towers.mean, towers.std) == (DIM, SIDE, MEAN, STD)
    assert towers.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    assert (texts[:1] - texts[1:]).abs().max() > 0.01  # the texts do differ


def test_nothing_in_nothing_out(folder: Path) -> None:
    towers = ClipTowers(str(folder), device="cpu")
    assert towers.embed_texts([]).shape == (0, DIM)
    assert towers.embed_images(PIXELS[:0]).shape == (0, DIM)


def test_one_tower_alone_gives_the_same_and_holds_nothing_else(folder: Path) -> None:
    both = ClipTowers(str(folder), device="cpu")
    text = ClipTowers(str(folder), towers="text", device="cpu")
    image = ClipTowers(str(folder), towers="image", device="cpu")
    assert torch.equal(text.embed_texts(TEXTS), both.embed_texts(TEXTS))
    assert torch.equal(image.embed_images(PIXELS), both.embed_images(PIXELS))
    assert both.identity == text.identity == image.identity
    assert both.logit_scale == text.logit_scale == image.logit_scale
    sizes = [sum(p.numel() for p in each._model.parameters()) for each in (both, text, image)]
    assert sizes[0] == sizes[1] + sizes[2] - 1  # the logit scale is in both
    with pytest.raises(ValueError, match=r"loaded for texts; expected 'image' or 'both'"):
        text.embed_images(PIXELS)
    with pytest.raises(ValueError, match=r"loaded for images; expected 'text' or 'both'"):
        image.embed_texts(TEXTS)


def test_lower_precision_is_close(folder: Path) -> None:
    towers = ClipTowers(str(folder), device="cpu", dtype="bfloat16")
    exact = ClipTowers(str(folder), device="cpu")
    for found, wanted in (
        (towers.embed_texts(TEXTS), exact.embed_texts(TEXTS)),
        (towers.embed_images(PIXELS), exact.embed_images(PIXELS)),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)
    assert towers.identity == exact.identity


def test_a_tower_that_overflows_says_so(tmp_path: Path, folder: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    state["text_projection"] *= 1e30
    save_file(state, tmp_path / "huge.safetensors")
    towers = ClipTowers(str(folder), tmp_path / "huge.safetensors", device="cpu", dtype="float16")
    with pytest.raises(ValueError, match=r"dtype: torch.float16 is too narrow .*choose bfloat16"):
        towers.embed_texts(TEXTS)


def test_the_teacher_of_the_paper_is_laid_out_without_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """5.0 billion parameters, 0.69 of them for texts, of which only a few million are real yet."""
    monkeypatch.undo()
    open_clip = pytest.importorskip("open_clip")
    assert open_clip.list_pretrained_tags_by_model(DEFAULT_CLIP) == ["laion2b_s9b_b144k"]
    architecture = open_clip.get_model_config(DEFAULT_CLIP)
    files: Any = type("Files", (), {"architecture": architecture, "name": DEFAULT_CLIP})
    model = _lay_out(files)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in
             (("text", model.text), ("visual", model.visual))}  # fmt: skip
    assert round(sizes["text"] / 1e9, 2) == 0.69
    assert round(sizes["visual"] / 1e9, 2) == 4.35
    assert sum(p.numel() for p in model.parameters() if not p.is_meta) < 5e6
    assert not any(buffer.is_meta for buffer in model.buffers())


# --- spaces -------------------------------------------------------------------------------------


def test_the_identity_is_that_of_the_weights(tmp_path: Path, model: Any, folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    identity = ClipTowers(str(folder), towers="text").identity
    name, digest = identity.split("@")
    assert (name, digest) == ("tiny", fingerprint(load_file(path)))
    other_folder = write_tiny_clip(tmp_path / "Other@1", model, file="open_clip_pytorch_model.bin")
    assert ClipTowers(str(other_folder), towers="image").identity == f"Other-1@{digest}"
    state = load_file(path)
    for changed in ("visual.proj", "ln_final.bias"):
        save_file(state | {changed: state[changed] + 1e-6}, tmp_path / "b.safetensors")
        towers = ClipTowers(str(folder), tmp_path / "b.safetensors", towers="text")
        assert towers.identity.split("@")[1] != digest, changed


def test_a_fingerprint_knows_names_shapes_and_values() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5000)}
    seen = {fingerprint(state)}
    assert fingerprint({name: state[name].half() for name in "ba"}) in seen
    for other in (
        {"a": state["a"].reshape(3, 2), "b": state["b"]},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"] + 1, "b": state["b"]},
        {"a": state["a"], "b": state["b"].index_fill(0, torch.tensor([2500]), 2.0)},
        {"a": state["a"]},
    ):
        assert fingerprint(other) not in seen
        seen.add(fingerprint(other))


# --- files --------------------------------------------------------------------------------------


def save_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    "write",
    [
        torch.save,
        lambda state, path: torch.save({"epoch": 3, "name": "x", "state_dict": state}, path),
        lambda state, path: torch.save({f"module.{n}": t for n, t in state.items()}, path),
        lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
        lambda state, path: torch.save({n: t.half() for n, t in state.items()}, path),
    ],
    ids=["plain", "training", "parallel", "old", "half"],
)
def test_files_of_torch(tmp_path: Path, model: Any, folder: Path, write: Any) -> None:
    write(model.state_dict(), tmp_path / "weights.pt")
    towers = ClipTowers(str(folder), tmp_path / "weights.pt", towers="text", device="cpu")
    wanted = embed_plainly(model, TEXTS)
    torch.testing.assert_close(towers.embed_texts(TEXTS), wanted, atol=1e-2, rtol=0)


def test_weights_of_the_older_layout_fit_a_text_tower_of_its_own(
    tmp_path: Path, folder: Path, model: Any
) -> None:
    custom = make_tiny_clip(custom_text=True)
    custom_folder = write_tiny_clip(tmp_path / "custom", custom)
    towers = ClipTowers(str(custom_folder), folder / "open_clip_model.safetensors", device="cpu")
    found = towers.embed_texts(TEXTS)
    torch.testing.assert_close(found, embed_plainly(model, TEXTS), atol=1e-6, rtol=0)


class Trap:
    """Leaves a mark if somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trap.pt", r"trap.pt: not a weights file, damaged, or with more in it than tensors"),
        ("trap.pkl", r"trap.pkl: not a weights file"),
        ("cut.safetensors", r"cut.safetensors: not a weights file"),
        ("cut.pt", r"cut.pt: not a weights file"),
        ("text.pt", r"text.pt: not a weights file"),
        ("empty.pt", r"empty.pt: expected a state dict of tensors, got none"),
        ("list.pt", r"list.pt: expected a state dict of tensors, got none"),
        ("less.safetensors", r"not the weights of tiny: 1 tensors missing \['ln_final.bias'\]"),
        ("more.safetensors", r"0 tensors missing \[\], 1 unknown \['visual.extra'\]"),
        ("other.safetensors", r"1 of another shape \['visual.proj is \[13, 22\], expected \[22, 1"),
    ],
)
def test_files_that_are_refused(bad_files: Path, folder: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClipTowers(str(folder), bad_files / name, device="cpu")
    assert not (bad_files / "mark").exists()


@pytest.fixture(scope="module")
def bad_files(model: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("bad")
    state = model.state_dict()
    trapped = {**state, "trap": Trap(tmp_path / "mark")}
    torch.save(trapped, tmp_path / "trap.pt")
    save_pickle(trapped, tmp_path / "trap.pkl")
    whole = (folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    torch.save(state, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-5000])
    (tmp_path / "text.pt").write_text("a mug")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    short = {n: t for n, t in state.items() if n != "ln_final.bias"}
    save_file(short, tmp_path / "less.safetensors")
    save_file({**state, "visual.extra": torch.ones(2)}, tmp_path / "more.safetensors")
    turned = {**state, "visual.proj": state["visual.proj"].T.contiguous()}
    save_file(turned, tmp_path / "other.safetensors")
    return tmp_path


def test_reading_says_what_is_missing(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights: no file at .*absent.pt; expected those"):
        ClipTowers(str(folder), tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match=r"tower: no open_clip_config.json in"):
        ClipTowers(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"expected JSON with a model_cfg, as open_clip writes"):
        ClipTowers(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 3}}))
    with pytest.raises(ValueError, match=r"its model_cfg lacks \['text_cfg', 'vision_cfg'\]"):
        ClipTowers(str(tmp_path))
    bad = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"colour": 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": bad}))
    with pytest.raises(ValueError, match=r"tower: unusable configuration of .*colour"):
        ClipTowers(str(tmp_path), folder / "open_clip_model.safetensors")


def test_tensors_stay_on_disk_until_used(folder: Path) -> None:
    state = read_state(folder / "open_clip_model.safetensors")
    assert state["token_embedding.weight"].shape == (49408, 10)


# --- names --------------------------------------------------------------------------------------


def test_a_repository_of_the_hub(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_clip(tmp_path / "a", model, file="open_clip_pytorch_model.bin")
    write_hub_cache(tmp_path / "cache", "some/tiny", folder)
    use_hub_cache(monkeypatch, tmp_path / "cache")
    towers = ClipTowers("hf-hub:some/tiny", towers="text", device="cpu")
    assert towers.identity == f"hf-hub:some/tiny@{fingerprint(model.state_dict())}"
    found = towers.embed_texts(TEXTS)
    torch.testing.assert_close(found, embed_plainly(model, TEXTS), atol=1e-6, rtol=0)
    with pytest.raises(FileNotFoundError, match=r"some/other:open_clip_config.json.*HF_HUB_OFFLIN"):
        ClipTowers("hf-hub:some/other")


def test_published_weights_are_looked_up_by_their_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub_cache(monkeypatch, tmp_path)
    place = r"timm/eva02_enormous_patch14_plus_clip_224.laion2b_s9b_b144k:open_clip_pytorch_model"
    for name in (DEFAULT_CLIP, f"{DEFAULT_CLIP}:laion2b_s9b_b144k"):
        with pytest.raises(FileNotFoundError, match=place):
            locate_clip(name)
    repo_id = "timm/vit_base_patch32_clip_224.openai"
    write_hub_cache(tmp_path, repo_id, write_weight_stub(tmp_path / "stub"))
    found = locate_clip("ViT-B-32:openai")
    assert (found.name, found.tokenizer) == ("ViT-B-32:openai", "ViT-B-32")
    assert found.weights.name == "open_clip_model.safetensors"
    assert found.architecture["quick_gelu"] is True  # a fact of these weights


def write_weight_stub(folder: Path) -> Path:
    folder.mkdir()
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("name", "weights", "kind", "words"),
    [
        ("ViT-Q-32", None, ValueError, r"open_clip knows no 'ViT-Q-32'; did you mean one of \['Vi"),
        ("ViT-B-32", None, ValueError, r"several published weights; expected one of \['ViT-B-32:"),
        (
            "ViT-B-32:moon",
            None,
            ValueError,
            r"ViT-B-32 has no weights 'moon'; expected one of \['o",
        ),
        ("ViT-B-32:openai", "w", ValueError, r"names published weights, but a file is given too"),
        ("ViT-e-14", None, ValueError, r"tower: ViT-e-14 has no published weights; give a file"),
        ("ViT-B-32", "absent", FileNotFoundError, r"weights: no file at absent; expected those of"),
    ],
)
def test_names_that_cannot_be(name: str, weights: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        locate_clip(name, weights)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda t: t.embed_texts("a mug"), TypeError, r"texts: expected a sequence of texts, got"),
        (lambda t: t.embed_texts([5]), TypeError, r"texts: expected a sequence of texts, got \[5"),
        (lambda t: t.embed_images(PIXELS[0]), ValueError, r"expected .*\(n, 3, 21, 21\), got \(3,"),
        (lambda t: t.embed_images(PIXELS.int()), ValueError, r"expected floating.* torch.int32"),
        (lambda t: t.embed_images(PIXELS[..., 1:]), ValueError, r"got \(3, 3, 21, 20\)"),
    ],
)
def test_what_cannot_be_embedded(folder: Path, call: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        call(ClipTowers(str(folder), device="cpu"))


def test_one_of_three_choices(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"towers: expected 'both', 'text' or 'image', got 'all'"):
        ClipTowers(str(folder), towers="all")  # type: ignore[arg-type]
