"""`fastface fit-triplane` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastface.apps.cli import main
from fastface.face import built_in_head
from fastface.media import read_image, write_image
from fastface.models import pir
from tests.models.test_pir_fitting import silhouette_psnr

SMALL = ["--size", "24", "--views", "8", "--held-out", "3"]


def test_a_head_without_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "head.safetensors"
    assert main(["fit-triplane", "-o", str(output), "--steps", "40", *SMALL, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["views"], told["held_out_views"]) == (8, 3) and told["seconds"] < 60
    assert sorted(each.name for each in output.parent.iterdir()) == ["head.safetensors", "head_sheet.png"]
    head, model = pir.FittedHead.load(output), built_in_head()
    mesh = pir.shaded_mesh(model.mean, model.triangles.long()).placed()
    views = pir.draw_views(mesh, pir.held_out_cameras(3, pir.training_cameras(8)), 24)
    assert abs(told["psnr_db"] - head.psnr(views)) < 0.02
    assert abs(told["covered_psnr_db"] - head.psnr(views, covered=True)) < 0.02
    sheet = read_image(told["contact_sheet"])
    assert sheet.shape == (2 * 24 + 4, 3 * 24 + 2 * 4, 3)
    fitted = head.render(views.cam2world[:1], 24)
    for place, picture in ((slice(24), views.pictures[0, :3]), (slice(28, None), fitted[0])):
        shown = picture.permute(1, 2, 0).numpy() * 255
        assert np.abs(sheet[place, :24] - shown).max() < 1, "the truth is above, the fit below"


def test_a_mesh_in_its_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    lines = [f"v {x} {y} {z} {(1 - x) / 2} 0 {(1 + x) / 2}" for x, y, z in corners]
    quads = ("1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4")
    (tmp_path / "cube.obj").write_text("\n".join(lines + [f"f {quad}" for quad in quads]))
    output = tmp_path / "cube.safetensors"
    assert main(["fit-triplane", str(tmp_path / "cube.obj"), "-o", str(output), "--steps", "160", *SMALL]) == 0
    told = capsys.readouterr().out
    assert "held-out PSNR: " in told and "dB of the covered pixels alone" in told
    cameras = pir.held_out_cameras(3, pir.training_cameras(8))
    views = pir.draw_views(pir.read_mesh(tmp_path / "cube.obj").placed(), cameras, 24)
    assert pir.FittedHead.load(output).psnr(views) > silhouette_psnr(views) + 2


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "grey.png", np.full((64, 64, 3), 128, dtype=np.uint8))
    (tmp_path / "points.obj").write_text("v 0 0 0")
    for arguments, wanted in (
        (["--steps", "0"], "--steps must be from 1"),
        (["--seconds", "0"], "--seconds must be from 0.1"),
        (["--size", "8"], "--size must be from 16"),
        (["-o", "head.pt"], "must end in .safetensors"),
        ([str(tmp_path)], "it has no vertex_indices.json"),
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
