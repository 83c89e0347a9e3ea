"""`fastface convert` of pickles: told apart by what they hold, and never run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")

from fastface.apps.cli import main  # noqa: E402  # after the skip
from fastface.models.live_portrait import load_template  # noqa: E402
from fastface.models.pir import GeneratorConfig, SynthesisConfig, TriplaneGenerator, load_generator  # noqa: E402
from tests.models.eg3d_names import eg3d_state  # noqa: E402
from tests.models.test_pir_pickles import OPTIONS, Code, generator_module, persistence  # noqa: E402, F401  # a fixture


def converted(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["convert", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["convert", *map(str, arguments)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


@pytest.mark.parametrize("protocol", [2, 4])
def test_eg3d(protocol: int, persistence, tmp_path: Path, capsys) -> None:  # noqa: F811  # the fixture
    torch.manual_seed(0)
    synthesis = SynthesisConfig(outputs=12, size=8, style=16, base=64, most=8)
    small = TriplaneGenerator(GeneratorConfig(16, 25, 2, synthesis, 4, 8, 32, (8, 4))).eval()
    mark = tmp_path / "ran"
    source = f"open({str(mark)!r}, 'w')"
    module = generator_module(eg3d_state(small), persistence)
    network = persistence("Generator", module, source=source, rendering_kwargs=OPTIONS)
    payload = pickle.dumps({"G": None, "G_ema": network, "trap": Code(f"touch {mark}")}, protocol)
    (tmp_path / "in.pkl").write_bytes(payload)

    out = tmp_path / "new" / "out.safetensors"
    told = converted(capsys, tmp_path / "in.pkl", out)
    assert "network G_ema" in told and "24 + 16 samples" in told and "images 32x32" in told
    loaded = load_generator(out)
    assert loaded.config.rendering.coarse == 24
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in loaded.state_dict().items())
    summary = json.loads(converted(capsys, tmp_path / "in.pkl", out, "--json"))
    assert summary["parts"][0]["layout"] == "eg3d.ffhq512" and summary["parts"][0]["config"]["image"] == 32
    assert not mark.exists()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_network_of_another_structure_is_not_written(persistence, tmp_path: Path, capsys) -> None:  # noqa: F811
    network = persistence("Linear", torch.nn.Linear(3, 2), rendering_kwargs=OPTIONS)
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"G_ema": network}))
    told = refused(capsys, tmp_path / "in.pkl", tmp_path / "out.safetensors")
    assert f"network G_ema of {tmp_path / 'in.pkl'} has no entry of layout eg3d.ffhq512" in told
    assert [path.name for path in tmp_path.iterdir()] == ["in.pkl"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_never_runs(protocol: int, tmp_path: Path, capsys) -> None:
    mark = tmp_path / "ran"
    payload = pickle.dumps({"motion": [Code(f"touch {mark}")]}, protocol)
    (tmp_path / "in.pkl").write_bytes(payload)
    told = refused(capsys, tmp_path / "in.pkl", tmp_path / "out.safetensors")
    assert "expected a motion template or a pickle of EG3D" in told and "system" in told
    assert [path.name for path in tmp_path.iterdir()] == ["in.pkl"]
    pickle.loads(payload)
    assert mark.exists(), "the trap works: a plain unpickle runs it"


def test_a_template_is_still_one(tmp_path: Path, capsys) -> None:
    frame = {
        "scale": np.ones((1, 1), np.float32), "R": np.eye(3, dtype=np.float32)[None],
        "exp": np.zeros((1, 21, 3), np.float32), "t": np.zeros((1, 3), np.float32),
    }  # fmt: skip
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"motion": [frame] * 3, "output_fps": 30}))
    assert "3 frames at 30 fps" in converted(capsys, tmp_path / "in.pkl", tmp_path / "out.safetensors")
    assert len(load_template(tmp_path / "out.safetensors")) == 3


def test_what_is_neither(tmp_path: Path, capsys) -> None:
    (tmp_path / "text.pkl").write_text("hello")
    for name, message in (("text.pkl", "expected a motion template or a pickle of EG3D"), ("none.pkl", "no such")):
        assert message in refused(capsys, tmp_path / name, tmp_path / "out.safetensors")
