"""Video in any size, rate and turn; out to mp4, gif and PNGs, whole or not at all."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")

from fastface.media import VideoReader, VideoWriter, check_output, synthetic_tag  # noqa: E402  # after the skip


def frames(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    base = np.zeros((height, width, 3), dtype=np.uint8)
    base[: height // 2, : width // 2] = (200, 40, 40)
    made = []
    for index in range(count):
        frame = base.copy()
        frame[:, index : index + 8] = (40, 200, 40)
        made.append(frame)
    return made


def record(path: Path, *, times: list[float], size=(64, 96), rotation: int = 0, codec: str | None = None) -> Path:
    """A video with given times, and sound when `codec` names one."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=30)
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.bit_rate = 4_000_000
        if rotation:
            video.set_display_rotation(rotation)
        sound = out.add_stream(codec, rate=44_100) if codec else None
        if sound is not None:
            sound.layout = "stereo"
        for frame, time in zip(frames(len(times), *size), times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(time * 1000), Fraction(1, 1000)
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        if sound is not None:
            size = sound.codec_context.frame_size or 1152
            resampler = av.AudioResampler(sound.codec_context.format, "stereo", 44_100, frame_size=size)
            for index in range(int(44_100 * (times[-1] + 0.1)) // 1152):
                wave = np.sin(np.arange(1152) * 0.06 + index)[None].repeat(2, 0).astype(np.float32) * 0.3
                block = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
                block.sample_rate, block.pts, block.time_base = 44_100, index * 1152, Fraction(1, 44_100)
                for part in resampler.resample(block):
                    out.mux(sound.encode(part))
            out.mux(sound.encode(None))
    return path


def test_round_trip_with_odd_sizes(tmp_path) -> None:
    target = tmp_path / "deep" / "odd.mp4"
    with VideoWriter(target, fps=12.5) as writer:
        for frame in frames(5, 65, 97):
            writer.write(frame)
    with VideoReader(target) as reader:
        read = list(reader)
    assert len(read) == 5 and read[0][0].shape == (66, 98, 3)
    assert np.allclose([time for _, time in read], np.arange(5) / 12.5, atol=1e-3)
    assert np.abs(read[2][0][:65, :97].astype(int) - frames(5, 65, 97)[2]).mean() < 8
    with av.open(str(target)) as container:
        assert container.metadata["comment"] == synthetic_tag()
        assert container.streams.video[0].codec_context.name in ("h264", "mpeg4")
    assert [p.name for p in target.parent.iterdir()] == ["odd.mp4"]


def test_a_variable_frame_rate_keeps_its_times(tmp_path) -> None:
    times = [0.0, 0.04, 0.2, 0.24, 0.6]
    source = record(tmp_path / "vfr.mp4", times=times)
    with VideoReader(source) as reader, VideoWriter(tmp_path / "out.mp4", fps=25) as writer:
        for frame, seconds in reader:
            writer.write(frame, seconds)
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert np.allclose([time for _, time in reader], times, atol=2e-3)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_phone_rotation_is_applied(tmp_path, rotation) -> None:
    upright, turned = (record(tmp_path / f"{r}.mp4", times=[0, 0.1], rotation=r) for r in (0, rotation))
    with VideoReader(upright) as a, VideoReader(turned) as b:
        first, second = next(iter(a))[0], next(iter(b))[0]
    assert np.abs(np.rot90(first, rotation // 90).astype(int) - second).mean() < 4


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "flac"])
def test_sound_is_carried_over(tmp_path, codec) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"needs FFmpeg's {codec} encoder")
    source = record(tmp_path / "in.mkv", times=[i / 25 for i in range(26)], codec=codec)
    with VideoReader(source) as reader:
        assert reader.has_audio
        with VideoWriter(tmp_path / "out.mp4", fps=25, audio=source, audio_start=reader.start) as writer:
            for frame, seconds in reader:
                writer.write(frame, seconds)
    with av.open(str(tmp_path / "out.mp4")) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name in ("aac", "mp3", "mp3float")
        length = sum(frame.samples / frame.sample_rate for frame in container.decode(sound))
    assert abs(length - 1.04) < 0.1
    assert not writer.notes


@pytest.mark.parametrize(("rate", "written"), [(192_000, 96_000), (37_800, 32_000), (6000, 7350), (44_100, 44_100)])
def test_sound_of_any_rate_is_carried_over(tmp_path, rate, written) -> None:
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", ""))
        sound.writeframes((9000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype("<i2").tobytes())
    with VideoWriter(tmp_path / "out.mp4", fps=10, audio=tmp_path / "a.wav") as writer:
        for frame in frames(10):
            writer.write(frame)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)])
    assert stream.rate == written and len(samples) / written == pytest.approx(1, abs=0.2)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert spectrum.argmax() * written / len(samples) == pytest.approx(440, abs=2)


def test_sound_that_is_left_out_is_said(tmp_path) -> None:
    mute = record(tmp_path / "mute.mp4", times=[0.0, 0.1])
    for name, note in (("a.gif", f"a gif has no sound, that of {mute} is left out"), ("a.mp4", f"{mute} has no sound")):
        with VideoWriter(tmp_path / name, audio=mute) as writer:
            writer.write(frames(1)[0])
        assert writer.notes == [note]


