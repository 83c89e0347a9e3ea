"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fastface._files import save_safetensors


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX: files have modes there")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_weights_are_readable_as_other_files_are(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_safetensors({"a": torch.ones(2)}, tmp_path / "deep" / "a.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "deep" / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    assert len(list((tmp_path / "deep").iterdir())) == 1
