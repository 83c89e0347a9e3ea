"""Sound of any rate, layout and file comes in as one kind, and bad sound with one line."""

from __future__ import annotations

import sys
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[audio]'")

from fastface.audio import Resampler, as_audio, read_audio  # noqa: E402  # after the skip
from fastface.audio.reader import AudioReader  # noqa: E402
from fastface.media import VideoWriter  # noqa: E402


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def write_wav(path: Path, channels: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(len(channels))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((channels.T * 32767).round().astype("<i2").tobytes())
    return path


def encode(path: Path, samples: np.ndarray, rate: int, codec: str, *, video: bool = False, delay: float = 0.0) -> Path:
    with av.open(str(path), "w") as out:
        if video:
            pictures = out.add_stream("mpeg4", rate=25)
            pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        sound = out.add_stream(codec, rate=rate)
        sound.layout = "mono"
        size = sound.codec_context.frame_size or 1024
        if video:
            for _ in range(25):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8), "rgb24")
                out.mux(pictures.encode(frame))
            out.mux(pictures.encode(None))
        fit = av.AudioResampler(sound.codec_context.format, "mono", rate, frame_size=size)
        block = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
        block.sample_rate, block.pts = rate, round(delay * rate)
        for part in [*fit.resample(block), *fit.resample(None)]:
            out.mux(sound.encode(part))
        out.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_a_tone_survives_resampling(rate) -> None:
    audio = as_audio(tone(rate), rate)
    assert audio.sample_rate == 16_000 and audio.seconds == 1.0 and audio.notes == (f"{rate} Hz resampled to 16000",)
    assert np.abs(audio.samples - tone(16_000))[200:-200].max() < 2e-3


def test_what_is_right_stays_as_it_is() -> None:
    audio = as_audio(tone(16_000), 16_000)
    assert np.array_equal(audio.samples, tone(16_000)) and audio.notes == ()


@pytest.mark.parametrize(("source", "size"), [(44_100, 441), (8000, 1), (48_000, 9999)])
def test_resampling_in_pieces_changes_no_bit(source, size) -> None:
    sound = tone(source, 0.1)
    resampler = Resampler(source, 16_000)
    parts = [resampler.push(sound[i : i + size]) for i in range(0, len(sound), size)]
    assert np.array_equal(np.concatenate([*parts, resampler.finish()]), as_audio(sound, source).samples)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "float32", "float64"])
def test_number_types(dtype) -> None:
    wanted = np.array([-1.0, -0.5, 0.0, 0.5])
    info = None if dtype.startswith("f") else np.iinfo(dtype)
    values = wanted if info is None else (wanted * -float(np.iinfo(dtype.lstrip("u")).min) + (info.min == 0) * 128)
    audio = as_audio(values.astype(dtype), 16_000)
    assert np.array_equal(audio.samples, wanted.astype(np.float32))


def test_channels_are_averaged() -> None:
    left, right = tone(16_000), tone(16_000, hertz=100)
    audio = as_audio(np.stack([left, right]), 16_000)
    assert audio.notes == ("2 channels averaged",) and np.allclose(audio.samples, (left + right) / 2)


def test_wav(tmp_path) -> None:
    channels = np.stack([tone(8000), 0 * tone(8000)])
    audio = read_audio(write_wav(tmp_path / "a.wav", channels, 8000))
    assert audio.notes == ("2 channels averaged", "8000 Hz resampled to 16000") and audio.seconds == 1.0
    assert np.abs(audio.samples - tone(16_000) / 2)[200:-200].max() < 2e-3
    native = read_audio(tmp_path / "a.wav", sample_rate=8000)
    assert np.abs(native.samples - channels[0] / 2).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp3", "libmp3lame"), ("a.flac", "flac"), ("a.m4a", "aac"), ("a.mp4", "aac"), ("a.mkv", "aac")],
)
def test_compressed_files_and_videos(tmp_path, name, codec) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"needs FFmpeg's {codec} encoder")
    video = name in ("a.mp4", "a.mkv")
    audio = read_audio(encode(tmp_path / name, tone(16_000), 16_000, codec, video=video))
    assert audio.seconds == pytest.approx(1, abs=0.15)
    middle = audio.samples[5000:11_000].astype(np.float64)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(6000)))
    assert spectrum.argmax() * 16_000 / 6000 == pytest.approx(440, abs=3)


