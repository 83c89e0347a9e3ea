"""`fastface orbit` as a user meets it, with random planes and a small generator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastface.apps.cli import main
from fastface.media import read_image
from fastface.models.pir import (
    FittedHead,
    GeneratorConfig,
    Rendering,
    SynthesisConfig,
    TriplaneGenerator,
    camera_vector,
    diagonal_fov,
    head_cameras,
    load_generator,
    orbit,
)
from fastface.ops.triplane import PlaneDecoder
from tests.models.eg3d_names import eg3d_state


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    decoder = PlaneDecoder(torch.randn(6, 4), torch.randn(6), torch.randn(4, 6), torch.randn(4))
    rendering = Rendering(near=2.35, far=3.05, coarse=8, fine=4, box=0.75, white_back=True)
    path = tmp_path_factory.mktemp("orbit") / "head.safetensors"
    FittedHead(torch.randn(1, 3, 4, 8, 8), decoder, rendering).save(path)
    return path


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    synthesis = SynthesisConfig(outputs=96, size=32, style=64, base=512)
    config = GeneratorConfig(latent=64, condition=25, synthesis=synthesis, image=128, image_channels=(16, 8))
    path = tmp_path_factory.mktemp("orbit") / "small.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in eg3d_state(TriplaneGenerator(config)).items()}, path)
    return path


def frames(folder: Path) -> list[np.ndarray]:
    return [read_image(path, min_side=1) for path in sorted(folder.glob("*.png"))]


def bytes_of(picture: torch.Tensor) -> np.ndarray:
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()


def test_a_full_turn(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seconds", "0.5", "--fps", "8", "--size", "20", "--pitch", "10"]
    sheet = tmp_path / "sheet.png"
    told = ["orbit", "--weights", str(head), "-o", str(tmp_path / "turn"), *arguments, "--contact-sheet", str(sheet)]
    assert main([*told, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == 4 and set(summary["milliseconds"]) == {"frame"} and sheet.exists()
    assert summary["backend"] in ("reference", "cpu", "triton", "cuda")
    fitted, turn = FittedHead.load(head), frames(tmp_path / "turn")
    for index, frame in enumerate(turn):
        assert np.array_equal(frame, bytes_of(fitted.render(head_cameras(90.0 * index, 10.0), 20)[0]))


def test_there_and_back(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["-o", str(tmp_path / "swing"), "--seconds", "1", "--fps", "4", "--size", "16", "--backend", "reference"]
    assert main(["orbit", "--weights", str(head), "--yaw", "-30", "50", *out]) == 0
    assert "by backend reference" in capsys.readouterr().out
    fitted = FittedHead.load(head)
    for frame, yaw in zip(frames(tmp_path / "swing"), (-30, 10, 50, 10), strict=True):
        wanted = bytes_of(fitted.render(head_cameras(float(yaw)), 16, backend="reference")[0])
        assert np.abs(frame.astype(int) - wanted).max() <= 1


def test_a_generator(generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first frame is the generator's own picture of that latent from 35 degrees to the right."""
    out = ["-o", str(tmp_path / "eg3d"), "--seconds", "0.5", "--fps", "4", "--seed", "7", "--truncation", "0.5"]
    assert main(["orbit", "--weights", str(generator), *out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 2
    network = load_generator(generator).eval()
    latent = torch.randn(1, 64, generator=torch.Generator().manual_seed(7))
    condition = camera_vector(orbit(0.0), diagonal_fov())
    with torch.inference_mode():
        wanted = network(latent, orbit(-35.0), diagonal_fov(), condition, truncation=0.5)[0]
    first = frames(tmp_path / "eg3d")[0]
    assert first.shape == (128, 128, 3)
    assert np.abs(first.astype(int) - bytes_of(((wanted + 1) / 2).clamp(0, 1))).max() <= 1


def test_mistakes_are_told_in_one_line(
    head: Path, generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "network.pkl").write_bytes(b"")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    broken = FittedHead.load(head)
    broken.planes[0, 0, 0, 0, 0] = float("nan")
    broken.save(tmp_path / "nan.safetensors")
    for arguments, wanted in (
        (["--weights", tmp_path / "nan.safetensors"], "planes and decoder of a fitted head must be finite"),
        ([], "`fastface fit-triplane` makes one without any download, `fastface convert`"),
        (["--weights", tmp_path / "none.safetensors"], "no such file"),
        (["--weights", tmp_path / "network.pkl"], "fastface convert"),
        (["--weights", tmp_path / "other.safetensors"], "eg3d"),
        (["--weights", head, "--seed", 1], "--seed is for EG3D's weights"),
        (["--weights", generator, "--size", 64], "makes 128x128"),
        (["--weights", head, "--seconds", 0], "--seconds must be above 0"),
        (["--weights", head, "--pitch", 90], "--pitch must be from -80 to 80"),
        (["--weights", head, "-o", "out.txt"], "the extension must be one of"),
    ):
        assert main(["orbit", *map(str, arguments)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("fastface orbit: ") and wanted in told and len(told.splitlines()) == 1
