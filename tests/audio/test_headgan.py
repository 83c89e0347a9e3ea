"""HeadGAN's vector: the goldens, and the live form against the whole one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.audio import AudioVectorStream, Characters, LiveCharacters, Normalization, audio_vectors, low_level
from fastface.audio.headgan import Windows
from tests import goldens
from tests.audio.signals import talk


def live(stream: AudioVectorStream, samples: np.ndarray, sizes: list[int]) -> np.ndarray:
    """The vectors of a sound that comes in pieces of the given sizes, over and over."""
    parts, at, index = [], 0, 0
    while at < len(samples):
        size = sizes[index % len(sizes)]
        parts.append(stream.push(samples[at : at + size]))
        at, index = at + size, index + 1
    return np.concatenate([*parts, stream.finish()])


def spoken(seconds: float, seed: int = 0) -> Characters:
    """Characters whose starts lie on no frame's time."""
    rng = np.random.default_rng(seed)
    starts = np.arange(0.1, seconds, 0.07) + rng.uniform(0, 0.03)
    return Characters("".join(rng.choice(list(" abcxyz'"), len(starts))), starts)


@pytest.mark.parametrize("fps", [25, 30])
def test_goldens(fps: int) -> None:
    recipe, arrays = goldens.load("audio.features.npz")
    signal, expected = arrays["in.signal"], arrays[f"headgan84.fps{fps}"]
    assert np.abs(low_level(signal, 16_000, fps, published=True) - expected).max() < 1e-9
    characters = Characters(recipe["notes"]["tokens.text"], arrays["in.tokens.start"])
    vectors = audio_vectors(signal[:32_000], 16_000, fps, characters=characters, published=True, frames=2 * fps)
    assert vectors.shape == (2 * fps, 300) and vectors.dtype == np.float32
    classes = vectors[:, 84:].reshape(-1, 8, 27).argmax(-1)
    assert np.array_equal(classes, arrays[f"onehot_index.fps{fps}"])


def test_float_and_integer_samples_agree() -> None:
    _, arrays = goldens.load("audio.features.npz")
    signal = arrays["in.signal"]
    assert np.abs(low_level(signal / 2.0**15) - arrays["headgan84.fps25"]).max() < 1e-9


def test_at_25_fps_the_published_windows_keep_time() -> None:
    sound = talk(3)
    assert np.array_equal(low_level(sound), low_level(sound, published=True))
    published, exact = Windows(16_000, 30, published=True), Windows(16_000, 30)
    drift = (exact.start(1800) - published.start(1800)) * exact.step / 16_000
    assert drift == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("fps", [1, 12.5, 24, 29.97, 60, 120])
def test_frames_keep_time_at_every_rate(rate: int, fps: float) -> None:
    windows = Windows(rate, fps)
    for frame in (0, 1, 999):
        assert abs(windows.start(frame) * windows.step / rate - frame / fps) <= windows.step / rate
    short = ((10 * rate) - windows.window) // windows.step + 1
    assert abs(len(list(windows.starts(short))) - 10 * fps) <= 1
    assert windows.length * windows.step / rate == pytest.approx(8 / fps, rel=0.07)


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5), fps=st.sampled_from([25, 29.97, 60]))
def test_pieces_of_any_size_change_no_bit(sizes: list[int], fps: float) -> None:
    sound = talk(1.2)
    characters = spoken(1.2)
    whole = live(AudioVectorStream(16_000, fps, characters=characters), sound, [len(sound)])
    assert np.array_equal(live(AudioVectorStream(16_000, fps, characters=characters), sound, sizes), whole)


