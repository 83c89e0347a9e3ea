"""`fastface stylize` as a user meets it, with small networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastface.apps import _style_mapping as shared
from fastface.apps.cli import main
from fastface.face import Face
from fastface.media import read_image, write_image
from fastface.models import style_mapping
from fastface.models.lifted import PRESETS
from fastface.models.style_mapping import StyleAwareConfig, StyleAwareGenerator, StyleMapping
from tests.models.small_style_mapping import save_as_published, small

NAMES = ["none", "m", "r", "o"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small spend their time in the meetings of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Weights and square pictures."""
    folder = tmp_path_factory.mktemp("stylize")
    save_as_published(small(), folder / "vox.pth.tar")
    torch.manual_seed(0)
    generator = StyleAwareGenerator(StyleAwareConfig(channels=2, widest=8))
    torch.save(generator.state_dict(), folder / "style.pth")
    rng = np.random.default_rng(0)
    for name in ("portrait", *NAMES):
        colours = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        write_image(folder / f"{name}.png", np.ascontiguousarray(colours.repeat(40, 0).repeat(40, 1)))
    write_image(folder / "wide.png", np.zeros((100, 200, 3), dtype=np.uint8))
    return folder


def arguments(folder: Path, output: Path, *more: object, checkpoint: bool = True) -> list[str]:
    weights = ["--checkpoint", folder / "vox.pth.tar"] if checkpoint else []
    references = [folder / f"{name}.png" for name in NAMES]
    given = ["stylize", "--portrait", folder / "portrait.png", "--references", *references, "-o", output, *weights]
    return [str(argument) for argument in [*given, *more]]


