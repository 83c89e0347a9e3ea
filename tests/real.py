"""Photos and clips of real people, which are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def media_file(name: str) -> Path:
    """A file of the folder FASTFACE_TEST_MEDIA, by default `shared/media` beside the checkout; skips without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "media"
    path = Path(os.environ.get("FASTFACE_TEST_MEDIA", beside)) / name
    if not path.exists():
        pytest.skip(f"needs {name} in the folder that FASTFACE_TEST_MEDIA names")
    return path