def test_a_shorter_video_gets_as_much_sound(tmp_path) -> None:
    source = record(tmp_path / "in.mp4", times=[i / 25 for i in range(50)], codec="aac")
    with VideoWriter(tmp_path / "out.mp4", fps=25, audio=source) as writer:
        for frame in frames(10):
            writer.write(frame)
    with av.open(str(tmp_path / "out.mp4")) as container:
        length = sum(f.samples / f.sample_rate for f in container.decode(container.streams.audio[0]))
    assert 0.35 < length < 0.5


def test_gif(tmp_path) -> None:
    from PIL import Image

    with VideoWriter(tmp_path / "a.gif", fps=30) as writer:
        for frame in frames(6):
            writer.write(frame)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 6 and gif.info["comment"].decode() == synthetic_tag() and gif.info["loop"] == 0
        durations = []
        for index in range(6):
            gif.seek(index)
            durations.append(gif.info["duration"])
            shown = np.array(gif.convert("RGB")).astype(int)
            assert np.abs(shown - frames(6)[index]).mean() < 8
    assert sum(durations) == 200  # six frames at 30 fps


def test_a_folder_of_pngs(tmp_path) -> None:
    from PIL import Image

    target = tmp_path / "shots"
    for count in (4, 2):  # the second run replaces the first
        with VideoWriter(target) as writer:
            for frame in frames(count):
                writer.write(frame)
        assert sorted(p.name for p in target.iterdir()) == [f"frame_{i:05d}.png" for i in range(count)]
    with Image.open(target / "frame_00001.png") as shot:
        assert shot.info["Comment"] == synthetic_tag()
        assert np.array_equal(np.array(shot), frames(2)[1])
    (target / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="must be new or hold nothing else"):
        check_output(target)


def test_a_folder_with_anything_but_own_frames_is_kept(tmp_path) -> None:
    """A photo under a frame's name is no frame, and neither is what comes while frames are written."""
    from PIL import Image

    target = tmp_path / "shots"
    target.mkdir()
    photo = target / "frame_00000.png"
    Image.fromarray(frames(1)[0]).save(photo)
    kept = photo.read_bytes()
    with pytest.raises(ValueError, match="must be new or hold nothing else"):
        VideoWriter(target)
    assert photo.read_bytes() == kept
    photo.unlink()
    with pytest.raises(ValueError, match="must be new or hold nothing else"), VideoWriter(target) as writer:
        writer.write(frames(1)[0])
        photo.write_bytes(kept)
    assert photo.read_bytes() == kept and [p.name for p in tmp_path.iterdir()] == ["shots"]


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out"])
def test_an_error_leaves_nothing_behind(tmp_path, name) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / name) as writer:
        writer.write(frames(1)[0])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no frame was written"), VideoWriter(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_the_old_file(tmp_path) -> None:
    target = tmp_path / "out.mp4"
    target.write_text("old")
    with pytest.raises(RuntimeError), VideoWriter(target) as writer:
        writer.write(frames(1)[0])
        raise RuntimeError
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_bad_outputs(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dir.mp4").mkdir()
    for name, message in (
        ("a.avi", r"extension must be one of .mp4, .m4v, .mov, .mkv, .gif"),
        ("dir.mp4", "got the directory"),
        ("file", "a file is there"),
        ("file/out.mp4", "expected a folder, got the file"),
    ):
        with pytest.raises(ValueError, match=message):
            check_output(tmp_path / name)
    with VideoWriter(tmp_path / "ok.mp4") as writer:
        writer.write(frames(1)[0], 0.5)
        with pytest.raises(ValueError, match=r"all frames must be \[64, 96, 3\]"):
            writer.write(frames(1, 32, 32)[0])
        with pytest.raises(ValueError, match=r"frame must be \[H, W, 3\] uint8"):
            writer.write(np.zeros((64, 96), dtype=np.uint8))
        with pytest.raises(ValueError, match="seconds must grow, got 0.5 after 0.5"):
            writer.write(frames(1)[0], 0.5)


def test_bad_videos(tmp_path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no video " * 99)
    whole = record(tmp_path / "whole.mp4", times=[0, 0.1, 0.2])
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:300])
    with av.open(str(tmp_path / "sound.m4a"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        block.sample_rate = 8000
        out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    for name, message in (
        ("absent.mp4", "no such video"),
        ("empty.mp4", "empty file"),
        ("text.mp4", "cannot read a video"),
        ("cut.mp4", "cannot read a video"),
        ("sound.m4a", "no video stream"),
        (".", "got the directory"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            VideoReader(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_broken_end_gives_what_came_before(tmp_path) -> None:
    whole = record(tmp_path / "whole.mkv", times=[i / 30 for i in range(60)], size=(240, 320))
    data = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    with VideoReader(tmp_path / "cut.mkv") as reader:
        assert 5 < len(list(reader)) < 60


def test_a_missing_pyav_says_how_to_get_it(monkeypatch, tmp_path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'fastface-kernels\[video\]'"):
        VideoReader(tmp_path / "a.mp4")
