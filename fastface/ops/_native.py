"""Loads the two native extension modules, each when an op first needs it, and remembers why where it cannot.

The modules are free of torch symbols: a call hands them pointers, sizes, strides, device and stream as integers.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["DTYPES", "build_stamp", "load", "pointer", "reason_missing", "view"]

_MODULES = {"cpu": "fastface._cpu", "cuda": "fastface._cuda"}
# The numbers of csrc/tensor.h.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@functools.cache
def _try_load(name: str) -> ModuleType | str:
    """The extension module `cpu` or `cuda`, or the reason why it cannot be loaded."""
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        skipped = build_stamp().get(name, {}).get("skipped")
        if isinstance(error, ModuleNotFoundError) and error.name == _MODULES[name]:
            return f"the {name} extension was not built" + (f": {skipped}" if skipped else "")
        return f"the {name} extension does not load: {error}"


def load(name: str) -> ModuleType:
    """The extension module `cpu` or `cuda`; raises ImportError with the cached reason where it cannot be had."""
    module = _try_load(name)
    if isinstance(module, str):
        raise ImportError(module)
    return module


def reason_missing(name: str) -> str | None:
    """Why the extension module `cpu` or `cuda` cannot be used, or None if it can."""
    module = _try_load(name)
    return module if isinstance(module, str) else None


@functools.cache
def build_stamp() -> dict[str, Any]:
    """What the build recorded of itself (git hash, compilers, architectures, flags, skipped parts); empty if it never
    ran.
    """
    path = Path(__file__).resolve().parents[1] / "_build_stamp.json"
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def view(tensor: Tensor | None, rank: int) -> tuple[int, int, tuple[int, ...]]:
    """A tensor as csrc/tensor.h sees it, (pointer, dtype number, strides in elements); None becomes the null view."""
    if tensor is None:
        return 0, 0, (0,) * rank
    return tensor.data_ptr(), DTYPES[tensor.dtype], tensor.stride()


def pointer(tensor: Tensor | None) -> int:
    """The address of a contiguous tensor; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
