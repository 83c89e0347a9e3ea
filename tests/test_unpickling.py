"""Hostile pickles: refused in one line by every command that reads one, whatever they try to reach."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastface._unpickling import ArrayUnpickler, Refused

EG3D = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n0"  # told by this name
ENTRIES = {"eg3d": ("convert", EG3D), "template": ("convert", b""), "face model": ("fit-triplane", b"")}


def text(value: str) -> bytes:
    return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value.encode()


def integer(value: int) -> bytes:
    return b"I%d\n" % value


def dtype(name: str) -> bytes:
    return b"cnumpy\ndtype\n(" + text(name) + b"tR"


def reconstructed(shape: bytes, kind: bytes, data: bytes) -> bytes:
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + integer(0) + b"t" + b"C\x01btR"
    return empty + b"(" + integer(1) + shape + kind + b"\x89" + data + b"tb"


def from_buffer(data: bytes, kind: bytes, shape: bytes) -> bytes:
    return b"cnumpy.core.numeric\n_frombuffer\n(" + data + kind + shape + text("C") + b"tR"


POINTERS = b"C\x08AAAAAAAA"
ONE = b"(" + integer(1) + b"t"
STATE = text("|") + b"N(" + text("a") + b"t}" + integer(8) + integer(1) + integer(0)
FORGED = dtype("i8") + b"(" + integer(3) + STATE + b"tb"  # with fields
HOSTILE = {
    "pointers in a set": b"cbuiltins\nset\n(cnumpy\nndarray\n(" + ONE + dtype("O") + POINTERS + b"tRtR",
    "pointers as state": reconstructed(ONE, dtype("O"), POINTERS),
    "pointers by a buffer": from_buffer(POINTERS, dtype("O"), ONE),
    "a dtype with forged fields": reconstructed(ONE, FORGED, POINTERS),
    "a scalar of a pointer": b"cnumpy.core.multiarray\nscalar\n(" + dtype("O") + POINTERS + b"tR",
    "terabytes of an array": reconstructed(b"(" + integer(1 << 45) + b"t", dtype("f8"), POINTERS),
    "terabytes of bytes": from_buffer(b"\x96" + (1 << 36).to_bytes(8, "little"), dtype("u1"), ONE),
    "terabytes of notes": b"N" + pickle.LONG_BINPUT + (0xFFFFFFF0).to_bytes(4, "little"),
    "a negative shape": reconstructed(b"(" + integer(-1) + b"t", dtype("f8"), POINTERS),
    "an array's memory": from_buffer(reconstructed(ONE, dtype("f8"), POINTERS), dtype("f8"), ONE),
    "a key too deep to hash": b"}" + b")" + b"\x85" * 1_000_000 + b"Ns",
    "a set too deep to hash": b"\x8f(" + b")" + b"\x85" * 1_000_000 + b"\x90",
    "a changed function": b"cnumpy.core.multiarray\n_reconstruct\nN}" + text("__defaults__") + b")s\x86b",
    "a changed class": b"cnumpy\nndarray\n}" + text("__setstate__") + b"Nsb",
    "a thing outside": text("elsewhere") + b"Q",
}
OF_TORCH = {
    "changed torch": b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__defaults__") + b")s\x86b",
    "a changed record": b"cdnnlib.util\nEasyDict\nN}" + text("items") + b"Ns\x86b",
}
RUN = """
import resource, sys, torch
from fastface.apps.cli import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    print(path, flush=True)
    assert main([sys.argv[1], path, *(["out.safetensors"] if sys.argv[1] == "convert" else [])]) == 2
assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000, "kilobytes"
"""


@pytest.mark.parametrize("entry", ENTRIES)
def test_hostile_pickles_are_refused(entry: str, tmp_path: Path) -> None:
    """In a process of their own, which must not die by a signal."""
    command, start = ENTRIES[entry]
    payloads = {**HOSTILE, **(OF_TORCH if entry == "eg3d" else {})}
    for name, payload in payloads.items():
        (tmp_path / f"{name}.pkl").write_bytes(b"\x80\x05" + start + payload + b".")
    paths = [f"{name}.pkl" for name in payloads]
    done = subprocess.run(
        [sys.executable, "-c", RUN, command, *paths], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{done.stdout[-200:]}{done.stderr[-2000:]}"
    told = done.stderr.splitlines()
    assert len(told) == len(paths)
    assert all(
        path in line and line.startswith(f"fastface {command}: ") for path, line in zip(paths, told, strict=True)
    )
    assert {path.name for path in tmp_path.iterdir()} == set(paths), "nothing is written"


def read(data: bytes) -> Any:
    return ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x04h\x07.", b"\x80\x09.", b"\x80\x05\x8e" + b"\xff" * 8 + b"."])
def test_a_file_that_is_no_pickle_is_told_so(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(pickle.UnpicklingError, match="it is damaged, or no pickle"):
        ArrayUnpickler.load_file(tmp_path / "a.pkl")


@settings(max_examples=60, deadline=None)
@given(
    array=arrays.arrays(
        st.sampled_from(["?", "i1", "<u2", ">i4", "<i8", "<f2", ">f4", "<f8", "<c8", "<c16"]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    protocol=st.integers(0, 5),
    order=st.sampled_from("CF"),
)
def test_arrays_come_back(array: np.ndarray, protocol: int, order: str) -> None:
    array = np.asarray(array, order=order)
    found, again = read(pickle.dumps([array, array], protocol))
    assert found is again and found.flags.writeable
    assert found.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(protocol: int) -> None:
    from collections import OrderedDict

    value = {"a": [1, 2.5, None, True], "b": OrderedDict(x=b"\x00\xff", y=(1, ())), "c": {1, "two"}, "d": 1 << 80}
    assert read(pickle.dumps(value, protocol)) == value
    assert read(pickle.dumps([np.float32(1.5), np.int64(-3), np.bool_(True)], protocol)) == [1.5, -3, True]


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([None]), np.zeros(2, [("a", "f4")]), np.array([b"a"]), np.load]
)
def test_what_is_no_array_of_numbers_is_refused(value: object) -> None:
    with pytest.raises(Refused, match="must be of numbers|only arrays are read"):
        read(pickle.dumps(value))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_pickles_only_raise(data: st.DataObject) -> None:
    whole = bytearray(pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": [np.float32(1), {1, 2}]}, 2))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(whole))
    except Exception as error:
        assert not isinstance(error, (MemoryError, RecursionError))
