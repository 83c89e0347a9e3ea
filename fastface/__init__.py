"""fastface: talking heads in real time, from fused kernels to whole systems.

`fastface.ops` holds the hot paths, `fastface.nn` thin modules over them, `fastface.models` the systems.
Importing this package loads neither Triton nor native code; an op loads what it needs when it first runs.
"""

from __future__ import annotations

import importlib
from typing import Any

from fastface._version import __version__
from fastface.ops import explain

__all__ = ["__version__", "apps", "explain", "face", "media", "models", "nn", "ops"]

_LAZY_MODULES = ("apps", "face", "media", "models", "nn")


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"fastface.{name}")
    raise AttributeError(f"module 'fastface' has no attribute {name!r}")