def test_a_start_on_the_clock_of_the_file(tmp_path) -> None:
    path = encode(tmp_path / "late.mkv", tone(16_000), 16_000, "flac", video=True, delay=0.25)
    plain, early, late = read_audio(path), read_audio(path, start=0.0), read_audio(path, start=0.5)
    assert (early.samples[:4000] == 0).all() and np.array_equal(early.samples[4000:], plain.samples)
    assert early.notes == ("0.250 s of silence put before",)
    assert np.array_equal(late.samples, plain.samples[4000:]) and late.notes == ("0.250 s cut",)
    with pytest.raises(ValueError, match="the sound must reach beyond start = 9 s"):
        read_audio(path, start=9)


def test_silence_is_valid_and_said(tmp_path) -> None:
    assert as_audio(np.zeros(100), 16_000).notes == ("the sound is silent",)
    assert "the sound is silent" in read_audio(write_wav(tmp_path / "a.wav", np.zeros((1, 800)), 8000)).notes


def test_a_broken_end_gives_what_came_before(tmp_path) -> None:
    whole = encode(
        tmp_path / "whole.flac", np.random.default_rng(0).standard_normal(48_000).astype("f4") / 9, 16_000, "flac"
    )
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    (tmp_path / "cut.flac").write_bytes(data)
    audio = read_audio(tmp_path / "cut.flac")
    assert 1 < audio.seconds < 3
    assert np.array_equal(audio.samples[:16_000], read_audio(whole).samples[:16_000])


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mp2", "mp2")])
def test_what_is_damaged_is_silent_and_the_rest_in_its_place(tmp_path, name, codec) -> None:
    beeps = tone(16_000, 6.0) * np.repeat([1, 0, 1, 0, 1, 1], 16_000).astype("f4")
    path = encode(tmp_path / name, beeps, 16_000, codec)
    data, whole = bytearray(path.read_bytes()), read_audio(path)
    middle = slice(len(data) // 2, len(data) // 2 + 900)
    data[middle] = np.random.default_rng(1).bytes(900)
    path.write_bytes(data)
    audio = read_audio(path)
    with AudioReader(path) as reader:
        assert np.array_equal(np.concatenate(list(reader)), audio.samples)
        damaged = reader.track.damaged
    assert 0.03 < damaged < 2 and not reader.track.broken
    assert audio.notes == (f"{damaged:.2f} s damaged and left silent", *whole.notes)
    assert abs(audio.seconds - whole.seconds) < 0.15, "a frame or two whose header is gone as well"
    with VideoWriter(tmp_path / "out.mp4", fps=5, audio=path) as writer:
        for _ in range(30):
            writer.write(np.zeros((64, 64, 3), dtype=np.uint8))
    for sound in (audio, read_audio(tmp_path / "out.mp4")):
        loudest = [np.abs(sound.samples[round(16_000 * s) :][:4000]).max() for s in (1.4, 2.1, 3.4, 4.6, 5.4)]
        assert np.array_equal(np.array(loudest) > 0.2, [False, True, False, True, True]), "pauses are where they were"


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44_100, 2), (16_000, 1)])
def test_a_reader_gives_the_whole_in_pieces(tmp_path, rate, channels) -> None:
    sound = np.random.default_rng(0).uniform(-1, 1, (channels, round(3.3 * rate)))
    path = write_wav(tmp_path / "a.wav", sound, rate)
    with AudioReader(path) as reader:
        assert reader.expected_seconds == pytest.approx(3.3, abs=0.01)
        pieces = list(reader)
    assert (reader.track.start, reader.track.damaged, reader.track.broken) == (0, 0, "")
    assert max(map(len, pieces)) < 32_000
    np.testing.assert_allclose(np.concatenate(pieces), read_audio(path).samples, atol=1e-6)
    path.write_bytes(path.read_bytes()[:44])
    for bad, message in ((path, "cannot read sound"), (tmp_path, "got the directory"), (tmp_path / "no", "no such")):
        with pytest.raises(ValueError, match=message):
            AudioReader(bad)


