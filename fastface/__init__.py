"""fastface: talking heads in real time, from fused kernels to whole systems.

`fastface.ops` holds the hot paths, `fastface.nn` thin modules over them, `fastface.models` the systems.
Importing this package loads neither Triton nor native code; an op loads what it needs when it first runs.
"""

from __future__ import annotations

import importlib
from typing import Any

from fastface._version import __version__
from fastface.ops import explain

__all__ = [
    "__version__",
    "accelerate",
    "apps",
    "audio",
    "checkpoints",
    "engine",
    "explain",
    "face",
    "load_checkpoint",
    "media",
    "models",
    "nn",
    "ops",
    "restore",
]

_LAZY_MODULES = ("apps", "audio", "checkpoints", "engine", "face", "media", "models", "nn")
_LAZY_FUNCTIONS = {
    "accelerate": "engine.accelerate",
    "load_checkpoint": "checkpoints",
    "restore": "engine.accelerate",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"fastface.{name}")
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(f"fastface.{_LAZY_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'fastface' has no attribute {name!r}")
