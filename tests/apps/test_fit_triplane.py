"""`fastface fit-triplane` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastface.apps.cli import main
from fastface.media import read_image, write_image
from fastface.models import pir

SMALL = ["--size", "24", "--views", "8", "--held-out", "3"]


def test_a_head_without_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "head.safetensors"
    assert main(["fit-triplane", "-o", str(output), "--steps", "100", *SMALL, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["psnr_db"] > 17 and (told["views"], told["held_out_views"]) == (8, 3) and told["seconds"] < 60
    assert sorted(each.name for each in output.parent.iterdir()) == ["head.safetensors", "head_sheet.png"]
    head = pir.FittedHead.load(output)
    sheet = read_image(told["contact_sheet"])
    assert sheet.shape == (2 * 24 + 4, 3 * 24 + 2 * 4, 3)
    drawn = head.render(pir.head_cameras(5.0), 24)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(sheet[28:, :24] - drawn).max() < 1, "the fit is below"
    truth = sheet[:24, :24].astype(float)
    assert 10 * np.log10(255**2 / ((truth - drawn) ** 2).mean()) > 16, "the truth above"


def test_a_mesh_in_its_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    lines = [f"v {x} {y} {z} 1 0 0" for x, y, z in corners]
    quads = ("1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4")
    (tmp_path / "cube.obj").write_text("\n".join(lines + [f"f {quad}" for quad in quads]))
    output = tmp_path / "cube.safetensors"
    assert main(["fit-triplane", str(tmp_path / "cube.obj"), "-o", str(output), "--steps", "100", *SMALL]) == 0
    assert "held-out PSNR: " in capsys.readouterr().out
    red, green, blue = pir.FittedHead.load(output).render(pir.head_cameras(20.0), 25)[0, :, 12, 12].tolist()
    assert red > 0.8 and green < 0.3 and blue < 0.3


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "grey.png", np.full((64, 64, 3), 128, dtype=np.uint8))
    (tmp_path / "points.obj").write_text("v 0 0 0")
    for arguments, wanted in (
        (["--steps", "0"], "--steps must be from 1"),
        (["--seconds", "0"], "--seconds must be from 0.1"),
        (["--size", "8"], "--size must be from 16"),
        (["-o", "head.pt"], "must end in .safetensors"),
        ([str(tmp_path / "none.png")], "no such image"),
        ([str(tmp_path / "none.obj")], "no such mesh"),
        ([str(tmp_path / "points.obj")], "must have triangles"),
        ([str(tmp_path / "grey.png"), "--contact-sheet", str(tmp_path / "grey.png")], "would overwrite the input"),
    ):
        assert main(["fit-triplane", *arguments]) == 2
        told = capsys.readouterr().err
        assert told.startswith("fastface fit-triplane: ") and wanted in told and len(told.splitlines()) == 1


def test_a_photo_without_a_face_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
    write_image(tmp_path / "grey.png", np.full((64, 64, 3), 128, dtype=np.uint8))
    assert main(["fit-triplane", str(tmp_path / "grey.png")]) == 2
    assert "no face found in the portrait, expected one: " in capsys.readouterr().err


def test_interrupted_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pir, "fit_head", stop)
    assert main(["fit-triplane", "-o", str(tmp_path / "head.safetensors"), *SMALL]) == 130
    assert list(tmp_path.iterdir()) == []
