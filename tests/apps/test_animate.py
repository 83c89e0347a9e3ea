"""`fastface animate` as a user meets it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")
data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")

from fastface.apps import animate  # noqa: E402  # after the skips
from fastface.media import VideoReader, VideoWriter, read_image, write_image  # noqa: E402
from tests.real import media_file  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    animate.add_arguments(parser)
    return animate.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def portrait(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("portrait") / "astronaut.png"
    write_image(path, data.astronaut())
    return path


@pytest.fixture(scope="module")
def driving(tmp_path_factory) -> Path:
    """A driving video: the model's own nod at 10 fps, after four black frames' worth of nothing in the middle."""
    folder = tmp_path_factory.mktemp("driving")
    assert run("--motion", "shake", "--seconds", 0.8, "--fps", 10, "--size", 256, "-o", folder / "clip.mp4") == 0
    return folder / "clip.mp4"


def frames(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [frame for frame, _ in reader]


def test_a_motion_to_mp4_with_a_summary(tmp_path, portrait, capsys) -> None:
    out, sheet = tmp_path / "a.mp4", tmp_path / "a.png"
    arguments = (
        portrait,
        "--motion",
        "nod",
        "--seconds",
        0.4,
        "--size",
        192,
        "-o",
        out,
        "--contact-sheet",
        sheet,
        "--json",
    )
    assert run(*arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == 10 and summary["output"] == str(out)
    assert set(summary["milliseconds"]) == {"motion", "render", "write"}
    assert len(frames(out)) == 10 and frames(out)[0].shape == (192, 192, 3)
    assert read_image(sheet).shape[1] > 700


def test_the_first_frame_is_the_portrait_and_the_others_move(tmp_path, portrait) -> None:
    assert run(portrait, "--motion", "shake", "--seconds", 0.5, "--fps", 10, "--size", 256, "-o", tmp_path / "out") == 0
    shots = [read_image(path) for path in sorted((tmp_path / "out").iterdir())]
    assert len(shots) == 5
    assert np.abs(shots[3].astype(int) - shots[0]).mean() > 1


def test_full_keeps_the_rest_of_the_photo(tmp_path, portrait) -> None:
    arguments = ("--motion", "shake", "--seconds", 0.3, "--fps", 10, "--full", "-o", tmp_path / "out")
    assert run(portrait, *arguments) == 0
    photo = data.astronaut()
    for path in (tmp_path / "out").iterdir():
        shot = read_image(path)
        assert shot.shape == photo.shape
        same = (shot == photo).all(-1)
        assert same[300:].all() and same[:, 380:].all() and same.mean() > 0.6


def test_gif_and_side_by_side(tmp_path, portrait) -> None:
    out = tmp_path / "a.gif"
    assert run(portrait, "--seconds", 0.2, "--fps", 10, "--size", 128, "--side-by-side", "-o", out) == 0
    assert frames(out)[0].shape == (128, 256, 3)


def test_a_driving_video(tmp_path, portrait, driving, capsys) -> None:
    out = tmp_path / "driven.mp4"
    assert run(portrait, "--driving", driving, "--size", 256, "-o", out, "--side-by-side", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == 8 and "track" in summary["milliseconds"] and summary["missed_frames"] == 0
    driven = frames(out)
    assert driven[0].shape == (256, 512, 3)
    # The left half is the driving video, the right half follows it: the same photo, so nearly the same picture.
    left, right = driven[4][:, :256].astype(int), driven[4][:, 256:].astype(int)
    assert np.abs(left - right).mean() < np.abs(left - driven[0][:, 256:]).mean()


def test_frames_without_a_face_are_reported_and_hold(tmp_path, portrait, driving, capsys) -> None:
    holes = tmp_path / "holes.mp4"
    with VideoWriter(holes, fps=10) as writer:
        for index, frame in enumerate(frames(driving)):
            writer.write(np.zeros_like(frame) if index in (4, 5) else frame)
    assert run(portrait, "--driving", holes, "--size", 128, "-o", tmp_path / "out.mp4") == 0
    assert "no face in" in capsys.readouterr().err


def test_fps_and_seconds_of_a_driving_video(tmp_path, portrait, driving) -> None:
    out = tmp_path / "out.mp4"
    assert run(portrait, "--driving", driving, "--fps", 20, "--seconds", 0.5, "--size", 128, "-o", out) == 0
    assert len(frames(out)) == 10


def test_several_faces_and_the_choice_is_said(tmp_path, capsys) -> None:
    import cv2

    big = data.astronaut()[:360, :450]
    small = cv2.resize(big, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    both = np.full((360, 800, 3), 128, dtype=np.uint8)
    both[: small.shape[0], : small.shape[1]] = small
    both[:, 350:] = big
    write_image(tmp_path / "two.png", both)
    common = ("--seconds", 0.1, "--size", 128, "-o", tmp_path / "out")
    assert run(tmp_path / "two.png", *common) == 0
    error = capsys.readouterr().err
    assert "2 faces found, taking the largest, at x 5" in error or "2 faces found, taking the largest, at x 4" in error
    assert run(tmp_path / "two.png", *common, "--face", 2) == 0
    assert "taking number 2" in capsys.readouterr().err
    assert run(tmp_path / "two.png", *common, "--face", 3) == 2
    assert "--face must be from 1 to 2" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("bad")
    Image.new("RGB", (300, 200), (90, 90, 90)).save(folder / "noface.png")
    Image.new("RGB", (16, 16)).save(folder / "tiny.png")
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video" * 200)
    with VideoWriter(folder / "black.mp4", fps=10) as writer:
        for _ in range(4):
            writer.write(np.zeros((120, 160, 3), dtype=np.uint8))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bad}/noface.png"], "no face found in"),
        (["{bad}/tiny.png"], "at least 32x32 pixels, got 16x16"),
        (["{bad}/text.jpg"], "cannot read an image"),
        (["{bad}"], "expected an image file, got the directory"),
        (["{bad}/absent.png"], "no such image"),
        (["{portrait}", "-o", "{out}/a.avi"], "extension must be one of"),
        (["{portrait}", "-o", "{out}"], "must be new or hold nothing else"),
        (["{portrait}", "--driving", "{bad}/empty.mp4"], "empty file"),
        (["{portrait}", "--driving", "{bad}/text.mp4"], "cannot read a video"),
        (["{portrait}", "--driving", "{bad}"], "expected a video file, got the directory"),
        (["{portrait}", "--driving", "{bad}/absent.mp4"], "no such video"),
        (["{portrait}", "--driving", "{bad}/black.mp4"], "no face found in any of the 4 frames"),
        (["{portrait}", "--driving", "{portrait}"], "must have at least 2 frames, got 1"),
        (["{portrait}", "--seconds", "0"], "--seconds must be above 0"),
        (["{portrait}", "--fps", "1000"], "--fps must be from 1 to 240, got 1000"),
        (["{portrait}", "--size", "10"], "--size must be from 64 to 2048, got 10"),
        (["{portrait}", "--face", "0"], "--face counts from 1"),
        (["{portrait}", "--pose-strength", "9"], "--pose-strength must be from 0 to 3"),
        (["{portrait}", "--backend", "cuda"], "backend 'cuda' cannot run this call"),
        (["{portrait}", "--contact-sheet", "{out}/a.tiff"], "image's extension must be .png, .jpg or .jpeg"),
        (["{portrait}", "--contact-sheet", "{out}"], "image's extension"),
        (["{portrait}", "--contact-sheet", "{out}/kept.txt/a.png"], "expected a folder, got the file"),
        (["{portrait}", "--contact-sheet", "{out}/new/a.png", "-o", "{out}/new"], "would overwrite one another"),
        (["{portrait}", "--model", "live_portrait"], "needs --weights DIR"),
        (["{portrait}", "--model", "live_portrait", "--weights", "{bad}"], "appearance_feature_extractor"),
        (["{portrait}", "--model", "live_portrait", "--untrained", "--size", "256"], "--size is for --model lifted"),
        (["{portrait}", "--model", "style_mapping"], "needs --weights FILE"),
        (["{portrait}", "--model", "style_mapping", "--weights", "a.pth", "--untrained"], "exclude one another"),
        (["{portrait}", "--model", "style_mapping", "--untrained", "--region", "lip"], "is for --model live_portrait"),
        (["{portrait}", "--weights", "{bad}"], "--weights is for --model live_portrait or style_mapping"),
        (["{portrait}", "--driving", "{bad}/clip.safetensors"], "a motion template is for --model live_portrait"),
        (
            ["{portrait}", "--model", "live_portrait", "--untrained", "--driving", "a.pkl", "--smoothing", "2"],
            "--smoothing is for a driving video",
        ),
        (
            ["{portrait}", "--model", "live_portrait", "--untrained", "--absolute", "--pose-strength", "2"],
            "scale relative motions",
        ),
        (["{portrait}", "--driving", "{bad}/clip.pkl"], "a motion template is for --model live_portrait"),
    ],
)
def test_bad_input_is_one_line_and_no_file(tmp_path, portrait, bad, capsys, arguments, message) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    places = {"bad": bad, "portrait": portrait, "out": tmp_path}
    given = [argument.format(**places) for argument in arguments]
    if "-o" not in given:
        given += ["-o", str(tmp_path / "out.mp4")]
    assert run(*given) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("fastface animate: ") and message in lines[0], captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_the_input_is_never_overwritten(tmp_path, driving, portrait, capsys) -> None:
    clip, photo, link = tmp_path / "clip.mp4", tmp_path / "photo.png", tmp_path / "link.png"
    clip.write_bytes(driving.read_bytes())
    photo.write_bytes(portrait.read_bytes())
    link.symlink_to(photo)
    out = tmp_path / "out.mp4"
    assert run(portrait, "--seconds", 0.1, "--size", 64, "-o", tmp_path / "frames") == 0
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    frame = tmp_path / "frames" / "frame_00000.png"
    capsys.readouterr()
    for arguments in (
        (photo, "--driving", clip, "-o", clip),
        (photo, "--contact-sheet", photo, "-o", out),
        (photo, "--contact-sheet", link, "-o", out),
        (photo, "--driving", clip, "-o", tmp_path / "sub" / ".." / "clip.mp4"),
        (frame, "-o", tmp_path / "frames"),
    ):
        assert run(*arguments) == 2, arguments
        assert "would overwrite the input" in capsys.readouterr().err, arguments
    assert kept == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_termination_leaves_nothing_behind(tmp_path, portrait) -> None:
    command = [sys.executable, "-m", "fastface", "animate", portrait, "--seconds", "600", "-o", tmp_path / "out.mp4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.iterdir()), "the video was never begun"
    process.terminate()
    assert "interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 130 and not list(tmp_path.iterdir())


def test_as_a_command_without_a_portrait(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastface", "animate", "--seconds", "0.2", "--size", "128", "-o", "demo/a.mp4"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "video: demo/a.mp4" in done.stdout and "contact sheet: demo/a_sheet.png" in done.stdout
    assert "fps" in done.stdout and "ms per frame (median): motion" in done.stdout
    assert "INFO" not in done.stderr and "W0000" not in done.stderr  # MediaPipe's own chatter stays away
    assert (tmp_path / "demo" / "a.mp4").exists() and (tmp_path / "demo" / "a_sheet.png").exists()


def test_a_real_driving_video_keeps_its_sound(tmp_path, portrait, capsys) -> None:
    import av

    clip = media_file("driving_a.mp4")

    out = tmp_path / "out.mp4"
    assert run(portrait, "--driving", clip, "--seconds", 1, "--size", 256, "-o", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["missed_frames"] == 0
    with av.open(str(out)) as container:
        assert container.streams.audio and container.streams.video[0].frames == 30


def test_a_model_with_weights_in_the_place_of_lifted(tmp_path, portrait, capsys, monkeypatch) -> None:
    """LivePortrait, thin and untrained: a preset, then a motion template, pasted into the whole photo."""
    from fastface.apps import _live_portrait
    from fastface.models.live_portrait import LivePortrait, LivePortraitMotion, MotionTemplate, save_template

    monkeypatch.setattr(_live_portrait, "open_model", lambda args: LivePortrait.from_random(width=1 / 32))
    motions = LivePortraitMotion.cat([LivePortraitMotion.of(yaw=float(3 * i)) for i in range(4)])
    save_template(MotionTemplate(replace(motions, relative=False), 10.0), tmp_path / "clip.safetensors")
    given = [portrait, "--model", "live_portrait", "--untrained", "--full", "--json"]
    for rest, frames in (
        (["--motion", "talk", "--seconds", "0.08", "-o", tmp_path / "a.mp4"], 2),
        (["--driving", tmp_path / "clip.safetensors", "-o", tmp_path / "b.mp4"], 4),
    ):
        assert run(*given, *rest) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary["frames"] == frames
        with VideoReader(summary["output"]) as reader:
            image, _ = next(iter(reader))
        assert image.shape == data.astronaut().shape  # the whole photo
