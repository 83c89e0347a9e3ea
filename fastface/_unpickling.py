"""Pickles of arrays and plain containers, read without running or trusting what is in them.

No class or function that a file names is ever imported, and no object of the file can reach one of NumPy's: what stands
for their names only makes arrays of numbers out of bytes, whose count is checked, and cannot be changed.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayUnpickler", "Function", "Refused", "Sealed", "sizes"]

_BUILTINS = ("builtins", "__builtin__")
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_DTYPE = re.compile(r"[<>|=]?([biu]1|[iuf]2|[iuf]4|[iufc]8|c16)")
_DTYPE_REST = (None, None, None, -1, -1, 0)  # no subarray, no fields, and the size and flags of a plain number
_PLAIN = (str, bytes, bool, int, float, type(None))


class Refused(pickle.UnpicklingError):
    """A pickle that asks for more than arrays and plain containers, or whose arrays are none."""


class Sealed:
    """What a pickle may hold but never change."""

    __slots__ = ()

    def __setstate__(self, *_: Any) -> None:
        raise Refused("it changes what it may only use")


class Function(Sealed):
    """What stands for a function or a class that a pickle may call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class _Array(np.ndarray):
    """An array that its state fills, as NumPy's pickles want it."""

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, fortran, data = state
        filled: Any = _array(data, dtype, shape, "F" if fortran else "C")
        super().__setstate__(filled.__reduce__()[2])


class _DType(Sealed):
    """The type of a number; its state is the order of its bytes."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise Refused(f"its arrays must be of numbers, got dtype {str(name)[:40]!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, *states: Any) -> None:
        (state,) = states
        if not isinstance(state, tuple) or len(state) != 8 or state[0] != 3 or state[2:] != _DTYPE_REST:
            raise Refused("its arrays must be of numbers, got a dtype of another state")
        if state[1] not in ("<", ">", "|", "="):
            raise Refused(f"the byte order of a dtype must be one of < > | =, got {str(state[1])[:40]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


def sizes(what: str, values: Any) -> tuple[int, ...]:
    """A tuple of integers from 0 on, checked."""
    if not isinstance(values, (tuple, list)) or not all(type(value) is int and value >= 0 for value in values):
        raise Refused(f"{what} must be integers from 0 on")
    return tuple(values)


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """An array that owns its numbers, of exactly as many bytes as its shape asks for."""
    if not isinstance(dtype, _DType):
        raise Refused(f"its arrays must be of numbers, got {type(dtype).__name__} for a dtype")
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)) or order not in ("C", "F"):
        raise Refused(f"its arrays must be made of bytes in order C or F, got {type(data).__name__}")
    shape = sizes("the shape of an array", shape)
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise Refused(f"an array of {dtype.dtype} must have the bytes of its shape, got {len(data)}")
    return np.ndarray(shape, dtype.dtype, bytes(data), order=order).copy(order="K")


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """How protocol 5 spells arrays."""
    return _array(data, dtype, shape, order).view(_Array)


def _reconstruct(kind: Any, *_: Any) -> NDArray[Any]:
    """How other protocols spell arrays: an empty one, whose state follows."""
    if kind is not _NDARRAY:
        raise Refused("its arrays must be numpy.ndarray")
    return _Array((0,), np.int8)


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, (), "C").item()


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 spells bytes for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused(f"it asks for the codec {str(encoding)[:40]!r}, and bytes are latin1")
    return text.encode("latin1")


def _set(items: Iterable[Any] = ()) -> set[Any]:
    if not isinstance(items, list) or not all(isinstance(item, _PLAIN) for item in items):
        raise Refused("its sets must be made of plain values")
    return set(items)


_NDARRAY = Sealed()


def _checked(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """A step of the unpickler that hashes what `keys` takes from the stack."""

    def checked(unpickler: Any) -> None:
        if any(isinstance(key, tuple) for key in unpickler.stack[keys]):  # the hash of deep ones overflows the C stack
            raise Refused("its keys must be plain values, got a tuple")
        load(unpickler)

    return checked


def _load_bytearray(unpickler: Any) -> None:
    """Without the allocation that precedes the bytes: the file may have fewer than it says."""
    (count,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(count)))


_HASHED = {
    pickle.SETITEM[0]: slice(-2, -1),
    pickle.SETITEMS[0]: slice(None, None, 2),
    pickle.DICT[0]: slice(None, None, 2),
    pickle.ADDITEMS[0]: slice(None),
    pickle.FROZENSET[0]: slice(None),
}
_STEPS = pickle._Unpickler.dispatch


class ArrayUnpickler(pickle._Unpickler):
    """Reads arrays and numbers of NumPy, and plain containers; any other name is for `unknown` to refuse.

    The Python unpickler, because the one in C allocates as much as the indices of a file's memo ask for.
    """

    dispatch: ClassVar = {
        **_STEPS,
        **{code: _checked(_STEPS[code], keys) for code, keys in _HASHED.items()},
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }
    known: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): Function(_DType),
        **{(module, "_reconstruct"): Function(_reconstruct) for module in _MULTIARRAY},
        **{(module, "scalar"): Function(_scalar) for module in _MULTIARRAY},
        **{(module, "_frombuffer"): Function(_frombuffer) for module in _NUMERIC},
        **{(module, "set"): Function(_set) for module in _BUILTINS},
        **{(module, "bytes"): Function(lambda: b"") for module in _BUILTINS},  # how old protocols spell empty ones
        ("_codecs", "encode"): Function(_encode),
        ("collections", "OrderedDict"): Function(dict),
    }

    @classmethod
    def load_file(cls, path: Path) -> Any:
        """What a file holds, strings of Python 2 as latin1. Raises Refused, or UnpicklingError for no pickle."""
        try:
            return cls(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        except (Refused, OSError):
            raise
        except Exception as error:  # damaged ones fail in many ways
            raise pickle.UnpicklingError(f"it is damaged, or no pickle ({type(error).__name__})") from error

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Never imports."""
        return self.known[module, name] if (module, name) in self.known else self.unknown(module, name)

    def unknown(self, module: str, name: str) -> Any:
        """Raises Refused; subclasses may give something inert instead."""
        raise Refused(f"it asks for {module}.{name}, and only arrays are read from a pickle")

    def persistent_load(self, key: Any) -> Any:
        raise Refused(f"it asks for the object {str(key)[:40]!r} from outside")
