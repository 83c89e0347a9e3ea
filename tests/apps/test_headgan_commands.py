"""`fastface reenact | reconstruct | edit | frontalize | encode | decode` as a user meets them."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")
data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")

from fastface.apps.cli import main  # noqa: E402  # after the skips
from fastface.face import FaceTracker, MediaPipeLandmarks, built_in_head, save_face_model  # noqa: E402
from fastface.media import VideoReader, read_image, write_image  # noqa: E402
from tests.real import media_file  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("headgan")


@pytest.fixture(scope="module")
def portrait(folder) -> Path:
    write_image(folder / "astronaut.png", data.astronaut())
    return folder / "astronaut.png"


@pytest.fixture(scope="module")
def clip(folder) -> Path:
    """Six frames of the astronaut shaking her head."""
    arguments = ["--motion", "shake", "--seconds", "0.6", "--fps", "10", "--size", "256"]
    assert main(["animate", *arguments, "-o", str(folder / "clip.mp4")]) == 0
    return folder / "clip.mp4"


@pytest.fixture(scope="module")
def weights(folder) -> Path:
    """A small generator with random weights, in a public layout."""
    from safetensors.torch import save_file

    from fastface.models.headgan import Generator, GeneratorConfig
    from tests.goldens import seeded_state_dict

    small = Generator(GeneratorConfig(channels=(4, 16, 64), hidden=8)).state_dict()
    names = seeded_state_dict("headgan.generator")
    from fastface.checkpoints import fold_spectral_norm
    from fastface.checkpoints.loading import find

    layout = find("headgan.generator")
    torch.manual_seed(0)
    state = {}
    for name in fold_spectral_norm(names):
        shape = small[layout.rename(name)].shape
        state[name] = torch.randn(shape) * (0.5 / max(1, shape[1:].numel()) ** 0.5)
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def summary(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments] + ["--json"]) == 0
    return json.loads(capsys.readouterr().out)


def frames(path: str | Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [frame for frame, _ in reader]


@pytest.mark.parametrize("trained", [False, True])
def test_reenact(tmp_path, portrait, clip, weights, capsys, trained) -> None:
    extra = ["--checkpoint", weights] if trained else []
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    told = summary(capsys, "reenact", portrait, "--driving", clip, "--size", 128, "-o", out,
                   "--side-by-side", "--contact-sheet", sheet, *extra)  # fmt: skip
    assert told["renderer"] == ("headgan" if trained else "lifted") and told["relative"] is not trained
    assert (
        told["frames"] == 6 and told["missed_frames"] == 0 and set(told["milliseconds"]) == {"draw", "render", "write"}
    )
    made = frames(out)
    assert len(made) == 6 and made[0].shape == (128, 3 * 128, 3) and read_image(sheet).shape[1] > 500
    assert np.abs(made[3][:, 256:].astype(int) - made[0][:, 256:]).mean() > 0.5, "the frames move"
    if not trained:
        tracker = FaceTracker(landmarks=MediaPipeLandmarks())
        yaw = [[float(tracker(half).camera.angles[0, 0]) for half in (f[:, :128], f[:, 256:])] for f in made]
        assert np.corrcoef(np.array(yaw).T)[0, 1] > 0.95, "the head turns as the driving one does"


def test_reconstruct(tmp_path, clip, capsys) -> None:
    told = summary(capsys, "reconstruct", clip, "--size", 192, "-o", tmp_path / "again.mp4")
    assert told["frames"] == 6 and told["faces_found_again"] == 6
    assert told["psnr_db"] > 20 and told["l1"] < 12 and told["ard_degrees"] < 2
    assert frames(tmp_path / "again.mp4")[0].shape == (192, 3 * 192, 3)


def test_frontalize(tmp_path, clip, capsys) -> None:
    turned = max(frames(clip), key=lambda frame: float(np.abs(frame.astype(int) - frames(clip)[0]).mean()))
    write_image(tmp_path / "turned.png", turned)
    told = summary(capsys, "frontalize", tmp_path / "turned.png", "-o", tmp_path / "front.png", "--side-by-side")
    assert told["are_after_degrees"] < told["are_before_degrees"]
    assert read_image(tmp_path / "front.png").shape == (256, 768, 3)


def test_edit(tmp_path, portrait, capsys) -> None:
    arguments = ["--yaw", -15, 0, 15, "--expression", "jaw_open=0,0.5", "--size", 128]
    told = summary(capsys, "edit", portrait, *arguments, "-o", tmp_path / "grid.png")
    assert told["tiles"] == 6 and read_image(tmp_path / "grid.png").shape[1] == 3 * 128 + 8
    told = summary(capsys, "edit", portrait, "--yaw", "15", "--expression", "0=0.5", "--size", 128, "--show-3d", "-o",
                   tmp_path / "one.jpg")  # fmt: skip
    assert told["tiles"] == 1 and read_image(tmp_path / "one.jpg").shape[1] == 256
    told = summary(capsys, "edit", "--size", 64, "--yaw", -5, 5, portrait, "-o", tmp_path / "two.png")
    assert told["tiles"] == 2, "the portrait may come after the numbers"
    assert main(["edit", "--list"]) == 0
    assert " 0 jaw_open\n" in capsys.readouterr().out


def test_encode_and_decode(tmp_path, portrait, clip, capsys) -> None:
    report = summary(capsys, "encode", clip, "-o", tmp_path / "a.ffs", "--size", 128)
    assert report["frames"] == 6 and report["largest_error"] <= 0.01
    told = summary(capsys, "decode", tmp_path / "a.ffs", "-o", tmp_path / "a.mp4", "--size", 192, "--measure")
    assert told["frames"] == 6 and told["stream"]["decoded"] == 6 and told["broken"] is None
    assert told["ard_degrees"] < 3 and frames(tmp_path / "a.mp4")[0].shape == (192, 192, 3)
    # Another portrait, no portrait in the stream, and packets that get lost.
    assert main(["encode", str(clip), "-o", str(tmp_path / "b.ffs"), "--no-reference", "--live", "--frames-per-packet",
                 "1", "--key-interval", "2"]) == 0  # fmt: skip
    told = summary(capsys, "decode", tmp_path / "b.ffs", "--portrait", portrait, "--loss", 40, "-o", tmp_path / "b.gif",
                   "--size", 96, "--side-by-side")  # fmt: skip
    assert (
        told["stream"]["lost"] > 0 and told["stream"]["resyncs"] > 0 and frames(tmp_path / "b.gif")[0].shape[1] == 192
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reenact", "{portrait}", "--driving", "{portrait}.mp4"], "no such video"),
        (["reenact", "{black}", "--driving", "{clip}"], "no face found in the portrait"),
        (["reenact", "{portrait}", "--driving", "{clip}", "-o", "{clip}"], "would overwrite the input"),
        (
            ["reenact", "{portrait}", "--driving", "{clip}", "--face", "2"],
            "from 1 to 1 (the faces found), got 2",
        ),
        (["reenact", "{portrait}", "--driving", "{clip}", "--face", "0"], "--face counts from 1, got 0"),
        (["reenact", "{portrait}", "--driving", "{clip}", "--size", "50"], "--size must be from 64 to 2048, got 50"),
        (["reenact", "{portrait}", "--driving", "{clip}", "--size", "130"], "size must be a multiple of 4"),
        (
            ["reenact", "{portrait}", "--driving", "{clip}", "--checkpoint", "{portrait}"],
            "or no file of torch.save",
        ),
        (["reenact", "{portrait}", "--driving", "{clip}", "--face-model", "{portrait}"], "face model"),
        (["reconstruct", "{portrait}.avi"], "no such video"),
        (["reenact", "{portrait}", "--driving", "{clip}", "--seconds", "nan"], "--seconds must be above 0"),
        (["reenact", "{portrait}", "--driving", "{clip}", "--device", "gpu"], "needs --checkpoint"),
        (["encode", "{clip}", "--seconds", "0"], "--seconds must be above 0 and at most 3600, got 0"),
        (["edit", "{portrait}", "--yaw", "left", "right"], "--yaw must be numbers, got 'left right'"),
        (["edit", "{portrait}", "--expression", "jaw_open=1", "--expression", "jaw_open=0"], "each coefficient once"),
        (["frontalize", "{portrait}", "--face-model", "{bare}"], "name its 68 with --face-landmarks"),
        (["frontalize", "{portrait}", "--face-model", "{bare}", "--face-landmarks", "{numbers}"], "got 3 words"),
        (["decode", "{stream}", "--face", "1"], "--face needs --portrait"),
        (["edit", "{portrait}", "--yaw", "90"], "--yaw must be from -60 to 60, got 90"),
        (["edit", "{portrait}", "--expression", "jaw_open=4"], "--expression jaw_open must be from -3 to 3, got 4"),
        (["edit", "{portrait}", "--expression", "grin=1"], "expression must be from 0 to 27"),
        (
            ["edit", "{portrait}", "--expression", "smile"],
            "--expression must be NAME=VALUE or NAME=VALUE,VALUE..., got 'smile'",
        ),
        (["frontalize", "{portrait}", "-o", "{out}/a.mp4"], "image's extension must be .png"),
        (["encode", "{clip}", "-o", "{out}/a.mp4"], "stream's extension must be .ffs, got .mp4"),
        (["decode", "{portrait}"], "face stream"),
        (["decode", "{stream}", "--face-model", "{other}"], "morphable model"),
        (["decode", "{stream}"], "the stream carries no portrait, name one with --portrait"),
    ],
)
def test_bad_input_is_one_line_and_no_file(folder, tmp_path, portrait, clip, capsys, arguments, message) -> None:
    if not (folder / "stream.ffs").exists():
        assert main(["encode", str(clip), "-o", str(folder / "stream.ffs"), "--no-reference"]) == 0
        write_image(folder / "black.png", np.zeros((100, 100, 3), dtype=np.uint8))
        save_face_model(built_in_head().cropped(3000), folder / "other.safetensors")
        save_face_model(replace(built_in_head(), dense=None, landmarks68=None), folder / "bare.safetensors")
        (folder / "numbers.txt").write_text("1 2 3")
    capsys.readouterr()
    places = {
        "portrait": portrait,
        "clip": clip,
        "out": tmp_path,
        "black": folder / "black.png",
        "stream": folder / "stream.ffs",
        "other": folder / "other.safetensors",
        "bare": folder / "bare.safetensors",
        "numbers": folder / "numbers.txt",
    }
    given = [argument.format(**places) for argument in arguments]
    if "-o" not in given:
        suffix = {"edit": ".png", "frontalize": ".png", "encode": ".ffs"}.get(given[0], ".mp4")
        given += ["-o", str(tmp_path / f"out{suffix}")]
    assert main(given) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith(f"fastface {given[0]}: ") and message in lines[0], lines
    assert not list(tmp_path.iterdir())


def test_a_model_without_points_and_a_list_of_its_landmarks(tmp_path, portrait, folder, capsys) -> None:
    """BFM and FLAME bring no landmarks: their 68 numbers make them work."""
    head = built_in_head()
    save_face_model(replace(head, dense=None, landmarks68=None), tmp_path / "bare.safetensors")
    places = head.landmarks68.of(head.mean)
    numbers = torch.cdist(places, head.mean).argmin(1).tolist()
    (tmp_path / "68.txt").write_text(" ".join(map(str, numbers)))
    bare = ["--face-model", tmp_path / "bare.safetensors", "--face-landmarks", tmp_path / "68.txt"]
    told = summary(capsys, "frontalize", portrait, *bare, "-o", tmp_path / "a.png")
    mine = summary(capsys, "frontalize", portrait, "-o", tmp_path / "b.png")
    assert abs(told["are_before_degrees"] - mine["are_before_degrees"]) < 2


def test_a_stream_for_weights_and_sound_beside_it(tmp_path, clip, weights, capsys) -> None:
    """The stream knows which weights it is for; a wav of 8 kHz in stereo is heard, and what was done to it is said."""
    with wave.open(str(tmp_path / "talk.wav"), "wb") as sound:
        sound.setparams((2, 2, 8_000, 0, "NONE", ""))
        sound.writeframes(np.random.default_rng(0).integers(-9000, 9000, 16_000, dtype=np.int16).tobytes())
    small = ["--size", 96, "--checkpoint", weights]
    summary(capsys, "encode", clip, "-o", tmp_path / "a.ffs", *small)
    told = summary(
        capsys, "decode", tmp_path / "a.ffs", "-o", tmp_path / "a.mp4", "--sound", tmp_path / "talk.wav", *small
    )
    assert told["renderer"] == "headgan" and told["frames"] == 6
    assert any("8000 Hz resampled to 16000" in note for note in told["notes"])
    assert any("2 channels averaged" in note for note in told["notes"])
    copy = tmp_path / "other.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: value + 1e-3 for name, value in load_file(weights).items()}, copy)
    arguments = [
        "decode",
        str(tmp_path / "a.ffs"),
        "-o",
        str(tmp_path / "b.mp4"),
        "--size",
        "96",
        "--checkpoint",
        str(copy),
    ]
    assert main(arguments) == 2 and "weights" in capsys.readouterr().err
    told = summary(capsys, "decode", tmp_path / "a.ffs", "-o", tmp_path / "c.mp4", "--size", 96)
    assert told["renderer"] == "lifted" and "the stream was made for headgan, lifted draws it" in told["notes"]


def test_a_real_clip_there_and_back(tmp_path, capsys) -> None:
    """Encoded under 6 kbit/s, every parameter within 1 % of its range, and the heads are where they were."""
    report = summary(capsys, "encode", media_file("driving_a.mp4"), "--seconds", 2, "-o", tmp_path / "a.ffs")
    assert report["payload_kbps"] < 6 and report["largest_error"] <= 0.01
    told = summary(capsys, "decode", tmp_path / "a.ffs", "--measure", "-o", tmp_path / "a.mp4")
    assert told["stream"]["decoded"] == report["frames"] and told["ard_degrees"] < 2
