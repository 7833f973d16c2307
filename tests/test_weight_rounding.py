"""Weights in eight bits: right to the element, and nothing damaged gets through."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import tiny_config, tiny_pixels, tiny_prompts, tiny_tap, tiny_tokenizer
from tokenize_anything.build import load_model
from tokenize_anything.checkpoints import (
    read_checkpoint,
    read_extra_tensors,
    read_header,
    save_model,
    save_state,
)
from tokenize_anything.companions import Companions, find_companions
from tokenize_anything.modeling import TAP
from tokenize_anything.published_format import convert_checkpoint
from tokenize_anything.weight_rounding import (
    COORD_MATRIX_KEY,
    restore_weights,
    round_weights,
    shared_dtype,
)

CONFIG = tiny_config(view_dim=8, max_text_length=40)
PARTS = ("view_segmenter.", "text_decoder.")
WEIGHT = "text_decoder.word_proj.weight"  # (43, 128)
SCALE = WEIGHT + ".scale"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition, channel by channel, in NumPy."""
    integers = np.zeros(weight.shape, np.int8)
    scales = np.zeros(len(weight), np.float32)
    for index, channel in enumerate(weight):
        largest = np.float32(np.abs(channel).max())
        if largest > 0:
            scales[index] = largest / np.float32(127)
            integers[index] = np.clip(np.rint(channel / scales[index]), -127, 127)
    return integers, scales


@pytest.fixture(scope="module")
def model() -> TAP:
    return tiny_tap(CONFIG).half().float()  # values that float16 holds


