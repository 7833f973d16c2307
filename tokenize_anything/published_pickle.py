"""Read pickles of NumPy arrays without running them.

The published weights are pickles, and a pickle is a program: loading one with `pickle.load` lets
its author run anything. The reader here is a small stack machine that knows the instructions which
build arrays, plain containers, text and numbers. It never looks up a name in a module and never
calls what a file asks for: the few constructors that NumPy writes are replaced by the ones below.
"""

from __future__ import annotations

import math
import mmap
import os
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

_CURE = (
    "Obtain a .safetensors file of these weights; or, if you trust whoever made this file, read it "
    "with Python's pickle on a machine that holds nothing of value, keep only its arrays in a "
    "plain dict, and pickle that"
)
_FOREIGN_STARTS = {
    b"PK\x03\x04": "a torch or zip file. Load it with torch.load(path, weights_only=True), turn "
    "each tensor into a NumPy array and pickle the dict, or save it as .safetensors",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself. Run `git lfs pull`, or "
    "download the file again",
    b"<": "a web page (HTML or XML). Download the file again, from its raw address",
    b"\x1f\x8b": "a gzip file. Decompress it first",
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE "
    "BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "STRING BINSTRING SHORT_BINSTRING".split()  # the last three are the text of Python 2
)
_NEW_CONTAINERS: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORES = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_FETCHES = frozenset(["GET", "BINGET", "LONG_BINGET"])
_IGNORED = frozenset(["PROTO", "FRAME"])
# Booleans, integers, floats and fixed-length text; 'O' (objects) and 'V' (records) are left out.
_DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|[US][1-9][0-9]{0,5}")
_MAX_DIMS = 32


def load_published_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle that holds only NumPy arrays, dicts with text keys, lists, tuples and values.

    All pickle protocols (0 to 5) are read. Arrays may be read-only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file asks for anything that an array does not need (the message names it),
            is truncated or damaged, or is not a pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a .pkl file of NumPy arrays")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; download it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start, what in _FOREIGN_STARTS.items():
            if data[: len(start)] == start:
                raise ValueError(f"{path}: expected a pickle of NumPy arrays, got {what}")
        machine = _ArrayMachine(path)
        try:
            return machine.run(data)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError) as error:
            if isinstance(error, _RefusedError):
                raise
            raise ValueError(
                f"{path}: not a pickle of NumPy arrays, or truncated or damaged "
                f"({type(error).__name__}: {error}). Download the file again"
            ) from error


class _RefusedError(ValueError):
    """The file asks for something that arrays do not need."""


@dataclass(frozen=True)
class _Global:
    """A name the file mentioned, and what stands in for it; None: named but never called."""

    name: str
    build: Callable[..., Any] | None = None


class _UnfinishedArray:
    """Between `_reconstruct`, which makes an empty array, and the state that fills it."""


