"""Published files: written, read, converted to native files and back; concept files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import tiny_config, tiny_tap
from tokenize_anything.checkpoints import (
    read_checkpoint,
    read_extra_tensors,
    read_header,
    save_model,
)
from tokenize_anything.modeling import TAP
from tokenize_anything.published_format import (
    convert_checkpoint,
    load_published_concepts,
    save_published_checkpoint,
)


@pytest.fixture(scope="module")
def model() -> TAP:
    return tiny_tap(tiny_config(max_text_length=40)).half().float()  # values that float16 holds


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_published_to_native_and_back_is_identical(model: TAP, tmp_path: Path, dtype: str) -> None:
    first = save_published_checkpoint(model, tmp_path / "first.pkl", dtype=dtype)
    native = convert_checkpoint(first, tmp_path / "native.safetensors", dtype=dtype)
    second = convert_checkpoint(native, tmp_path / "second.pkl", dtype=dtype)
    before, after = (pickle.loads(path.read_bytes()) for path in (first, second))
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype, name
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    for name, value in read_checkpoint(native)[1].items():
        is_exact = name.endswith(("coord_matrix", "num_batches_tracked"))
        assert str(value.dtype) == f"torch.{dtype}" or is_exact, name


def test_saving_is_whole_or_not_at_all(model: TAP, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="expected float16 or float32, got bfloat16"):
        save_published_checkpoint(model, path, dtype="bfloat16")
    assert path.read_bytes() == b"old"
    assert save_published_checkpoint(model, path) == path
    assert list(tmp_path.iterdir()) == [path]
    content = pickle.loads(path.read_bytes())
    assert type(content) is dict
    assert content["pixel_mean"].dtype == np.float32
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist"):
        save_published_checkpoint(model, tmp_path / "absent" / "model.pkl")


def test_conversion_between_native_files_keeps_what_they_carry(model: TAP, tmp_path: Path) -> None:
    extra = torch.arange(5.0)
    source = save_model(
        model, tmp_path / "a.safetensors", metadata={"name": "one", "note": "kept"},
        extra_tensors={"weights": extra},
    )  # fmt: skip
    target = tmp_path / "b.safetensors"
    convert_checkpoint(source, target, dtype="bfloat16", metadata={"name": "two"})
    header = read_header(target)
    assert header.config == model.config
    assert header.metadata == {"name": "two", "note": "kept"}
    assert torch.equal(read_extra_tensors(target)["weights"], extra)
    assert read_checkpoint(target)[1]["image_encoder.pos_embed"].dtype == torch.bfloat16
    assert read_header(source).metadata["name"] == "one"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ("model.pth a.safetensors float16", ValueError, r"source: expected a .pkl or .safetensors"),
        ("model.pkl a.bin float16", ValueError, r"destination: expected a .pkl or .safetensors"),
        ("model.pkl a.safetensors int8", ValueError, r"dtype: expected one of .* got 'int8'"),
        ("absent.pkl a.safetensors float16", FileNotFoundError, r"absent.pkl: no such file"),
        ("absent.safetensors a.pkl float16", FileNotFoundError, r"absent.safetensors: no such"),
        ("model.pkl absent/a.safetensors float16", FileNotFoundError, r"the folder .*absent"),
    ],
)
def test_conversions_that_cannot_be(
    model: TAP, tmp_path: Path, arguments: str, kind: type[Exception], words: str
) -> None:
    save_published_checkpoint(model, tmp_path / "model.pkl")
    source, destination, dtype = arguments.split()
    with pytest.raises(kind, match=words):
        convert_checkpoint(tmp_path / source, tmp_path / destination, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pkl"]


def test_concepts(tmp_path: Path) -> None:
    path = tmp_path / "concepts.pkl"
    weights = np.arange(6, dtype=np.float16).reshape(3, 2) / 7
    for container, names in ((list, ["cat", "dog"]), (tuple, np.array(["cat", "dog"]))):
        path.write_bytes(pickle.dumps(container([weights, names])))
        found_names, found = load_published_concepts(path)
        assert found_names == ["cat", "dog"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, weights.astype(np.float32))
        assert found.flags.writeable


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"a": np.zeros(2)},
            r"a list \[weights \(D,K\), K names\], got dict of 1. A file of model",
        ),
        ([np.zeros((3, 2))], r"got list of 1"),
        ([["a"], ["a"]], r"weights: expected floats \(D,K\), got list of 1"),
        ([np.zeros(2), ["a", "b"]], r"got an array \(2,\) of float64"),
        ([np.zeros((2, 1), dtype=int), ["a"]], r"got an array \(2, 1\) of int64"),
        ([np.zeros((2, 1)), "a"], r"names: expected a list of text, got 'a'"),
        ([np.zeros((2, 1)), [1]], r"names: expected a list of text, got list of 1"),
        ([np.zeros((2, 3)), ["a", "b"]], r"one name per column of weights, got 2 names and .*2, 3"),
        ([np.full((2, 1), np.nan), ["a"]], r"expected finite numbers, got NaN or infinity"),
    ],
)
def test_what_holds_no_concepts_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "concepts.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"concepts.pkl: .*{words}"):
        load_published_concepts(path)