@pytest.fixture(scope="module")
def rounded(model: TAP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rounded") / "model.safetensors"
    return save_model(model, path, dtype="float16", rounded=PARTS)


def contents(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}


def outputs(model: TAP) -> list[Tensor]:
    assert model.view_segmenter is not None
    coords_xy, labels = tiny_prompts(CONFIG)
    with torch.no_grad():
        features = model.encode_images(tiny_pixels(CONFIG))
        regions = model.decode_regions(model.prepare_regions(features), coords_xy, labels)
        token_ids = torch.tensor([[1, 5, 7, 2]]).expand(len(regions), -1)
        logits = model.score_captions(regions.semantic_tokens[:, 0], token_ids)
        views = model.view_segmenter(noise(2, 3, 128, 128), coords_xy[:, 0], labels[:, 0])
    return [features, regions.semantic_embeddings, logits, views.mask_logits]


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(67, 71), (71, 67), (5, 7, 11, 13), (1, 4099), (4099, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_element_is_that_of_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = (noise(*shape) * 3 + 1).to(dtype)
    weight[0] /= 100
    packed = round_weights({"part.w": weight}, ["part."])
    assert list(packed) == ["part.w", "part.w.scale"]
    integers, scales = reference(weight.float().numpy())
    assert packed["part.w"].dtype == torch.int8
    assert packed["part.w.scale"].dtype == torch.float32
    np.testing.assert_array_equal(packed["part.w"].numpy(), integers)
    np.testing.assert_array_equal(packed["part.w.scale"].numpy(), scales)
    assert packed["part.w"].flatten(1).abs().amax(1).eq(127).all()


@pytest.mark.parametrize("shape", [(67, 71), (5, 7, 11, 13)])
def test_the_error_is_at_most_half_a_step(shape: tuple[int, ...]) -> None:
    sizes = torch.logspace(-6, 6, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    weight = noise(*shape, seed=1) * sizes
    found = restore_weights(round_weights({"w": weight}, ["w"]), "here")["w"]
    assert found.dtype == torch.float32
    assert found.shape == weight.shape
    largest = weight.flatten(1).abs().amax(1, keepdim=True)
    error = (found - weight).flatten(1).abs()
    assert (error <= largest / 254 * (1 + 1e-5)).all()
    assert (error.amax(1, keepdim=True) > largest / 300).all()  # the bound is no larger than needed


def test_channels_of_zeros_and_of_the_smallest_numbers_stay() -> None:
    weight = noise(67, 71)
    weight[[0, 13]] = 0.0
    weight[5] = 1e-45  # / 127 is 0 in float32
    packed = round_weights({"w": weight}, ["w"])
    assert packed["w.scale"][[0, 5, 13]].eq(0).all()
    assert packed["w"][[0, 5, 13]].eq(0).all()
    found = restore_weights(packed, "here")["w"]
    assert found.isfinite().all()
    assert found[[0, 5, 13]].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rounding_again_changes_nothing(dtype: torch.dtype) -> None:
    first = round_weights({"w": noise(67, 71)}, ["w"])
    restored = restore_weights(first, "here")["w"].to(dtype)
    second = round_weights({"w": restored}, ["w"])
    assert torch.equal(first["w"], second["w"])
    torch.testing.assert_close(first["w.scale"], second["w.scale"], rtol=1e-3, atol=0)


def test_only_large_floating_point_matrices_of_the_parts_are_rounded() -> None:
    state = {
        "a.large": noise(64, 64),
        "a.small": noise(63, 65),  # 4095 elements
        "a.flat": noise(4099),
        "a.counts": torch.arange(4096).reshape(64, 64),
        "ab.large": noise(64, 64),
        "b.a.large": noise(64, 64),
    }
    copies = {name: tensor.clone() for name, tensor in state.items()}
    packed = round_weights(state, ["a."])
    assert packed.keys() == {*state, "a.large.scale"}
    assert all(packed[name] is state[name] for name in state if name != "a.large")
    assert all(torch.equal(state[name], copies[name]) for name in state)
    assert round_weights(state, []) == state
    assert shared_dtype(packed) == torch.float32
    restored = restore_weights(packed, "here")
    assert list(restored) == list(state)
    assert all(restored[name] is state[name] for name in state if name != "a.large")


def test_the_matrix_of_the_position_code_is_never_rounded() -> None:
    state = {COORD_MATRIX_KEY: noise(2, 2053), "prompt_encoder.w": noise(64, 64)}
    packed = round_weights(state, ["prompt_encoder."])
    assert packed[COORD_MATRIX_KEY] is state[COORD_MATRIX_KEY]
    assert packed.keys() == {*state, "prompt_encoder.w.scale"}


def test_one_dtype_or_none() -> None:
    half, exact = torch.zeros(2).half(), torch.zeros(2)
    eight = {"w": torch.zeros(2, 2, dtype=torch.int8), "w.scale": exact, COORD_MATRIX_KEY: exact}
    assert shared_dtype(eight) is None
    assert shared_dtype({**eight, "a": half, "n": torch.tensor(3)}) == torch.float16
    assert shared_dtype({**eight, "a": half, "b": exact}) is None


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        ("a.", TypeError, r"rounded: expected a list of parts, got the text 'a.'; put it in \[\]"),
        (["a.", "c."], ValueError, r"rounded: expected the start of the name .* got 'c.'; parts .*"
                                   r" are \['a.', 'b.'\]"),
        (["a.small"], ValueError, r"at least 2 dimensions and 4096 elements, got 'a.small'"),
        (["b."], ValueError, r"b.large: expected finite weights to round, got NaN or infinity"),
    ],
)  # fmt: skip
def test_bad_parts(parts: Any, kind: type[Exception], words: str) -> None:
    state = {"a.large": noise(64, 64), "a.small": noise(2, 2), "b.large": noise(64, 64)}
    for bad in (torch.nan, torch.inf, -torch.inf):
        state["b.large"][3, 5] = bad
        with pytest.raises(kind, match=words):
            round_weights(state, parts)


# --- damage -------------------------------------------------------------------------------------

DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no scale": (
        lambda t: t.pop(SCALE),
        rf"{SCALE}: expected \[43\] float32 for the int8 tensor {WEIGHT}, got none",
    ),
    "no tensor": (
        lambda t: t.pop(WEIGHT),
        rf"{SCALE}: expected an int8 tensor {WEIGHT} that it scales, got none",
    ),
    "a scale for a float": (
        lambda t: t.update({WEIGHT: t[WEIGHT].half()}),
        rf"{SCALE}: expected an int8 tensor {WEIGHT} .* got \[43, 128\] float16",
    ),
    "a scale too many": (
        lambda t: t.update({"text_decoder.norm.bias.scale": torch.ones(128)}),
        r"norm.bias.scale: expected an int8 tensor text_decoder.norm.bias .* got \[128\] float16",
    ),
    "a long scale": (lambda t: t.update({SCALE: torch.ones(44)}), r"\[43\] f.* got \[44\] float32"),
    "a wide scale": (lambda t: t.update({SCALE: torch.ones(43, 1)}), r"got \[43, 1\] float32"),
    "one scale": (lambda t: t.update({SCALE: torch.tensor(1.0)}), r"got \[\] float32"),
    "a whole scale": (lambda t: t.update({SCALE: t[SCALE].int()}), r"got \[43\] int32"),
    "a short scale": (lambda t: t.update({SCALE: t[SCALE].half()}), r"got \[43\] float16"),
    "NaN": (
        lambda t: t[SCALE].__setitem__(3, torch.nan),
        r"at least 0, got values from nan to nan",
    ),
    "infinity": (lambda t: t[SCALE].__setitem__(3, torch.inf), r"at least 0, got .* to inf"),
    "negative": (lambda t: t[SCALE].__setitem__(3, -1), r"at least 0, got values from -1 to"),
    "a flat integer": (
        lambda t: t.update({"text_decoder.norm.bias": torch.ones(128, dtype=torch.int8)}),
        r"text_decoder.norm.bias: expected at least 2 dimensions, got \[128\] int8",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_refused(rounded: Path, tmp_path: Path, name: str) -> None:
    change, words = DAMAGE[name]
    path = tmp_path / "model.safetensors"
    with safe_open(rounded, framework="pt") as file:
        metadata = file.metadata()
    tensors = contents(rounded)
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    for read in (read_checkpoint, lambda path: load_model(path, device="cpu")):
        with pytest.raises(ValueError, match=words) as caught:
            read(path)
        start = re.escape(f"{path}: damaged weights in eight bits; ")
        assert re.match(start, str(caught.value))
        assert str(caught.value).endswith(". Download or convert the file again")
    assert read_header(path).config == CONFIG


def test_all_damage_is_named_at_once() -> None:
    packed = round_weights({name: noise(64, 64) for name in "cab"}, [""])
    del packed["a.scale"], packed["c"]
    with pytest.raises(ValueError) as caught:
        restore_weights(packed, "here")
    assert str(caught.value) == (
        "here: damaged weights in eight bits; a.scale: expected [64] float32 for the int8 tensor "
        "a, got none; c.scale: expected an int8 tensor c that it scales, got none. Download or "
        "convert the file again"
    )


def test_a_missing_tensor_of_a_rounded_file_is_still_named(rounded: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with safe_open(rounded, framework="pt") as file:
        metadata = file.metadata()
    tensors = contents(rounded)
    del tensors[WEIGHT], tensors[SCALE]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=rf"do not fit .* 1 missing: {WEIGHT}$"):
        read_checkpoint(path)


# --- files --------------------------------------------------------------------------------------


def test_a_file_stores_the_parts_in_eight_bits(model: TAP, rounded: Path, tmp_path: Path) -> None:
    plain = save_model(model, tmp_path / "plain.safetensors", dtype="float16")
    before, after = contents(plain), contents(rounded)
    eight = {name for name, tensor in after.items() if tensor.dtype == torch.int8}
    assert after.keys() == before.keys() | {f"{name}.scale" for name in eight}
    assert WEIGHT in eight
    assert {name.partition(".")[0] + "." for name in eight} == set(PARTS)
    for name, value in before.items():
        if name in eight:
            integers, scales = reference(model.state_dict()[name].numpy())
            np.testing.assert_array_equal(after[name].numpy(), integers)
            np.testing.assert_array_equal(after[f"{name}.scale"].numpy(), scales)
        else:
            assert after[name].dtype == value.dtype, name
            assert torch.equal(after[name], value), name
    saved = sum(before[name].numel() for name in eight)
    rows = sum(len(before[name]) for name in eight)
    shrunk = plain.stat().st_size - rounded.stat().st_size
    assert saved - 4 * rows - 200 * len(eight) < shrunk < saved - 4 * rows
    assert rounded.stat().st_size < 0.8 * plain.stat().st_size


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("stored", [None, "float16", "bfloat16"])
def test_a_file_comes_back_in_the_asked_dtype(
    model: TAP, tmp_path: Path, stored: str | None, dtype: str | None
) -> None:
    path = save_model(model, tmp_path / "model.safetensors", dtype=stored, rounded=PARTS)
    header, state = read_checkpoint(path, dtype=dtype)
    wanted: torch.dtype = getattr(torch, dtype or stored or "float32")
    restored = restore_weights(contents(path), "here")
    assert header.config == CONFIG
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        is_exact = name == COORD_MATRIX_KEY or not value.is_floating_point()
        assert state[name].dtype == (value.dtype if is_exact else wanted), name
        assert torch.equal(state[name], value if is_exact else restored[name].to(wanted)), name


def test_a_file_that_is_all_rounded_but_for_mixed_weights_is_float32(tmp_path: Path) -> None:
    model = tiny_tap(CONFIG)
    state = dict(model.state_dict())
    state["text_decoder.norm.bias"] = state["text_decoder.norm.bias"].half()
    path = save_state(CONFIG, state, tmp_path / "model.safetensors", rounded=PARTS)
    found = read_checkpoint(path)[1]
    assert found[WEIGHT].dtype == torch.float32
    assert found["text_decoder.norm.bias"].dtype == torch.float16
    assert found["text_decoder.norm.weight"].dtype == torch.float32


def test_a_rounded_model_answers_almost_the_same(model: TAP, rounded: Path) -> None:
    loaded = load_model(rounded, device="cpu")
    assert loaded.dtype == torch.float32
    wanted, found = outputs(model), outputs(loaded)
    for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if number < 2:  # of parts that are not rounded
            assert torch.equal(one, other)
        else:
            error = ((one - other).norm() / one.norm()).item()
            assert 1e-5 < error < 0.05, (number, error)


def test_writing_a_loaded_file_again_gives_the_same_integers(rounded: Path, tmp_path: Path) -> None:
    again = save_model(
        load_model(rounded, device="cpu", dtype="float16"),
        tmp_path / "again.safetensors",
        rounded=PARTS,
    )
    before, after = contents(rounded), contents(again)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.endswith(".scale"):
            torch.testing.assert_close(after[name], value, rtol=1e-3, atol=0)
        else:
            assert torch.equal(after[name], value), name


def test_tensors_do_not_depend_on_the_file(rounded: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(rounded.read_bytes())
    _, state = read_checkpoint(path)
    wanted = restore_weights(contents(path), "here")[WEIGHT].half()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(state[WEIGHT], wanted)


def test_what_belongs_to_the_model_is_not_touched(model: TAP, tmp_path: Path) -> None:
    tensors, metadata = Companions(text_tokenizer=tiny_tokenizer()).pack()
    extra = {"w": torch.ones(64, 64, dtype=torch.int8), "b.scale": torch.ones(3), **tensors}
    path = save_model(
        model, tmp_path / "model.safetensors", metadata=metadata, extra_tensors=extra, rounded=PARTS
    )
    found = read_extra_tensors(path)
    assert found.keys() == extra.keys()
    assert all(torch.equal(found[name], extra[name]) for name in extra)
    assert load_model(path, device="cpu").config == CONFIG
    companions = find_companions(path, path, None, CONFIG.vocabulary_size)
    assert companions.text_tokenizer is not None
    assert companions.text_tokenizer.to_bytes() == tiny_tokenizer().to_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_conversion_writes_floats(tmp_path: Path, suffix: str) -> None:
    model = tiny_tap(tiny_config(max_text_length=40))
    path = save_model(
        model, tmp_path / "model.safetensors", dtype="float16", rounded=["text_decoder."]
    )
    converted = convert_checkpoint(path, tmp_path / f"converted{suffix}")
    before, after = load_model(path, device="cpu"), load_model(converted, device="cpu")
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name].half(), value.half()), name


@pytest.mark.parametrize("bad", ["view_segmenterx.", "extra.", "prompt_encoder."])
def test_a_bad_part_leaves_the_old_file(model: TAP, tmp_path: Path, bad: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=rf"rounded: expected .* got '{bad}'; parts .*text_dec"):
        save_model(model, path, rounded=["text_decoder.", bad])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