class _ArrayMachine:
    """Run the instructions of one pickle; the names of the methods are those of the opcodes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.outer_stacks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.actions: dict[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "TUPLE": lambda _: self._push(tuple(self._pop_mark())),
            "LIST": lambda _: self._push(self._pop_mark()),
            "DICT": self._dict,
            "APPEND": lambda _: self._extend([self.stack.pop()]),
            "APPENDS": lambda _: self._extend(self._pop_mark()),
            "SETITEM": lambda _: self._set_items(self._pop_many(2)),
            "SETITEMS": lambda _: self._set_items(self._pop_mark()),
            "GLOBAL": lambda name: self._push_global(name.replace(" ", ".", 1)),
            "STACK_GLOBAL": lambda _: self._stack_global(*self._pop_many(2)),
            "REDUCE": self._reduce,
            "BUILD": self._build,
        }

    def run(self, data: Any) -> Any:
        """Follow the instructions up to STOP and return the object they built."""
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                if len(self.stack) != 1 or self.outer_stacks:
                    raise ValueError(f"expected one object at the end, got {len(self.stack)}")
                return self.stack[0]
            self._step(opcode.name, argument, position)
        raise ValueError("no end mark")

    def _step(self, name: str, argument: Any, position: int | None) -> None:
        if name in _LITERALS:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _NEW_CONTAINERS:
            self._push(_NEW_CONTAINERS[name]())
        elif name in _TUPLE_SIZES:
            self._push(tuple(self._pop_many(_TUPLE_SIZES[name])))
        elif name in _STORES:
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
        elif name in _FETCHES:
            self._push(self.memo[int(argument)])
        elif name in self.actions:
            self.actions[name](argument)
        elif name not in _IGNORED:
            if name == "INST":
                self._refuse(f"the global {argument.replace(' ', '.', 1)}")
            self._refuse(f"the instruction {name} at byte {position}")

    def _refuse(self, what: str) -> NoReturn:
        raise _RefusedError(
            f"{self.path}: refused, because it uses {what}, which NumPy arrays and plain "
            f"containers do not need and which could run code or damage memory. {_CURE}"
        )

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop_many(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError(f"expected {count} values on the stack, got {len(self.stack)}")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _mark(self, _: Any) -> None:
        self.outer_stacks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.outer_stacks.pop()
        return values

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            self._refuse(f"appending to {describe(self.stack[-1])}")
        self.stack[-1].extend(values)

    def _set_items(self, items: list[Any]) -> None:
        target, keys, values = self.stack[-1], items[::2], items[1::2]
        if not isinstance(target, dict):
            self._refuse(f"setting items of {describe(target)}")
        for key, value in zip(keys, values, strict=True):
            if not isinstance(key, str):  # also keeps the hash of a file's objects out of play
                self._refuse(f"a dict key that is {describe(key)}, not text")
            target[key] = value

    def _stack_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError(f"name: expected text, got {describe(module)} and {describe(name)}")
        self._push_global(f"{module}.{name}")

    def _push_global(self, name: str) -> None:
        if name not in _GLOBALS:
            self._refuse(f"the global {name}")
        self._push(_GLOBALS[name])

    def _reduce(self, _: Any) -> None:
        target, arguments = self._pop_many(2)
        if not isinstance(target, _Global) or target.build is None:
            self._refuse(f"a call of {describe(target)}")
        if not isinstance(arguments, tuple):
            raise TypeError(f"arguments: expected a tuple, got {describe(arguments)}")
        try:
            self._push(target.build(*arguments))
        except _RefusedError as error:
            self._refuse(str(error))

    def _build(self, _: Any) -> None:
        target, state = self._pop_many(2)
        if isinstance(target, _UnfinishedArray):
            finished: Any = _finish_array(*state)
        elif isinstance(target, np.dtype):
            finished = _finish_dtype(target, *state)
        else:
            self._refuse(f"a state for {describe(target)}")
        self._push(finished)
        self.memo.update({key: finished for key, value in self.memo.items() if value is target})


def describe(value: Any) -> str:
    """What a value from a pickle is, in a few words; never its contents, which may be endless."""
    if isinstance(value, _Global):
        return value.name
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, int) and abs(value) < 2**63:
        return repr(value)
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    size = f" of {len(value)}" if isinstance(value, list | tuple | dict | bytes) else ""
    return f"{type(value).__name__}{size}"


def _make_dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype[Any]:
    if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code):
        raise _RefusedError(
            f"the dtype {describe(code)} (not a number, a boolean or fixed-length text)"
        )
    return np.dtype(code)


def _finish_dtype(dtype: np.dtype[Any], version: int, byte_order: Any, *rest: Any) -> np.dtype[Any]:
    if version != 3 or byte_order not in ("<", ">", "|", "=") or rest[:3] != (None, None, None):
        raise ValueError(f"dtype: expected a plain one, state version 3, got {describe(version)}")
    return dtype.newbyteorder(byte_order)


def _start_array(kind: Any, shape: Any, code: Any) -> _UnfinishedArray:
    """Stand-in for NumPy's `_reconstruct`; the state that follows brings shape and dtype."""
    if kind is not _GLOBALS["numpy.ndarray"]:
        raise TypeError(f"expected numpy.ndarray, got {describe(kind)}")
    return _UnfinishedArray()


def _finish_array(version: int, shape: Any, dtype: Any, is_fortran: Any, raw: Any) -> np.ndarray:
    if version != 1:
        raise ValueError(f"array: expected state version 1, got {describe(version)}")
    return _array_from_bytes(raw, dtype, shape, "F" if is_fortran else "C")


def _array_from_bytes(
    raw: Any, dtype: Any, shape: Any, order: str = "C", axis_order: Any = None
) -> np.ndarray:
    """Stand-in for NumPy's `_frombuffer`; the shape must account for every byte."""
    if not isinstance(dtype, np.dtype) or not isinstance(raw, bytes | bytearray):
        raise TypeError(f"array: expected bytes, got {describe(raw)} and {describe(dtype)}")
    shape = shape if isinstance(shape, tuple) else (shape,)
    if len(shape) > _MAX_DIMS or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ValueError(
            f"array: expected a shape of up to {_MAX_DIMS} sizes, got {describe(shape)}"
        )
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"array: {shape} of {dtype} does not take {len(raw)} bytes")
    if axis_order is not None and order == "K":
        return _array_from_bytes(raw, dtype, shape).transpose(axis_order)
    if order not in ("C", "F"):
        raise ValueError(f"array: expected order C or F, got {describe(order)}")
    if not raw:
        return np.empty(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if order == "F" else "C")


def _make_scalar(dtype: Any, raw: Any) -> Any:
    return _array_from_bytes(raw, dtype, ())[()]


def _encode_text(text: str, encoding: str) -> bytes:
    """Stand-in for `_codecs.encode`, by which old protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(
            f"bytes: expected latin1 text, got {describe(text)} in {describe(encoding)}"
        )
    return text.encode("latin1")


def _make_empty_bytes() -> bytes:
    return b""


def _make_dict() -> dict[str, Any]:
    return {}


_CONSTRUCTORS: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": _make_dtype,
    "numpy.core.multiarray._reconstruct": _start_array,
    "numpy._core.multiarray._reconstruct": _start_array,
    "numpy.core.multiarray.scalar": _make_scalar,
    "numpy._core.multiarray.scalar": _make_scalar,
    "numpy.core.numeric._frombuffer": _array_from_bytes,
    "numpy._core.numeric._frombuffer": _array_from_bytes,
    "_codecs.encode": _encode_text,
    "__builtin__.bytes": _make_empty_bytes,
    "collections.OrderedDict": _make_dict,
}
_GLOBALS = {name: _Global(name, build) for name, build in _CONSTRUCTORS.items()}
