"""Shared by all tests: outputs are poisoned with NaN before a launch, so that an element nobody wrote shows."""

from __future__ import annotations

import pytest
import torch

from fastface.ops import _memory


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = _memory.empty

    def poisoned(*args, **kwargs):
        out = allocate(*args, **kwargs)
        if type(out) is not torch.Tensor or out.device.type == "meta":
            return out  # a fake tensor has no memory to poison
        return out.fill_(float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).min)

    monkeypatch.setattr(_memory, "empty", poisoned)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none here")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
