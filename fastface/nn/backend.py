"""The backend of all ops in a model."""

from __future__ import annotations

from torch import nn

__all__ = ["set_backend"]


def set_backend(module: nn.Module, backend: str | None) -> None:
    """Give every part that runs an op of `fastface.ops` its backend, in place; None leaves them as they are."""
    for part in module.modules():
        if backend is not None and hasattr(part, "backend"):
            setattr(part, "backend", backend)  # noqa: B010, the type checker knows no attribute of a Module
