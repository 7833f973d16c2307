"""Native files: what goes in comes out, and nothing half-written or foreign gets through."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.tiny import tiny_config, tiny_tap
from tokenize_anything.checkpoints import (
    CheckpointHeader,
    check_state,
    expected_state,
    lay_out_model,
    parse_dtype,
    read_checkpoint,
    read_extra_tensors,
    read_header,
    replace_on_success,
    save_model,
    save_state,
    write_safetensors,
)
from tokenize_anything.config import PixelConfig, TAPConfig
from tokenize_anything.modeling import TAP
from tokenize_anything.weight_rounding import COORD_MATRIX_KEY, cast_tensor

PIXELS = PixelConfig(mean=(11.5, 22.25, 33.125), std=(44.0, 55.5, 66.25), channel_order="RGB")


@pytest.fixture(scope="module")
def model() -> TAP:
    model = tiny_tap(tiny_config(pixels=PIXELS))
    for number, module in enumerate(model.modules()):
        if isinstance(module, torch.nn.BatchNorm2d) and module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(number)
    return model


@pytest.fixture(scope="module")
def saved(model: TAP, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("native") / "model.safetensors"
    return save_model(model, path).read_bytes()


def test_a_file_holds_the_whole_model(model: TAP, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    extra = {"weights": torch.arange(6.0).reshape(2, 3).T, "tokenizer": torch.tensor([3, 250, 7])}
    metadata = {"name": "tiny", "note": "ü"}
    assert save_model(model, str(path), metadata=metadata, extra_tensors=extra) == path
    header, state = read_checkpoint(path)
    assert header == read_header(str(path))
    assert header == CheckpointHeader(model.config, metadata, ("tokenizer", "weights"))
    assert header.config.pixels == PIXELS
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name
    found = read_extra_tensors(path)
    assert found.keys() == extra.keys()
    assert all(torch.equal(found[name], extra[name]) for name in extra)
    assert found["tokenizer"].dtype == torch.int64
    assert list(tmp_path.iterdir()) == [path]


def test_the_header_is_plain_to_other_readers(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "version", "config"}
    assert metadata["format"] == "tokenize_anything"
    assert metadata["version"] == "1"
    assert json.loads(metadata["config"])["pixels"]["std"] == [44.0, 55.5, 66.25]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float16])
@pytest.mark.parametrize("when", ["saving", "loading", "both"])
def test_only_the_position_matrix_stays_exact(
    model: TAP, tmp_path: Path, dtype: Any, when: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(model, path, dtype=None if when == "loading" else dtype)
    _, state = read_checkpoint(path, dtype=None if when == "saving" else dtype)
    low = parse_dtype(dtype)
    for name, value in model.state_dict().items():
        is_exact = name == COORD_MATRIX_KEY or not value.is_floating_point()
        assert torch.equal(state[name], value if is_exact else value.to(low)), name
    assert state[COORD_MATRIX_KEY].dtype == torch.float32
    assert not torch.equal(state[COORD_MATRIX_KEY], state[COORD_MATRIX_KEY].to(low).float())


def test_a_half_precision_model_and_file_come_back_as_float32(model: TAP, tmp_path: Path) -> None:
    half = tiny_tap(model.config).half()
    path = save_model(half, tmp_path / "model.safetensors")
    assert read_checkpoint(path)[1]["image_encoder.pos_embed"].dtype == torch.float16
    _, state = read_checkpoint(path, dtype="float32")
    for name, value in tiny_tap(model.config).state_dict().items():
        if value.is_floating_point():
            assert state[name].dtype == torch.float32, name
            expected = value if name == COORD_MATRIX_KEY else value.half().float()
            assert torch.equal(state[name], expected), name


def test_tensors_do_not_depend_on_the_file(model: TAP, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    _, state = read_checkpoint(path)
    with path.open("r+b") as file:
        file.write(bytes(len(saved)))
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_views_and_shared_memory_are_written(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {"a": base.permute(2, 0, 1), "b": base[1], "c": base, "d": base[:, :, 0]}
    write_safetensors(tmp_path / "views.safetensors", tensors, {"k": "v"})
    with safe_open(tmp_path / "views.safetensors", framework="pt") as file:
        assert file.metadata() == {"k": "v"}
        assert all(torch.equal(file.get_tensor(name), tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("keywords", "kind", "words"),
    [
        ({"metadata": {"config": "x"}}, ValueError, r"metadata: the keys \['config'\] are taken"),
        ({"metadata": {"note": 3}}, TypeError, r"metadata\['note'\]: expected text, got int"),
        (
            {"extra_tensors": {"a": [1]}},
            TypeError,
            r"extra_tensors\['a'\]: expected a tensor, got l",
        ),
        (
            {"dtype": "float64"},
            ValueError,
            r"dtype: expected one of \['bfloat16', .* got 'float64'",
        ),
        ({"dtype": torch.int8}, ValueError, r"dtype: expected one of .* got torch.int8"),
    ],
)
def test_bad_arguments_leave_the_old_file(
    model: TAP, tmp_path: Path, keywords: dict[str, Any], kind: type[Exception], words: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(kind, match=words):
        save_model(model, path, **keywords)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bad_paths(model: TAP, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name ending in .safetensors, got 'model.pt'"):
        save_model(model, tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist; create it"):
        save_model(model, tmp_path / "absent" / "model.safetensors")


def test_a_failed_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"), replace_on_success(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    with replace_on_success(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_overflow_is_an_error_that_names_the_weight(model: TAP, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    state["image_encoder.norm.bias"] = torch.full((22,), -70000.0)
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"image_encoder.norm.bias: largest magnitude 7e\+04 does"):
        save_state(model.config, state, path, dtype="float16")
    save_state(model.config, state, path, dtype="bfloat16")
    state["image_encoder.norm.bias"] = torch.full((22,), -torch.inf)
    assert cast_tensor("x", state["image_encoder.norm.bias"], torch.float16).isinf().all()


def test_a_state_must_fit_its_configuration(model: TAP, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the tensors do not fit .* 1 misfitting: text_decoder.v"):
        save_state(
            tiny_config(text_dim=128, decoder_dim=64),
            {**model.state_dict(), "text_decoder.visual_proj.weight": torch.zeros(64, 128)},
            tmp_path / "model.safetensors",
        )
    assert not list(tmp_path.iterdir())


def test_check_state_lists_everything_once_and_sorted() -> None:
    expected = {name: torch.empty(2, 3, device="meta") for name in ("d", "b", "c", "a")}
    found = {
        "z": torch.zeros(1),
        "y": 3,
        "c": torch.zeros(3, 2),
        "a": torch.zeros(2, 3, dtype=torch.int64),
    }
    with pytest.raises(ValueError) as caught:
        check_state(expected, found, where="here")
    assert str(caught.value) == (
        "here: the tensors do not fit the configuration; 2 missing: b, d; 2 unexpected: y, z; "
        "2 misfitting: a is [2, 3] int64, expected [2, 3] floating-point, "
        "c is [3, 2] floating-point, expected [2, 3] floating-point"
    )
    check_state(expected, {name: torch.zeros(2, 3).half() for name in expected}, where="here")


def test_truncated_files(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header_size = 8 + int.from_bytes(saved[:8], "little")
    for length in (0, 5, 8, header_size - 1, header_size, header_size + 99, len(saved) - 1):
        path.write_bytes(saved[:length])
        for read in (read_checkpoint, read_header, read_extra_tensors):
            with pytest.raises(
                ValueError, match=r"model.safetensors: not a safetensors file, or tr"
            ):
                read(path)


def rewrite(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    """Change the header of a file."""

    def apply(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        change(metadata)
        save_file(tensors, path, metadata=metadata)

    return apply


def edit(**values: Any) -> Callable[[Path], None]:
    """Change the configuration in the header of a file."""
    return rewrite(
        lambda metadata: metadata.update(config=json.dumps(json.loads(metadata["config"]) | values))
    )


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "foreign": (rewrite(lambda m: m.clear()), r"not written by this package: its header has no "),
    "other format": (rewrite(lambda m: m.update(format="pt")), r"no format='tokenize_anything'"),
    "no config": (rewrite(lambda m: m.pop("config")), r"`tap convert`"),
    "newer": (rewrite(lambda m: m.update(version="2")), r"expected format version 1, got 2; up"),
    "no version": (rewrite(lambda m: m.pop("version")), r"expected format version 1, got None"),
    "no JSON": (rewrite(lambda m: m.update(config="{")), r"damaged configuration in the header"),
    "no dict": (rewrite(lambda m: m.update(config="[1]")), r"damaged configuration in the header"),
    "no sizes": (edit(pixels=3), r"damaged configuration in the header"),
    "unknown size": (edit(colour=3), r"unknown keys \['colour'\]"),
    "another size": (edit(semantic_dim=31), r"6 misfitting: image_decoder.semantic_head.layers.0"),
    "another depth": (edit(text_depth=2), r"12 unexpected: text_decoder.blocks.2.mlp.fc1.bias"),
    "endless depth": (edit(text_depth=10**9), r"several tensors per block, got \d+ for 1000000006"),
    "endless width": (edit(semantic_dim=10**12), r"sizes too large for a tensor|misfitting"),
    "endless window": (
        edit(window_size=10**5, image_size=8 * 10**5),
        r"window_size: the position tables of 4 blocks with window 100000 would take 3\d+ bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_files_of_another_kind(saved: bytes, tmp_path: Path, name: str) -> None:
    change, words = BROKEN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    change(path)
    with pytest.raises(ValueError, match=words) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path))


def test_no_file(tmp_path: Path) -> None:
    for read in (read_checkpoint, read_header, read_extra_tensors):
        with pytest.raises(FileNotFoundError, match=r"absent.safetensors: no such file"):
            read(tmp_path / "absent.safetensors")


def test_a_laid_out_model_has_real_tables_and_no_other_memory() -> None:
    config = tiny_config()
    model: Any = lay_out_model(config, drop_path=0.5)
    reference = TAP(config)
    tables = {n: b for n, b in model.named_buffers() if n.endswith("position_bias.index")}
    assert len(tables) == config.encoder_depth
    for name, table in tables.items():
        assert torch.equal(table, reference.get_buffer(name))
    assert all(value.is_meta for value in model.state_dict().values())
    assert model.image_encoder.blocks[-1].drop_path.p == 0.5
    for name, value in expected_state(config).items():
        assert value.shape == reference.state_dict()[name].shape
        assert value.dtype == reference.state_dict()[name].dtype
    assert expected_state(config).keys() == reference.state_dict().keys()


def test_a_size_beyond_any_tensor() -> None:
    with pytest.raises(ValueError, match="sizes too large for a tensor"):
        lay_out_model(TAPConfig(semantic_dim=2**40))


def test_files_get_ordinary_permissions(model: TAP, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    path = save_model(model, tmp_path / "model.safetensors")
    assert os.stat(path).st_mode == os.stat(plain).st_mode