def test_patterns_and_a_picture(folder, tmp_path, capsys) -> None:
    """Four patterns, those that the model makes, in the order of the references; and all in one picture."""
    assert main(arguments(folder, tmp_path / "out", "--no-crop", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["milliseconds"]) == {"prepare", "pose", "render"} and told["notes"] == []
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(["all.png", *(f"pattern_{name}.png" for name in NAMES)])
    model = StyleMapping.from_checkpoint(folder / "vox.pth.tar")

    def image(name: str) -> torch.Tensor:
        import cv2

        pixels = cv2.resize(read_image(folder / f"{name}.png"), (256, 256), interpolation=cv2.INTER_CUBIC)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255

    source = model.prepare(image("portrait"))
    patterns = []
    for name in NAMES:
        frame = model.render(source, model.motion_of(image(name)))[0].permute(1, 2, 0) * 255
        patterns.append(read_image(tmp_path / "out" / f"pattern_{name}.png"))
        assert np.abs(patterns[-1] - frame.numpy()).max() < 3
    assert np.abs(patterns[0].astype(int) - patterns[3]).mean() > 1, "references differ"
    picture = read_image(tmp_path / "out" / "all.png")
    tile = 256 + 14  # with its label
    assert picture.shape == (2 * tile + 4, 5 * 256 + 4 * 4, 3)
    for column, pattern in enumerate(patterns, start=1):
        assert np.array_equal(picture[tile + 4 : tile + 4 + 256, column * 260 : column * 260 + 256], pattern)
    assert main(arguments(folder, tmp_path / "one.png", "--no-crop")) == 0
    assert np.array_equal(read_image(tmp_path / "one.png"), picture)
    assert "4 patterns: " in capsys.readouterr().out


def test_untrained_says_so(folder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(style_mapping.StyleMapping, "from_random", lambda: small())
    assert main(arguments(folder, tmp_path / "a.png", "--no-crop", "--untrained", checkpoint=False)) == 0
    assert "untrained weights, what comes out is noise" in capsys.readouterr().err


def test_faces_are_cut_out_and_a_video_drives(folder, tmp_path, capsys) -> None:
    pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
    pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")
    data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")
    from fastface.face import MediaPipeLandmarks
    from fastface.media import VideoReader, VideoWriter

    photo = data.astronaut()
    write_image(tmp_path / "portrait.png", photo)
    for index, name in enumerate(NAMES):
        write_image(tmp_path / f"{name}.png", np.ascontiguousarray(photo[:, 20 * index :]))
    square = shared.read_square(str(tmp_path / "portrait.png"), MediaPipeLandmarks())
    x, y, side = square.box
    points = MediaPipeLandmarks()(photo)[0].points
    assert x < points[:, 0].min() and points[:, 0].max() < x + side and points[:, 1].max() < y + side
    assert square.tensor().shape == (1, 3, 256, 256)
    with VideoWriter(tmp_path / "clip.mp4", fps=10) as writer:
        for shift in range(3):
            writer.write(np.roll(photo, 8 * shift, 1))
    given = arguments(tmp_path, tmp_path / "out.mp4", "--driving", tmp_path / "clip.mp4", checkpoint=False)
    weights = ["--checkpoint", str(folder / "vox.pth.tar"), "--style-weights", str(folder / "style.pth")]
    capsys.readouterr()
    assert main([*given, *weights, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == 3 and told["missed_frames"] == 0 and "frame" in told["milliseconds"]
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert reader.size == (512, 512) and len(list(reader)) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--references", "{f}/m.png"], "--references must be 4 pictures (None, M, R, O), got 1"),
        (["--references", *["{f}/m.png"] * 3, "{f}/lost.png"], "no such image: {f}/lost.png"),
        (["--references", *["{f}/m.png"] * 3, "{f}/wide.png"], "takes square pictures, got 200x100: {f}/wide.png"),
        (["--portrait", "{f}/lost.png"], "no such image: {f}/lost.png"),
        (["--portrait", "{f}/style.pth"], "cannot read an image from {f}/style.pth"),
        (["-o", "{out}/a.mp4"], "image's extension must be .png, .jpg or .jpeg, got .mp4"),
        (["-o", "{out}/a.webp"], "image's extension must be .png, .jpg or .jpeg, got .webp"),
        (["-o", "{f}/portrait.png"], "would overwrite the input {f}/portrait.png"),
        (["--checkpoint", "{f}/lost.pth"], "no such checkpoint file: {f}/lost.pth"),
        (["--checkpoint", "{f}/style.pth"], "must hold generator, kp_detector, he_estimator"),
        (["--style-weights", "{f}/style.pth"], "--style-weights needs --driving VIDEO"),
        (["--driving", "{f}/clip.mp4", "-o", "{out}/a.mp4"], "--driving needs --style-weights FILE"),
        (
            ["--driving", "{f}/clip.mp4", "--style-weights", "{f}/style.pth", "-o", "{out}/a.png"],
            "extension must be one of .mp4",
        ),
        (
            ["--driving", "{f}/clip.mp4", "--style-weights", "{f}/vox.pth.tar", "-o", "{out}/a.mp4"],
            "holds several state dicts",
        ),
        (["--driving", "{f}/clip.mp4", "--smoothing", "-1"], "--smoothing must be from 0 to 100, got -1"),
        (["--seconds", "0"], "--seconds must be above 0"),
    ],
)
def test_bad_input_is_one_line_and_no_file(folder, tmp_path, capsys, more, message) -> None:
    told = [argument.format(f=folder, out=tmp_path) for argument in more]
    assert main([*arguments(folder, tmp_path / "out", "--no-crop"), *told]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fastface stylize: "), lines
    assert message.format(f=folder) in lines[0], lines
    assert not list(tmp_path.iterdir())


def test_without_weights(folder, tmp_path, capsys) -> None:
    assert main(arguments(folder, tmp_path / "out", "--no-crop", checkpoint=False)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "needs --checkpoint FILE" in told and "--untrained tries it without" in told


def test_nobody_in_a_picture(folder, tmp_path, capsys) -> None:
    pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
    assert main(arguments(folder, tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert "no face found" in told and "--no-crop" in told and f"{folder}/portrait.png" in told
    film = ["--driving", folder / "clip.mp4", "--style-weights", folder / "style.pth", "--no-crop"]
    assert main(arguments(folder, tmp_path / "out.mp4", *film)) == 2
    assert f"no face found in the portrait, expected one: {folder}/portrait.png" in capsys.readouterr().err


# `fastface animate --model style_mapping`


class OneFace:
    """A detector that finds the same face in every image but black ones."""

    def __call__(self, image: np.ndarray) -> list[Face]:
        points = np.array([[40, 40, 0], [120, 140, 0]], dtype=np.float32)
        return [Face(points)] if image.any() else []


@pytest.fixture(scope="module")
def animator(folder) -> shared.Animator:
    return shared.Animator(StyleMapping.from_checkpoint(folder / "vox.pth.tar"), OneFace())


@pytest.fixture(scope="module")
def portrait(folder, animator) -> shared.AnimatedPortrait:
    photo = read_image(folder / "portrait.png")
    return animator.prepare(photo, face=animator.detect(photo)[0])


def test_an_animated_portrait(animator, portrait) -> None:
    x, y, side = portrait.box
    assert portrait.photo.shape == (160, 160, 3) and portrait.portrait.shape == (256, 256, 3)
    assert x <= 40 and x + side >= 120 and y <= 40 and y + side >= 140
    motion = portrait.source.motion
    frame = animator.render_uint8(portrait, motion)
    assert frame.dtype == torch.uint8 and frame.shape == (1, 256, 256, 3)
    expected = animator.model.render(portrait.source, motion)[0].permute(1, 2, 0) * 255
    assert (frame[0] - expected).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_a_driving_video(folder, animator, portrait, smoothing) -> None:
    """Nothing moves before there is a face, nor with the first one; then what changed since."""
    driver = shared.VideoDriving(animator, smoothing=smoothing)
    images = [np.zeros((160, 160, 3), dtype=np.uint8), *(read_image(folder / f"{name}.png") for name in NAMES)]
    source = portrait.source
    moved = []
    for index, image in enumerate(images):
        motion = driver(image, index / 25)
        moved.append((motion.on(source.canonical, source.motion).keypoints - source.keypoints).abs().max().item())
    assert (driver.frames, driver.missed) == (5, 1)
    assert moved[:2] == [0, 0] and min(moved[2:]) > 1e-3
    taken = shared.VideoDriving(animator, relative=False, smoothing=smoothing)(images[1], 0.0)
    square = shared.square_about(images[1], OneFace()(images[1])[0])
    assert torch.allclose(taken.angles, animator.model.motion_of(square.tensor()).angles)


def test_a_made_motion_turns_as_it_says(portrait) -> None:
    """The same turn of a nose that points at the viewer: `lifted` counts yaw to the image's right, pitch upwards."""
    made = shared.preset("shake", portrait)
    still = made(0.0)
    source = portrait.source
    for seconds in (0.3, 0.5, 1.1):
        yaw, pitch, roll = PRESETS["shake"](seconds).rotation[0].tolist()
        turned = made(seconds).driving.angles - source.motion.angles
        assert torch.allclose(turned, torch.tensor([[-pitch, -yaw, roll]]), atol=1e-4)
    assert torch.allclose(still.on(source.canonical, source.motion).keypoints, source.keypoints, atol=0.05)
    doubled = made(0.5).scaled(pose=2).driving.angles - source.motion.angles
    assert torch.allclose(doubled, 2 * (made(0.5).driving.angles - source.motion.angles), atol=1e-4)