def test_bad_files(tmp_path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("this is no sound " * 99)
    write_wav(tmp_path / "none.wav", np.zeros((1, 0)), 8000)
    with av.open(str(tmp_path / "mute.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    for name, message in (
        ("absent.wav", "no such sound file"),
        ("empty.wav", "the sound is an empty file"),
        ("text.mp3", "cannot read sound from"),
        ("none.wav", "the audio track is empty"),
        ("mute.mp4", "the file has no audio track"),
        (".", "got the directory"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_audio(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_bad_arrays() -> None:
    for samples, rate, error, message in (
        (np.zeros(0), 8000, ValueError, r"samples must not be empty, got \[0\]"),
        (np.zeros((2, 0)), 8000, ValueError, r"samples must not be empty, got \[2, 0\]"),
        (np.zeros((48_000, 2)), 8000, ValueError, r"1 to 32 channels, got \[48000, 2\]"),
        (np.zeros((1, 2, 3)), 8000, ValueError, r"samples must be \[N\] or \[channels, N\]"),
        (np.float32(1), 8000, ValueError, r"samples must be \[N\] or \[channels, N\]"),
        (np.array([0, np.nan, np.inf]), 8000, ValueError, "samples must be finite, got 2 values"),
        (np.zeros(9, dtype=complex), 8000, TypeError, "integers or floats, got complex128"),
        (np.zeros(9), 0, ValueError, "a positive integer in Hz, got 0"),
        (np.zeros(9), 44_100.5, ValueError, "a positive integer in Hz, got 44100.5"),
    ):
        with pytest.raises(error, match=message):
            as_audio(samples, rate)


def test_a_missing_pyav_says_how_to_get_it(monkeypatch, tmp_path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros((1, 800)), 8000)
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (lambda: read_audio(path), lambda: as_audio(np.zeros(9), 8000)):
        with pytest.raises(ImportError, match=r"pip install 'fastface-kernels\[audio\]'"):
            call()
    assert len(as_audio(np.zeros(9), 16_000).samples) == 9


@pytest.mark.parametrize("ending", ["mp4", "mka"])
def test_a_hole_between_packets_is_silent_and_the_rest_in_its_place(tmp_path: Path, ending: str) -> None:
    """A tone of which the packets from 1 to 2 s are missing."""
    av = pytest.importorskip("av", reason="needs PyAV")
    rate = 16000
    tone = np.sin(2 * np.pi * 440 * np.arange(4 * rate) / rate).astype(np.float32)
    path = tmp_path / f"hole.{ending}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=rate)
        for first in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, first : first + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
            for packet in stream.encode(frame):
                if not 1 <= packet.pts * packet.time_base < 2:
                    out.mux(packet)
        out.mux(stream.encode(None))
    audio = read_audio(path)
    assert abs(audio.seconds - 4) < 0.2
    level = [float(np.sqrt(np.square(each).mean())) for each in np.array_split(audio.samples, 40)]
    assert max(level[12:18]) < 0.01 and min(level[2:9]) > 0.45 and min(level[23:37]) > 0.45
    assert any("damaged and left silent" in note for note in audio.notes)
    with AudioReader(path) as reader:
        assert np.allclose(np.concatenate(list(reader)), audio.samples, atol=1e-3)
        assert 0.9 < reader.track.damaged < 1.2
