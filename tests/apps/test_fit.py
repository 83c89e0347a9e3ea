"""`fastface fit`: videos to clips, and the motion that a track becomes."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastface.face import Camera, built_in_head, rotation_vector
from fastface.models.headgan.driving import FaceTrack
from fastface.models.posegan.corpus import mouth_opening, read_corpus
from fastface.models.posegan.extraction import cut, extract


def rotation(pitch: torch.Tensor, yaw: torch.Tensor, roll: torch.Tensor) -> torch.Tensor:
    """Rotation vectors whose `Camera.angles` are these, radians."""
    from fastface.models.lifted import rotation_matrix

    flip = torch.tensor([1.0, -1.0, -1.0])
    return rotation_vector(flip[:, None] * rotation_matrix(torch.stack([yaw, pitch, roll], 1).rad2deg()) * flip)


def track(frames: int = 125, fps: float = 25.0) -> tuple[FaceTrack, torch.Tensor, torch.Tensor]:
    """A track in a video, and the poses and expressions that made it."""
    head = built_in_head()
    time = torch.arange(frames, dtype=torch.float64) / fps
    phases = torch.arange(6) * 1.3
    pose = torch.sin(2 * torch.pi * 0.3 * time[:, None] + phases).float() * torch.tensor([0.1, 0.2, 0.1, 8, 6, 20])
    expression = torch.zeros(frames, head.expressions)
    expression[:, head.expression_names.index("jaw_open")] = torch.sin(2 * torch.pi * 2 * time).clamp(min=0).float() / 2
    scale = 20.0 * 600 / (600 - pose[:, 5])  # pixels per cm
    shift = pose[:, 3:] / 10 * torch.tensor([1.0, -1.0, -1.0]) * scale[:, None]
    camera = Camera(scale, rotation(*pose[:, :3].T), torch.tensor([300.0, 200, 0]) + shift)
    resting = torch.full((head.expressions,), 0.1)
    vectors = torch.cat([resting + expression, camera.vector], 1)
    return (
        FaceTrack(vectors, time, torch.ones(frames, dtype=torch.bool), torch.randn(1, head.identities)),
        pose,
        expression,
    )


def test_a_track_becomes_its_motion() -> None:
    seen, pose, expression = track()
    motion = extract(seen, built_in_head(), 25.0)
    inside = slice(5, -5)
    assert np.abs(motion.pose[inside, :3] - pose[inside, :3].numpy()).max() < 0.01
    moved = pose[:, 3:] - pose[:, 3:].median(0).values
    assert np.abs(motion.pose[inside, 3:] - moved[inside].numpy()).max() < 1.5  # mm: medians of products are not theirs
    assert np.abs(motion.expression - expression.numpy()).max() < 1e-3  # the resting 0.1 is gone
    assert motion.found.all()


def test_another_rate_and_frames_without_a_face() -> None:
    seen, _, expression = track(300, 30.0)
    found = seen.found.clone()
    found[60:64] = False  # 0.17 s: over it goes a line
    found[150:200] = False
    motion = extract(replace(seen, found=found), built_in_head(), 20.0)
    assert len(motion.pose) == round(299 / 30 * 20) + 1
    lost = np.flatnonzero(~motion.found) / 20.0
    assert 149 / 30 < lost.min() < 151 / 30 and 198 / 30 < lost.max() < 200 / 30
    jaw = built_in_head().expression_names.index("jaw_open")
    expected = np.interp(np.arange(len(motion.pose)) / 20, np.arange(300) / 30, expression[:, jaw].numpy())
    early = slice(0, 35)
    assert np.abs(motion.expression[early, jaw] - expected[early]).max() < 0.01


def test_pieces_are_where_the_face_is() -> None:
    seen, _, _ = track(700)
    found = seen.found.clone()
    found[300:340] = False
    found[380:400] = False  # what is left between is too short
    motion = extract(replace(seen, found=found), built_in_head(), 25.0)
    samples = np.linspace(-0.9, 0.9, 20 * 16000, dtype=np.float32)  # ends before the face does
    clips = list(cut(motion, samples, 25.0, built_in_head()))
    assert [len(clip.pose) for clip in clips] == pytest.approx([150, 150, 150, 150], abs=1)
    assert clips[2].samples[0] == pytest.approx(samples[400 * 640], abs=0.004)  # a frame
    assert not clips[3].samples[-16000:].any()
    for clip in clips:
        assert clip.closed is None
        assert np.allclose(clip.opening, mouth_opening(clip.expression), atol=1e-6)


def test_units_that_are_unknown() -> None:
    with pytest.raises(ValueError, match="one of um, mm, cm, m, got 'inch'"):
        extract(track()[0], replace(built_in_head(), unit="inch"), 25.0)


# The command


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Two and a half seconds of the astronaut, with a tone."""
    pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
    pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")
    data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")
    from fastface.media import VideoWriter

    folder = tmp_path_factory.mktemp("fit")
    with wave.open(str(folder / "tone.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes((9000 * np.sin(np.arange(20_000) / 5)).astype("<i2").tobytes())
    portrait = np.ascontiguousarray(data.astronaut()[:256, 96:352])
    with VideoWriter(folder / "her.mp4", fps=10, audio=str(folder / "tone.wav")) as writer:
        for shift in range(25):
            writer.write(np.roll(portrait, shift, 1))
    return folder / "her.mp4"


def test_fit_and_go_on(tmp_path: Path, video: Path, capsys) -> None:
    from fastface.apps.cli import main

    assert main(["fit", str(video), "-o", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clips"], found["held_out"]) == (1, 0)
    corpus = read_corpus(tmp_path)
    assert corpus.face == built_in_head().content_hash and corpus.names("train") == ["her_000"]
    clip = corpus.read("her_000")
    assert clip.pose.shape == (61, 6) and np.abs(clip.samples).max() > 0.1
    assert clip.pose[-5:, 3].mean() - clip.pose[:5, 3].mean() > 5  # mm to the image's right
    written = (tmp_path / "her_000.npz").stat().st_mtime_ns
    assert main(["fit", str(video), "-o", str(tmp_path)]) == 0
    assert "her is there already" in capsys.readouterr().err
    assert (tmp_path / "her_000.npz").stat().st_mtime_ns == written
    assert main(["fit", str(video), "-o", str(tmp_path), "--fps", "30"]) == 2
    assert "25.0" in capsys.readouterr().err


def test_an_only_clip_has_its_end_held_out(tmp_path: Path, video: Path, capsys, monkeypatch) -> None:
    from fastface.apps import fit
    from fastface.apps.cli import main

    monkeypatch.setattr(fit, "_LEAST", 1.0)  # the video is too short for two seconds of each
    assert main(["fit", str(video), "-o", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "2 clips, 0.0 minutes, 1 held out" in said.out and "held out" not in said.err
    corpus = read_corpus(tmp_path)
    assert (corpus.names("train"), corpus.names("held_out")) == (["her_000"], ["her_001"])
    first, last = (corpus.read(name) for name in ("her_000", "her_001"))
    assert (len(first.pose), len(last.pose)) == (36, 25) and len(first.opening) == 36
    assert (len(first.samples), len(last.samples)) == (36 * 640, 25 * 640)


def test_parts_of_a_clip_meet() -> None:
    from fastface.apps.fit import _parted

    seen, _, _ = track(200)
    (clip,) = cut(extract(seen, built_in_head(), 25.0), np.linspace(0, 1, 8 * 16_000), 25.0, built_in_head())
    first, last = _parted(clip)
    assert (first.seconds, last.seconds) == (6.0, 2.0), "two seconds, and more of what is longer than ten"
    for name in ("samples", "pose", "expression", "opening"):
        assert np.array_equal(np.concatenate([getattr(first, name), getattr(last, name)]), getattr(clip, name))
    assert _parted(last) == [last]


def test_a_bad_video_does_not_end_the_run(tmp_path: Path, video: Path, capsys) -> None:
    from fastface.apps.cli import main

    (tmp_path / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    assert main(["fit", str(tmp_path / "text.mp4"), str(video), "-o", str(out)]) == 1
    said = capsys.readouterr()
    refused, *notes = said.err.splitlines()
    assert refused.startswith("fastface fit: cannot read a video from") and "1 clips" in said.out
    assert any("no clip is held out" in note for note in notes) and notes[-1] == "note: 1 of 2 videos could not be used"
    assert read_corpus(out).names("train") == ["her_000"]


def test_what_is_refused(tmp_path: Path, video: Path, capsys) -> None:
    from fastface.apps.cli import main
    from fastface.media import VideoReader, VideoWriter

    with wave.open(str(tmp_path / "hush.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(np.random.default_rng(0).integers(-20, 20, 20_000, dtype="<i2").tobytes())
    with (
        VideoReader(video) as reader,
        VideoWriter(tmp_path / "hush.mp4", fps=10, audio=str(tmp_path / "hush.wav")) as writer,
    ):
        for frame, _ in reader:
            writer.write(frame)
    with VideoWriter(tmp_path / "mute.mp4", fps=10) as writer:
        writer.write(np.zeros((64, 64, 3), dtype=np.uint8))
    with VideoWriter(tmp_path / "empty.mp4", fps=10, audio=str(video.parent / "tone.wav")) as writer:
        for _ in range(5):
            writer.write(np.zeros((64, 64, 3), dtype=np.uint8))
    cases = (
        (["none.mp4"], "no such video"),
        ([str(tmp_path / "mute.mp4")], "no audio track"),
        ([str(tmp_path / "empty.mp4")], "no face"),
        ([str(tmp_path / "hush.mp4")], "must have sound of someone who talks, got silence"),
        ([str(video), str(video)], "her twice"),
        ([str(video), "--seconds", "1"], "2 s or more"),
        ([str(video), "--fps", "1"], "--fps"),
    )
    for arguments, said in cases:
        assert main(["fit", *arguments, "-o", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error, error
