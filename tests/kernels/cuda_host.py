"""What the tests of CUDA kernels share where there is no GPU: the kernels' source as a library for the CPU, and what
the compiler says of them.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def view_type(rank: int) -> type[ctypes.Structure]:
    """`View<rank>` of csrc/tensor.h."""
    fields = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("stride", ctypes.c_int64 * rank)]
    return type(f"View{rank}", (ctypes.Structure,), {"_fields_": fields})


def view(value: tuple[int, int, tuple[int, ...]]) -> ctypes.Structure:
    """What `_native.view` gives, as a `View`."""
    data, dtype, stride = value
    return view_type(len(stride))(data, dtype, (ctypes.c_int64 * len(stride))(*stride))


def library(slug: str, folder: Path) -> Any:
    """The library built of <slug>_cuda_host.cpp."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    target = folder / f"{slug}_cuda_host.so"
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
    includes = [f"-I{ROOT / folder}" for folder in ("csrc", f"kernels/{slug}", "tests/kernels")]
    source = ROOT / "tests" / "kernels" / f"{slug}_cuda_host.cpp"
    subprocess.run([compiler, *flags, *includes, source, "-o", target], check=True)
    return ctypes.CDLL(str(target))


def compiled_kernels(slug: str, folder: Path) -> dict[str, tuple[int, int]]:
    """{kernel: (bytes of stack and spills, registers)} of <slug>_cuda.cu on one architecture, the H200's; the whole
    list is built by the package.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    flags = ["-std=c++17", "-O3", "-arch=sm_90", "-Xptxas", "-v", '-DFASTFACE_CUDA_ARCHITECTURES="90"']
    includes = [f"-I{ROOT / folder}" for folder in ("csrc", f"kernels/{slug}")]
    source = ROOT / "kernels" / slug / f"{slug}_cuda.cu"
    command = [nvcc, *flags, *includes, "-Werror", "all-warnings", "-c", source, "-o", folder / f"{slug}.o"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_90'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    return {name: (sum(map(int, lost)), int(registers)) for name, *lost, registers in found}
