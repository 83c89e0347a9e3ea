"""The Python that the README and the docs show runs as it stands."""

from __future__ import annotations

import re
import wave
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("kernels/*/README.md"))]
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_code_in_the_docs_runs(block: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in set(re.findall(r'"(\w+\.jpg)"', block)):
        pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
        data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")
        from fastface.media import write_image

        write_image(tmp_path / name, data.astronaut())
    for name in set(re.findall(r'"(\w+\.mp4)"', block)):
        pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")
        with wave.open(str(tmp_path / name), "wb") as sound:  # what is in a file is read from its content
            sound.setparams((1, 2, 16_000, 0, "NONE", ""))
            sound.writeframes(np.random.default_rng(0).integers(-9000, 9000, 32_000, dtype=np.int16).tobytes())
    exec(compile(block, "docs", "exec"), {})
