"""What a face hears of speech: hand-made sounds, any cut into pieces, any loudness; resampling to frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.audio import (
    PrecomputedSpeech,
    PrecomputedSpeechStream,
    SpectralSpeech,
    SpectralSpeechStream,
    SpeechFeatures,
    speech_level,
    to_frame_rate,
)
from tests.audio.signals import talk

RATE = 16_000
BANDS, LOUDNESS, CHANGE, MURMUR, VOICING, CENTROID, FLATNESS = slice(0, 23), 23, 24, 25, 26, 27, 28


def tone(frequency: float, seconds: float = 0.5, peak: float = 0.3) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def streamed(sound: np.ndarray, sizes: list[int], level: float | None = None) -> np.ndarray:
    stream, parts, at = SpectralSpeechStream(level), [], 0
    while at < len(sound):
        for size in sizes:
            parts.append(stream.push(sound[at : at + size]))
            at += size
    return np.concatenate([*parts, stream.finish()])


@pytest.mark.parametrize("samples", [0, 1, 255, 256, 257, 319, 320, 321, 576, 577, 16_001])
def test_steps(samples: int) -> None:
    hear: SpeechFeatures = SpectralSpeech()
    features = hear(talk(2)[:samples], RATE)
    assert features.shape == (-(-samples // 320), 29) and features.dtype == np.float32
    assert np.isfinite(features).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 20_000), st.lists(st.integers(0, 3000), min_size=1, max_size=4).filter(any))
def test_a_stream_equals_the_whole(samples: int, sizes: list[int]) -> None:
    sound = talk(2)[8000 : 8000 + samples]
    assert np.allclose(streamed(sound, sizes, -20.0), SpectralSpeech(-20.0)(sound), atol=1e-5)


def test_cuts_make_no_difference_to_the_running_level() -> None:
    sound = talk(3)
    assert np.allclose(streamed(sound, [777, 3]), streamed(sound, [48_000]), atol=1e-5)


def test_the_running_level_comes_to_that_of_the_whole() -> None:
    sound = talk(20, seed=3)
    difference = np.abs(streamed(sound, [1600]) - SpectralSpeech()(sound))
    assert difference[-250:].mean() < 0.01
    assert difference[:100].mean() > difference[-250:].mean()


def test_a_stream_is_as_late_as_it_says() -> None:
    stream = SpectralSpeechStream()
    samples = round(stream.latency * RATE)
    assert len(stream.push(np.zeros(320 + samples - 1))) == 1
    assert len(stream.push(np.zeros(1))) == 1
    stream.finish()
    with pytest.raises(ValueError, match="got 7 samples after finish"):
        stream.push(np.zeros(7))


def test_silence_is_zero_and_noise_is_next_to_it() -> None:
    assert not SpectralSpeech()(np.zeros(5000)).any()
    assert not streamed(np.zeros(5000), [400]).any()
    noise = 1e-4 * np.random.default_rng(0).standard_normal(16_000)
    assert np.abs(SpectralSpeech()(noise)).max() < 0.05


@given(gain=st.floats(-25, 8))
@settings(deadline=None, max_examples=20)
def test_loudness_is_divided_out(gain: float) -> None:
    sound = talk(3)
    louder = sound * 10 ** (gain / 20)
    # A bin of 0.25 dB for a quantile that may move by one step, 1 dB here: 0.02 of the logarithm's range of 50 dB.
    assert np.abs(SpectralSpeech()(louder) - SpectralSpeech()(sound)).max() < 0.025
    assert speech_level(louder) - speech_level(sound) == pytest.approx(gain, abs=1.01)


def test_a_pop_leaves_the_level_to_the_speech() -> None:
    quiet = 0.05 * talk(4)
    pop = np.random.default_rng(0).uniform(-1, 1, RATE // 25)
    popped = np.concatenate([pop, np.zeros(RATE // 2), quiet, pop])
    assert speech_level(popped) == pytest.approx(speech_level(quiet), abs=1.01)
    assert speech_level(pop) > -15, "alone it is what there is"
    steps = slice(30, -5)
    live = streamed(popped, [1600])[steps, LOUDNESS]
    assert live.mean() == pytest.approx(streamed(popped[RATE // 25 :], [1600])[28:-5, LOUDNESS].mean(), abs=0.02)


def test_a_running_level_forgets_who_spoke_before() -> None:
    loud, quiet = np.tile(talk(5), 4), 0.05 * np.tile(talk(5), 60)
    both = streamed(np.concatenate([loud, quiet]), [RATE])
    alone = SpectralSpeech()(quiet)
    assert both[-250:, LOUDNESS].mean() == pytest.approx(alone[-250:, LOUDNESS].mean(), abs=0.05)


def test_an_offset_is_no_sound() -> None:
    sound = talk(2)
    assert not SpectralSpeech()(np.full(8000, 0.4))[2:-2].round(3).any()
    assert np.abs(SpectralSpeech()(sound + 0.3) - SpectralSpeech()(sound))[2:-2].max() < 0.01


def test_clipping_keeps_the_vowels() -> None:
    sound = talk(3)
    clipped = sound.clip(-0.3, 0.3) / 0.3
    a, b = SpectralSpeech()(sound), SpectralSpeech()(clipped)
    assert np.corrcoef(a[:, BANDS].ravel(), b[:, BANDS].ravel())[0, 1] > 0.9


def test_sound_of_8_khz_loses_the_upper_bands_alone() -> None:
    sound = talk(3)
    spectrum = np.fft.rfft(sound)
    spectrum[np.fft.rfftfreq(len(sound), 1 / RATE) > 3900] = 0
    narrow, wide = SpectralSpeech()(np.fft.irfft(spectrum, len(sound))), SpectralSpeech()(sound)
    assert np.abs(narrow[:, :19] - wide[:, :19]).mean() < 0.01
    assert narrow[:, 21:23].max() < 0.02


def test_what_is_measured_of_tones_and_noise() -> None:
    low, high = (SpectralSpeech()(tone(f))[10] for f in (250, 2500))
    hiss = SpectralSpeech()(0.1 * np.random.default_rng(0).standard_normal(8000))[10]
    assert low[MURMUR] > 0.9 and high[MURMUR] < 0.01
    assert low[VOICING] > 0.95 and hiss[VOICING] < 0.5
    assert low[CENTROID] < 0.1 and 0.6 < high[CENTROID] < 0.66
    assert hiss[FLATNESS] > 0.4 and low[FLATNESS] < 0.01
    assert low[BANDS].argmax() < high[BANDS].argmax() < 20


def test_a_closure_is_a_gap() -> None:
    """Sound, 60 ms of silence from 0.30 s on, a burst: the gap shows at its own time."""
    sound = np.concatenate([tone(700, 0.3), np.zeros(960, dtype=np.float32), tone(700, 0.3)])
    features = SpectralSpeech()(sound)
    # Half of the window before the gap's middle at 0.33 s lies in it: steps at 0.32 and 0.34 s.
    assert set(np.argsort(features[:30, LOUDNESS])[:2]) == {16, 17}
    assert features[:, CHANGE].argmax() in (0, 18) and features[18, CHANGE] > 0.2
    assert np.allclose(features[1:, CHANGE], np.diff(features[:, LOUDNESS]), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_types(dtype: type) -> None:
    sound = talk(1)
    given = (sound * 2**15).astype(np.int16) if dtype == np.int16 else sound.astype(dtype)
    assert np.abs(SpectralSpeech()(given) - SpectralSpeech()(sound)).max() < 0.03


def test_bad_sound() -> None:
    with pytest.raises(ValueError, match=r"samples must be \[N\], mono, got \[2, 9\]"):
        SpectralSpeech()(np.zeros((2, 9)))
    with pytest.raises(ValueError, match="sample_rate must be 16000 Hz, got 8000"):
        SpectralSpeech()(np.zeros(9), 8000)
    with pytest.raises(ValueError, match="finite, got 1 values"):
        SpectralSpeechStream().push(np.array([0.0, np.nan]))
    for kind in (SpectralSpeech, SpectralSpeechStream):
        with pytest.raises(ValueError, match="level must be finite dB of full scale, got nan"):
            kind(float("nan"))
    with pytest.raises(TypeError, match="integers or floats"):
        speech_level(np.array(["a"]))


@given(steps=st.integers(1, 60), frames=st.integers(0, 90), fps=st.sampled_from([10, 24, 25, 29.97, 30, 50, 60]))
def test_frames_lie_at_their_times(steps: int, frames: int, fps: float) -> None:
    times = np.arange(steps) / 50
    features = np.tile(times[:, None], (1, 29)) * np.arange(1, 30)
    expected = np.minimum(np.arange(frames) / fps, times[-1])[:, None] * np.arange(1, 30)
    assert np.allclose(to_frame_rate(features, frames, fps), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("features", "frames", "fps", "message"),
    [
        (np.zeros((0, 29)), 5, 25, r"T of at least 1, got \[0, 29\]"),
        (np.zeros((5, 28)), 5, 25, r"\[T, 29\] numbers, got \[5, 28\]"),
        (np.full((5, 29), np.inf), 5, 25, "finite, got 145 values"),
        (np.zeros((5, 29)), -1, 25, "got -1 and 25"),
        (np.zeros((5, 29)), 5, 0, "got 5 and 0"),
    ],
)
def test_bad_features(features: np.ndarray, frames: int, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_frame_rate(features, frames, fps)


def test_precomputed(tmp_path) -> None:
    features = np.random.default_rng(0).standard_normal((50, 29))
    np.save(tmp_path / "a.npy", features)
    np.savez(tmp_path / "a.npz", logits=features)
    for name in ("a.npy", "a.npz"):
        hear: SpeechFeatures = PrecomputedSpeech(tmp_path / name)
        assert np.array_equal(hear(np.zeros(RATE, dtype=np.float32), RATE), features.astype(np.float32))
    with pytest.raises(ValueError, match="features of 2.00 s of sound, got 1.00 s"):
        hear(np.zeros(2 * RATE, dtype=np.float32), RATE)


@given(st.integers(15_600, 16_400), st.lists(st.integers(0, 16_400), max_size=4).map(sorted))
@settings(deadline=None, max_examples=25)
def test_precomputed_beside_the_sound(tmp_path_factory, samples: int, cuts: list[int]) -> None:
    features = np.random.default_rng(0).standard_normal((50, 29)).astype(np.float32)
    path = tmp_path_factory.mktemp("features") / "a.npy"
    np.save(path, features)
    stream, parts, heard = PrecomputedSpeechStream(PrecomputedSpeech(path)), [], 0
    for piece in np.split(np.zeros(samples, np.float32), cuts):
        parts.append(stream.push(piece))
        heard += len(piece)
        assert sum(map(len, parts)) == min(50, heard // 320)
    found = np.concatenate([*parts, stream.finish()])
    assert len(found) == -(-samples // 320)
    assert np.array_equal(found, features[np.arange(len(found)).clip(max=49)])


def test_bad_files(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot read speech features from .*none.npy"):
        PrecomputedSpeech(tmp_path / "none.npy")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match="cannot read speech features"):
        PrecomputedSpeech(tmp_path / "text.npy")
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(ValueError, match="it must hold one array"):
        PrecomputedSpeech(tmp_path / "two.npz")
    np.save(tmp_path / "none.npy", np.zeros((0, 29)))
    with pytest.raises(ValueError, match=r"T of at least 1, got \[0, 29\]"):
        PrecomputedSpeech(tmp_path / "none.npy")
    np.save(tmp_path / "shape.npy", np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"got \[3, 5\]"):
        PrecomputedSpeech(tmp_path / "shape.npy")
