"""The pickle reader: everything NumPy writes, and nothing else."""

from __future__ import annotations

import builtins
import codecs
import collections
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from tokenize_anything.published_pickle import load_published_pickle

PROTOCOLS = range(6)
DTYPES = ["<f2", ">f4", "<f8", "|i1", ">i2", "<i4", "<i8", "|u1", "<u8", "|b1", "<U3", "|S2"]
RECONSTRUCT = np.empty(0).__reduce__()[0]


class Reduced:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def reconstruct(shape: Any, dtype: Any, raw: Any, version: int = 1) -> Reduced:
    """What NumPy writes for an array, with any of its facts replaced."""
    return Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state=(version, shape, dtype, False, raw))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles") / "file.pkl"


@given(data=st.data())
def test_every_plain_array_comes_back(data: Any, scratch: Path) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = data.draw(hnp.arrays(dtype, shape))
    array = np.transpose(array, data.draw(st.permutations(range(array.ndim))))
    content: Any = {
        "a": array,
        "b": [array, (array.dtype, "text", b"bytes", 7, -(2**70), 1.5, None)],
    }
    write(scratch, content, data.draw(st.sampled_from(PROTOCOLS)))
    found = load_published_pickle(scratch)
    assert found["a"].dtype == array.dtype
    assert found["a"].shape == array.shape
    assert found["a"].tobytes() == array.tobytes()
    assert found["b"][0] is found["a"]
    assert found["b"][1] == content["b"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_containers_and_shared_objects(tmp_path: Path, protocol: int) -> None:
    names = ["first", "second"]
    content = [
        np.float32(2.5), np.int64(-3), np.True_, {}, [], (), True, False, 0, 255, 65536, names,
        (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {"k": names}, "ü" * 300, b"\x00\xff" * 300,
        collections.OrderedDict(z=1, a=2),
    ]  # fmt: skip
    found = load_published_pickle(write(tmp_path / "file.pkl", content, protocol))
    assert found == content
    assert [type(value) for value in found[:-1]] == [type(value) for value in content[:-1]]
    assert type(found[-1]) is dict
    assert list(found[-1]) == ["z", "a"]
    assert found[16]["k"] is found[11]


def test_both_spellings_of_numpy(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    for protocol, words in ((2, (b"numpy._core", b"numpy.core")), (5, (b"_core.", b"core."))):
        raw = pickle.dumps([array, array[0, 0]], protocol)
        if protocol == 5:  # text is written with its length in front
            raw = raw.replace(b"\x13numpy._core.numeric", b"\x12numpy.core.numeric")
            raw = raw.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
        else:
            raw = raw.replace(*words)
        assert b"_core" not in raw
        found = load_published_pickle(write(tmp_path / "file.pkl", raw))
        np.testing.assert_array_equal(found[0], array)
        assert found[1] == array[0, 0]


CALLS: dict[str, tuple[Any, str]] = {
    "os.system": (Reduced(os.system, "touch pwned"), r"the global (posix|nt)\.system"),
    "eval": (Reduced(eval, "open('pwned', 'w')"), r"the global builtins\.eval"),
    "getattr": (Reduced(getattr, "text", "upper"), r"the global builtins\.getattr"),
    "import": (Reduced(builtins.__import__, "os"), r"the global builtins\.__import__"),
    "numpy.load": (Reduced(np.load, "pwned", None, True), r"the global numpy\.load"),
    "numpy.fromfile": (Reduced(np.fromfile, "/etc/hosts"), r"the global numpy\.fromfile"),
    "codecs.decode": (Reduced(codecs.decode, b"x", "zip"), r"the global _codecs\.decode"),
    "torch": (torch.zeros(2), r"the global torch\._utils\._rebuild_tensor_v2"),
    "set": ({1, 2}, r"the instruction EMPTY_SET at byte \d+"),
    "complex": (1j, r"the global builtins\.complex"),
    "class": (Path("x"), r"the global pathlib"),
    "ndarray called": (Reduced(np.ndarray, (2,)), r"a call of numpy\.ndarray"),
    "array method": (Reduced(np.empty(1).tofile, "pwned"), r"the global builtins\.getattr"),
    "masked array": (np.ma.array([1.0], mask=[True]), r"the global numpy\.ma\.core\._ma"),
    "object dtype": (np.array([{}], dtype=object), r"the dtype 'O8'"),
    "record dtype": (np.zeros(1, dtype="i4,f4"), r"the dtype 'V8'"),
    "date": (np.zeros(1, dtype="M8[s]"), r"the dtype 'M8'"),
    "long double": (np.zeros(1, dtype="c16"), r"the dtype 'c16'"),
    "empty text": (Reduced(np.dtype, "U0", False, True), r"the dtype 'U0'"),
    "dtype of a list": (Reduced(np.dtype, [("a", "O")]), r"the dtype list of 1"),
    "key": ({(1, 2): 3}, r"a dict key that is tuple of 2, not text"),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", CALLS)
def test_other_requests_are_refused(tmp_path: Path, name: str, protocol: int) -> None:
    content, words = CALLS[name]
    raw = pickle.dumps(content, protocol)
    words = words.replace("builtins", "(builtins|__builtin__)")
    if name == "set" and protocol == 2:
        words = r"the global (builtins|__builtin__)\.set"
    path = write(tmp_path / "file.pkl", raw)
    with pytest.raises(ValueError, match=words) as caught:
        load_published_pickle(path)
    assert str(path) in str(caught.value)
    assert "Obtain a .safetensors file" in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


NEW, START = (
    b"\x80\x04",
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R",
)
DTYPE = b"cnumpy\ndtype\n\x8c\x02f4\x89\x88\x87R"
ARRAY = b"cnumpy.core.numeric\n_frombuffer\n(C\x04\x00\x00\x80?" + DTYPE + b"K\x01\x85\x8c\x01CtR"
PROGRAMS: dict[str, tuple[bytes, str]] = {
    "protocol 0": (b"cos\nsystem\n(S'touch pwned'\ntR.", r"the global os\.system"),
    "class by INST": (b"(Vtouch pwned\nios\nsystem\n.", r"the global os\.system"),
    "class by OBJ": (b"(cos\nsystem\nS'x'\no.", r"the global os\.system"),
    "name inside a class": (NEW + b"\x8c\x05numpy\x8c\x0endarray.tofile\x93.", r"ndarray\.tofile"),
    "name by memo": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93.", r"global os\.sy"),
    "import alone": (b"cthis\ns\n.", r"the global this\.s"),
    "new object": (NEW + b"cnumpy\nndarray\n)\x81.", r"the instruction NEWOBJ at"),
    "new object with keywords": (NEW + b"cnumpy\nndarray\n)}\x92.", r"the instruction NEWOBJ_EX"),
    "object of a class": (b"(cnumpy\nndarray\no.", r"the instruction OBJ"),
    "persistent id": (b"Pbucket\n.", r"the instruction PERSID"),
    "binary persistent id": (NEW + b"K\x01Q.", r"the instruction BINPERSID"),
    "extension 1": (NEW + b"\x82\x01.", r"the instruction EXT1"),
    "extension 2": (NEW + b"\x83\x01\x00.", r"the instruction EXT2"),
    "extension 4": (NEW + b"\x84\x01\x00\x00\x00.", r"the instruction EXT4"),
    "buffer from outside": (b"\x80\x05\x97.", r"the instruction NEXT_BUFFER"),
    "state of a dict": (NEW + b"}}b.", r"a state for dict of 0"),
    "state of text": (NEW + b"\x8c\x01a}b.", r"a state for 'a'"),
    "state of an array": (NEW + ARRAY + b"}b.", r"a state for an array \(1,\) of float32"),
    "state of a constructor": (NEW + b"cnumpy\ndtype\n}b.", r"a state for numpy\.dtype"),
    "append to an array": (NEW + ARRAY + b"K\x01a.", r"appending to an array \(1,\)"),
    "item of an array": (NEW + ARRAY + b"K\x00K\x01s.", r"setting items of an array \(1,\)"),
    "item of a list": (NEW + b"]K\x00K\x01s.", r"setting items of list of 0"),
    "call of text": (NEW + b"\x8c\x01a)R.", r"a call of 'a'"),
    "call of an array": (NEW + ARRAY + b")R.", r"a call of an array"),
    "other class": (START.replace(b"numpy\nndarray", b"numpy\nmatrix") + b".", r"numpy\.matrix"),
    "array of a dtype": (
        START.replace(b"numpy\nndarray", b"numpy\ndtype") + b".", r"expected numpy.ndarray, got"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_refused(tmp_path: Path, name: str) -> None:
    raw, words = PROGRAMS[name]
    path = write(tmp_path / "file.pkl", raw)
    with pytest.raises(ValueError, match=words):
        load_published_pickle(path)
    assert list(tmp_path.iterdir()) == [path]
    assert "this" not in sys.modules


F4 = np.dtype("<f4")
LIES: dict[str, tuple[Any, str]] = {
    "huge": (reconstruct((10**12,), F4, b"1234"), r"\(1000000000000,\) of float32 does not take 4"),
    "overflow": (reconstruct((2**62, 4), F4, b""), r"does not take 0 bytes"),
    "beyond 64 bits": (reconstruct((2**64, 0), F4, b""), r"expected a shape of up to 32 sizes"),
    "negative": (reconstruct((-1, -1), F4, b"1234"), r"expected a shape of up to 32 sizes"),
    "many axes": (reconstruct((1,) * 33, F4, b"1234"), r"expected a shape of up to 32 sizes"),
    "boolean size": (reconstruct((True,), F4, b"1234"), r"expected a shape of up to 32 sizes"),
    "list of objects": (reconstruct((1,), F4, [None]), r"expected bytes, got list of 1"),
    "dtype by name": (reconstruct((1,), "f4", b"1234"), r"expected bytes, got bytes of 4 and 'f4'"),
    "state version": (
        reconstruct((1,), F4, b"1234", version=2),
        r"expected state version 1, got 2",
    ),
    "too short a state": (NEW + START[2:] + b"K\x01)\x86b.", r"TypeError"),
    "dtype with fields": (
        Reduced(np.dtype, "f4", False, True, state=(3, "<", None, ("a",), {}, -1, -1, 0)),
        r"dtype: expected a plain one",
    ),
    "byte order": (
        Reduced(np.dtype, "f4", False, True, state=(3, "x", None, None, None, -1, -1, 0)),
        r"dtype: expected a plain one",
    ),
    "codec": (Reduced(codecs.encode, "x", "utf-7"), r"expected latin1 text"),
    "huge text": (NEW + b"\x8d" + b"\xff" * 7 + b"\x00" + b"abc.", r"but only 4 remain"),
    "huge bytes": (NEW + b"\x8e" + b"\xff" * 7 + b"\x00" + b"abc.", r"but only 4 remain"),
    "huge number": (NEW + b"\x8b\xff\xff\xff\x7fabc.", r"not a pickle of NumPy arrays"),
    "empty memo": (NEW + b"j\xff\xff\xff\xff.", r"KeyError: 4294967295"),
    "empty stack": (NEW + b"K\x01\x87.", r"expected 3 values on the stack, got 1"),
    "no mark": (NEW + b"K\x01t.", r"IndexError"),
    "two objects": (NEW + b"K\x01K\x02.", r"expected one object at the end, got 2"),
    "open mark": (NEW + b"K\x01(K\x02.", r"expected one object at the end"),
    "no end": (NEW + b"K\x01", r"not a pickle of NumPy arrays"),
    "odd items": (NEW + b"}(\x8c\x01au.", r"ValueError"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_lies_are_found_before_memory_is_taken(tmp_path: Path, name: str) -> None:
    content, words = LIES[name]
    path = write(tmp_path / "file.pkl", content)
    with pytest.raises(ValueError, match=words) as caught:
        load_published_pickle(path)
    assert "Download the file again" in str(caught.value)


def test_a_huge_memo_slot_takes_no_memory(tmp_path: Path) -> None:
    raw = NEW + b"K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff."
    with pytest.raises(ValueError, match="the instruction POP"):
        load_published_pickle(write(tmp_path / "file.pkl", raw))
    raw = NEW + b"]K\x07r\xff\xff\xff\xffaj\xff\xff\xff\xffa."
    assert load_published_pickle(write(tmp_path / "file.pkl", raw)) == [7, 7]


def test_repeated_doubling_takes_no_time(tmp_path: Path) -> None:
    # The next tuple holds the last one twice: 2^200 leaves; a hash is as slow as that.
    doubled = b"K\x01\x85q\x00" + b"h\x00\x86q\x00" * 200
    assert len(load_published_pickle(write(tmp_path / "file.pkl", NEW + doubled + b"."))) == 2
    with pytest.raises(ValueError, match="a dict key that is tuple of 2"):
        load_published_pickle(write(tmp_path / "file.pkl", NEW + b"}" + doubled + b"K\x01s."))
    for program in (b"\x8c\x01a\x93.", b"\x85R.", b"b."):  # no message spells it out
        for before in (b"", b"cnumpy\ndtype\n", b"cnumpy\ndtype\n\x8c\x02f4\x85R"):
            with pytest.raises(ValueError, match=r"file.pkl"):
                raw = NEW + before + doubled + program
                load_published_pickle(write(tmp_path / "file.pkl", raw))


def test_an_array_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    raw = b"(" + START + b"q\x01h\x01(K\x01K\x01\x85" + DTYPE + b"\x89C\x041234tbh\x01t."
    unfinished, finished, remembered = load_published_pickle(write(tmp_path / "file.pkl", raw))
    assert not isinstance(unfinished, np.ndarray)
    assert finished is remembered
    assert finished.tobytes() == b"1234"


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty; download it again"),
    "torch": (b"PK\x03\x04rest", r"torch or zip file. Load it with torch.load\(path, weights_only"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Run `git lfs pull`"),
    "page": (b"<!DOCTYPE html><html>", "a web page"),
    "gzip": (b"\x1f\x8b\x08rest", "Decompress it first"),
    "text": (b"hello world", "not a pickle of NumPy arrays"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_kinds_of_file_are_named(tmp_path: Path, name: str) -> None:
    raw, words = FOREIGN[name]
    with pytest.raises(ValueError, match=words):
        load_published_pickle(write(tmp_path / "file.pkl", raw))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent.pkl: no such file"):
        load_published_pickle(tmp_path / "absent.pkl")
    with pytest.raises(FileNotFoundError, match=r"no such file"):
        load_published_pickle(tmp_path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_every_truncation_is_noticed(tmp_path: Path, protocol: int) -> None:
    content = {"a": np.arange(3, dtype=np.float16), "b": ["x", np.float32(1)]}
    raw = pickle.dumps(content, protocol)
    for length in range(1, len(raw)):
        path = write(tmp_path / "file.pkl", raw[:length])
        with pytest.raises(ValueError, match=r"file.pkl: .*(Download the file again|refused)"):
            load_published_pickle(path)


@given(data=st.data())
def test_damaged_files_raise_value_errors_only(data: Any, scratch: Path) -> None:
    content = {"a": np.arange(3, dtype=np.float16), "b": ["x", np.float32(1), b"y"]}
    raw = bytearray(pickle.dumps(content, data.draw(st.sampled_from(PROTOCOLS))))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    scratch.write_bytes(raw)
    try:
        load_published_pickle(scratch)
    except ValueError as error:
        assert str(scratch) in str(error)
