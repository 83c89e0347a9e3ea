"""Shared by all tests: outputs are poisoned with NaN before a launch, so that an element nobody wrote shows."""

from __future__ import annotations

import pytest
import torch

from fastface.ops import warp


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_new_volume", "_new_field"):
        allocate = getattr(warp, name)

        def poisoned(*args, _allocate=allocate):
            out = _allocate(*args)
            # A fake tensor has no memory to poison.
            return out.fill_(float("nan")) if type(out) is torch.Tensor and out.device.type != "meta" else out

        monkeypatch.setattr(warp, name, poisoned)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none here")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