@settings(max_examples=10, deadline=None)
@given(
    samples=st.integers(700, 30_000),
    fps=st.sampled_from([12.5, 25, 29.97, 30, 60]),
    rate=st.sampled_from([8000, 16_000, 44_100]),
)
def test_live_equals_whole_where_the_normalisation_is_given(samples: int, fps: float, rate: int) -> None:
    sound = talk(samples / rate + 1, rate=rate)[: max(samples, rate // int(fps))]
    normalization, characters = Normalization.of(sound), spoken(samples / rate)
    expected = audio_vectors(sound, rate, fps, characters=characters, normalization=normalization)
    stream = AudioVectorStream(rate, fps, characters=characters, normalization=normalization)
    result = live(stream, sound, [997])
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() < 1e-6
    assert np.array_equal(audio_vectors(sound, rate, fps, characters=characters), expected)


def test_a_frame_comes_at_its_latency_and_reads_nothing_later() -> None:
    sound = talk(2)
    stream = AudioVectorStream(normalization=Normalization(0.0, 1.0))
    assert stream.latency == 0.3375
    whole = live(AudioVectorStream(normalization=Normalization(0.0, 1.0)), sound, [4000])
    for frame in range(20):
        last = round((frame / 25 + stream.latency) * 16_000)
        begin = 0 if frame == 0 else last - 640
        assert len(stream.push(sound[begin : last - 1])) == 0
        assert np.array_equal(stream.push(sound[last - 1 : last]), whole[frame : frame + 1])


def test_the_running_normalisation_settles() -> None:
    """In standard deviations of each number: docs/audio.md."""
    sound = talk(20, silence=2)
    expected, result = low_level(sound), live(AudioVectorStream(), sound, [640])[:, :84]
    error = np.abs(result - expected) / expected.std(0)
    assert 0.3 < error[:75].max() < 6
    assert np.median(error) < 0.005 and error[250:].max() < 0.3


def test_the_running_normalisation_is_the_whole_one_once_it_has_heard_all() -> None:
    """One frame's window spans the sound: it hears what the offline form hears."""
    sound = talk(0.3375)
    first = AudioVectorStream(peak=0.0).push(sound)
    assert np.array_equal(first, audio_vectors(sound)[:1])


def test_live_characters_wait_and_agree() -> None:
    sound, characters = talk(4), spoken(4)

    def hear(samples: np.ndarray, rate: int) -> Characters:
        """Knows when it is by the samples themselves."""
        first = next(i for i in range(len(sound)) if np.array_equal(sound[i : i + 50], samples[:50])) / rate
        inside = (characters.starts >= first) & (characters.starts < first + len(samples) / rate)
        text = "".join(np.array(list(characters.text))[inside])
        return Characters(text, characters.starts[inside] - first)

    expected = live(AudioVectorStream(characters=characters), sound, [1000])
    for sizes in ([640], [100, 20_000]):
        result = live(AudioVectorStream(characters=LiveCharacters(hear)), sound, sizes)
        assert np.array_equal(result, expected)
    stream = AudioVectorStream(characters=LiveCharacters(hear, left=0.5, stride=0.4, right=0.2))
    # Frame 0 shows characters up to 0.32 s: known at 0.4 s, once 0.6 s are there.
    assert len(stream.push(sound[:9599])) == 0 and len(stream.push(sound[9599:9600])) == 2


def test_the_order_of_the_300() -> None:
    sound = talk(1)
    vectors = audio_vectors(sound, characters=Characters("q", np.array([0.0])))
    assert np.array_equal(vectors[:, :84], low_level(sound).astype(np.float32))
    assert (vectors[:, 84:].reshape(-1, 8, 27).argmax(-1) == 16).all() and (vectors[:, 84:].sum(1) == 8).all()
    assert (audio_vectors(sound)[:, 84:] == 0).all()
    blank = audio_vectors(sound, characters=Characters.none())[:, 84:].reshape(-1, 8, 27)
    assert (blank.argmax(-1) == 26).all() and blank.sum() == 8 * len(blank)


def test_frames_are_cut_and_repeated() -> None:
    vectors = audio_vectors(talk(1))
    assert np.array_equal(audio_vectors(talk(1), frames=7), vectors[:7])
    longer = audio_vectors(talk(1), frames=len(vectors) + 3)
    assert np.array_equal(longer[:-3], vectors) and (longer[-3:] == vectors[-1]).all()


@pytest.mark.parametrize("value", [0.0, 0.25, -1.0])
def test_silence_is_valid(value: float) -> None:
    silence = np.full(16_000, value, dtype=np.float32)
    for vectors in (audio_vectors(silence), live(AudioVectorStream(), silence, [333])):
        assert vectors.shape == (25, 300) and np.isfinite(vectors).all()


def test_a_stream_without_a_whole_window() -> None:
    assert live(AudioVectorStream(), np.zeros(319, dtype=np.float32), [100]).shape == (0, 300)
    assert AudioVectorStream().finish().shape == (0, 300)
    stream = AudioVectorStream()
    assert stream.push(np.zeros(0)).shape == (0, 300) and len(stream.push(np.zeros(320))) == 0
    assert len(stream.finish()) == 1 and len(stream.finish()) == 0
    with pytest.raises(ValueError, match="must not have ended, got 5 samples"):
        stream.push(np.zeros(5))


def test_bad_arguments() -> None:
    sound = talk(1)
    for call, error, message in (
        (lambda: audio_vectors(sound[:319]), ValueError, "a short window of 320, got 319"),
        (lambda: audio_vectors([]), ValueError, "a short window of 320, got 0"),
        (lambda: audio_vectors(sound[None]), ValueError, r"samples must be \[N\], mono, got \[1, 16000\]"),
        (lambda: audio_vectors([np.nan] * 500), ValueError, "samples must be finite, got 500 values"),
        (lambda: audio_vectors(["a"]), TypeError, "samples must be integers or floats, got <U1"),
        (lambda: audio_vectors(sound, fps=0), ValueError, "fps must be from 1 to 240, got 0"),
        (lambda: audio_vectors(sound, fps=float("nan")), ValueError, "fps must be from 1 to 240, got nan"),
        (lambda: audio_vectors(sound, 900), ValueError, "sample_rate must be at least 40 fps = 1000 Hz, got 900"),
        (lambda: audio_vectors(sound, frames=0), ValueError, "frames must be at least 1, got 0"),
        (lambda: AudioVectorStream(peak=-1), ValueError, "peak must be at least 0, got -1"),
        (
            lambda: AudioVectorStream(8000, characters=LiveCharacters(lambda samples, rate: Characters.none())),
            ValueError,
            "live characters must hear 8000 Hz, got 16000",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    stream = AudioVectorStream()
    stream.push(sound[:5000])
    with pytest.raises(ValueError, match="finite"):
        stream.push([np.inf])
    assert np.array_equal(stream.push(sound[5000:5400]), AudioVectorStream().push(sound[:5400]))
