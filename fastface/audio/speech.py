"""What a face hears of speech: 29 numbers per 20 ms, from a recogniser, from a file, or measured with no training.

Step n stands for the time n / 50 s. `to_frame_rate` takes frame t for t / fps s and interpolates between steps.

`SpectralSpeech` keeps of sound what lips show. Its window is 32 ms (Hann) around the step's time; with the power P(f)
of a bin, pre-emphasised by |1 - 0.97 exp(-iω)|² in the bands, and l(x) = log(1 + 10⁵ x) / log(1 + 10⁵):

====== =================================================================================================
0..22  l(B P / level): 20 triangular mel bands over 100 to 4000 Hz, 3 over 4000 to 7600 Hz, empty in sound of 8 kHz
23     loudness l(Σ P / level) over 80 to 4000 Hz
24     loudness less that of the step before: closures and bursts
25     murmur: the share of 80 to 400 Hz in Σ P (high in m and n, in closed vowels)
26     voicing: the autocorrelation's peak over pitches of 70 to 400 Hz, over that of the window (Boersma 1993)
27     centroid of P over 4000 Hz (low in rounded vowels, high in fricatives)
28     flatness: geometric over arithmetic mean of P over 80 to 4000 Hz
====== =================================================================================================

25 to 28 are multiplied by the loudness, so that silence is the zero vector and a faint noise is next to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from fastface.audio.sound import SAMPLE_RATE, Samples, to_float

Features = NDArray[np.float32]
_Array = NDArray[np.float64]

FEATURES = 29
STEP_RATE = 50  # steps per second
# Columns of SpectralSpeech.
BANDS = slice(0, 23)
LOUDNESS, CHANGE, MURMUR, VOICING, CENTROID, FLATNESS = range(23, FEATURES)

_STEP = SAMPLE_RATE // STEP_RATE
_WINDOW = 512
_BINS = 2 * _WINDOW  # of the FFT: padded to twice the window, the autocorrelation does not wrap
_RANGE = 1e5  # what is 50 dB below the level counts as little
_QUANTILE = 0.9  # of the loudness of what is heard: the level of vowels
_QUIETEST, _LOUDEST = -60.0, 10.0  # dB of full scale; below the one nothing is heard
_DECIBEL = 0.25  # the histogram's bins
_DYNAMICS = 30.0  # dB under the loudest sound that are still speech
_LASTING = 10, 0.01  # steps, and share of them, that the loudest sound takes at least: a pop or a clap is none
_MEMORY = 60 * STEP_RATE  # steps after which what was heard counts 1/e; after five times as many it counts for nothing
_LOWEST_LEVEL = -50.0
_USUAL_LEVEL = -25.0
_AT_ONCE = 1024  # steps; keeps the working set within tens of megabytes


class SpeechFeatures(Protocol):
    """Anything that hears speech as ``[T, 29]`` float32, 50 steps per second: called with mono samples ``[N]`` and
    their rate, 16000 Hz. `SpectralSpeech()`, `PrecomputedSpeech(path)`, a `Wav2Vec2Recognizer`'s `log_probabilities`.
    """

    def __call__(self, samples: Samples, sample_rate: int) -> Features: ...


class PrecomputedSpeech:
    """Features that another program computed: a `.npy` of ``[T, 29]``, or a `.npz` with that array, 50 steps a second.

    Raises:
        ValueError: no such file, not such an array, none, or values that are not finite.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            stored = np.load(self.path, allow_pickle=False)
            if isinstance(stored, np.lib.npyio.NpzFile):
                with stored:
                    if len(stored.files) != 1:
                        raise ValueError(f"it must hold one array, got {stored.files}")
                    stored = stored[stored.files[0]]
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"cannot read speech features from {path}: {error}") from error
        self.features: Features = _checked(np.asarray(stored))

    def __call__(self, samples: Samples, sample_rate: int) -> Features:
        """The features. Raises ValueError for sound whose length differs from theirs by more than 0.2 s."""
        self.check(len(samples) / sample_rate)
        return self.features

    def check(self, expected: float) -> None:
        """Raises ValueError for sound of so many seconds where that is not the features' length within 0.2 s."""
        seconds = len(self.features) / STEP_RATE
        if abs(seconds - expected) > 0.2:
            raise ValueError(f"{self.path} must be features of {expected:.2f} s of sound, got {seconds:.2f} s")


class PrecomputedSpeechStream:
    """`PrecomputedSpeech` beside its sound as that comes: step n with the sound up to (n + 1) / 50 s."""

    def __init__(self, speech: PrecomputedSpeech) -> None:
        self._speech = speech
        self._samples = self._steps = 0  # so far

    def push(self, samples: Samples) -> Features:
        """``[n, 29]``, often none; none either beyond the end of the file's."""
        self._samples += len(samples)
        return self._until(self._samples // _STEP)

    def finish(self) -> Features:
        """The steps that are left of ``ceil(N / 320)``, the last one of the file held.

        Raises ValueError where sound and features differ by more than 0.2 s.
        """
        self._speech.check(self._samples / SAMPLE_RATE)
        rest = self._until(_count(self._samples))
        return np.concatenate([rest, self._speech.features[-1:].repeat(_count(self._samples) - self._steps, 0)])

    def _until(self, step: int) -> Features:
        steps = self._speech.features[self._steps : step]
        self._steps += len(steps)
        return steps


class SpectralSpeech:
    """The measured features of a whole sound, ``ceil(N / 320)`` steps; the sound is silent beyond its ends.

    Args:
        level: that of the speech in dB of full scale, such as `speech_level` of an earlier recording with the same
            microphone; None: that of each sound.

    Raises:
        ValueError: a level that is not finite.
    """

    def __init__(self, level: float | None = None) -> None:
        self.level = _finite(level)

    def __call__(self, samples: ArrayLike, sample_rate: int = SAMPLE_RATE) -> Features:
        """``[T, 29]`` of mono samples ``[N]``, integers or floats in [-1, 1]. Silence is valid and gives zeros.

        Raises:
            TypeError: samples that are not integers or floats.
            ValueError: samples that are not ``[N]`` or not finite, or a rate but 16000 Hz (`as_audio` resamples).
        """
        spectra = _Spectra.of(_mono(samples, sample_rate))
        level = self.level if self.level is not None else _Level().heard(spectra.loudness)
        return spectra.features(np.full(len(spectra.loudness), level))


class SpectralSpeechStream:
    """`SpectralSpeech` live: push samples in pieces of any size, get the steps that they complete.

    Step n comes with the sound up to `latency` = 0.016 s past its time. With a `level` the steps equal those of
    `SpectralSpeech(level)` to rounding. Without one, each step takes the level of the last five minutes; it starts as
    if half a second of usual speech had been heard (-25 dB of full scale).
    """

    latency = _WINDOW / 2 / SAMPLE_RATE

    def __init__(self, level: float | None = None) -> None:
        self._fixed, self._running = _finite(level), _Level(prior=STEP_RATE // 2, memory=_MEMORY)
        self._buffer: Samples = np.zeros(_WINDOW // 2, dtype=np.float32)  # the silence before the sound
        self._before = 0.0  # loudness of the last step
        self._length = self._steps = 0  # samples and steps so far
        self._ended = False

    def push(self, samples: ArrayLike, sample_rate: int = SAMPLE_RATE) -> Features:
        """``[n, 29]``, often none. Errors as in `SpectralSpeech`, and ValueError after `finish`."""
        values = _mono(samples, sample_rate)
        if self._ended:
            raise ValueError(f"the stream must not have ended, got {len(values)} samples after finish()")
        self._length += len(values)
        return self._advance(values)

    def finish(self) -> Features:
        """The last steps, once the sound has ended."""
        self._ended = True
        missing = _count(self._length) - self._steps
        return self._advance(np.zeros(max(0, (missing - 1) * _STEP + _WINDOW - len(self._buffer)), dtype=np.float32))

    def _advance(self, values: Samples) -> Features:
        self._buffer = np.concatenate([self._buffer, values])
        spectra = _Spectra(self._buffer)
        count = len(spectra.loudness)
        self._buffer = self._buffer[count * _STEP :]
        self._steps += count
        levels = [
            self._running.heard(part) if self._fixed is None else self._fixed for part in spectra.loudness[:, None]
        ]
        features = spectra.features(np.array(levels), self._before)
        if count:
            self._before = float(features[-1, LOUDNESS])
        return features


def speech_level(samples: ArrayLike, sample_rate: int = SAMPLE_RATE) -> float:
    """The level of speech in dB of full scale: the loudness that a tenth of the steps within 30 dB of the loudest sound
    exceed, at least -50; -25 where nothing is over -60.

    The loudest sound is what lasts 0.2 s and 1 % of all that is over -60 dB, or half of it where it is shorter. So a
    pop or a clap does not count. Errors as in `SpectralSpeech`.
    """
    return _Level().heard(_Spectra.of(_mono(samples, sample_rate)).loudness)


def to_frame_rate(features: ArrayLike, frames: int, fps: float) -> Features:
    """Features ``[T, 29]`` of steps at n / 50 s for frames at t / fps s, ``[frames, 29]``: linear, the ends held.

    Raises:
        ValueError: features that are not finite ``[T, 29]`` with T of at least 1, negative frames, fps not positive.
    """
    steps = _checked(features)
    if frames < 0 or not 0 < fps < np.inf:
        raise ValueError(f"frames must be at least 0 and fps positive, got {frames} and {fps}")
    at = (np.arange(frames) * (STEP_RATE / fps)).clip(max=len(steps) - 1)
    left = at.astype(np.intp)
    right = (left + 1).clip(max=len(steps) - 1)
    share = (at - left).astype(np.float32)[:, None]
    return np.asarray((1 - share) * steps[left] + share * steps[right])


class _Level:
    """The level of what has been heard, from a histogram of its loudness.

    Args:
        prior: how many steps at the usual level count as heard.
        memory: steps after which what was heard counts 1/e, so that a level follows who speaks now; none by default.
    """

    def __init__(self, prior: int = 0, memory: float = np.inf) -> None:
        self._counts = np.zeros(round((_LOUDEST - _QUIETEST) / _DECIBEL))
        self._counts[round((_USUAL_LEVEL - _QUIETEST) / _DECIBEL)] = prior
        self._memory = memory

    def heard(self, loudness: _Array) -> float:
        """The level after steps of that power ``[n]``."""
        decibels = 10 * np.log10(loudness + 1e-12)
        bins = np.rint((decibels[decibels > _QUIETEST] - _QUIETEST) / _DECIBEL).astype(np.intp)
        self._counts *= np.exp(-len(bins) / self._memory)
        np.add.at(self._counts, bins.clip(max=len(self._counts) - 1), 1)
        heard = self._counts.sum()
        if not heard:
            return _USUAL_LEVEL
        steps, share = _LASTING
        lasting = min(max(steps, share * heard), heard / 2)
        loudest = int(np.flatnonzero(self._counts[::-1].cumsum()[::-1] >= lasting)[-1])
        speech = np.arange(len(self._counts)) >= loudest - _DYNAMICS / _DECIBEL
        reached = (self._counts * speech).cumsum()
        return max(_LOWEST_LEVEL, _QUIETEST + _DECIBEL * int(np.searchsorted(reached, _QUANTILE * reached[-1])))


def _mel_bands(low: float, high: float, count: int) -> _Array:
    """``[count, bins]``: triangles of height 1 whose corners are even on the mel scale 2595 log10(1 + f / 700)."""
    first, last = 2595 * np.log10(1 + np.array([low, high]) / 700)
    corners = 700 * (10 ** (np.linspace(first, last, count + 2) / 2595) - 1)
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rise, fall = (_FREQUENCY - left) / (centre - left), (right - _FREQUENCY) / (right - centre)
    return np.asarray(np.minimum(rise, fall).clip(min=0))


_FREQUENCY = np.fft.rfftfreq(_BINS, 1 / SAMPLE_RATE)
_HANN = np.hanning(_WINDOW + 1)[:-1]
_EMPHASIS = np.abs(1 - 0.97 * np.exp(-2j * np.pi * _FREQUENCY / SAMPLE_RATE)) ** 2
_BANDS = (np.concatenate([_mel_bands(100, 4000, 20), _mel_bands(4000, 7600, 3)]) * _EMPHASIS).T
_HEARD = (_FREQUENCY >= 80) & (_FREQUENCY <= 4000)
_LAGS = slice(SAMPLE_RATE // 400, SAMPLE_RATE // 70)
_WINDOW_CORRELATION = np.fft.irfft(np.abs(np.fft.rfft(_HANN, _BINS)) ** 2)[_LAGS] / (_HANN**2).sum()


class _Spectra:
    """What is measured of steps before the level is known; step n is the n-th window of the signal."""

    def __init__(self, signal: Samples) -> None:
        count = max(0, (len(signal) - _WINDOW) // _STEP + 1)
        parts = [
            self._measure(signal[first * _STEP : (min(first + _AT_ONCE, count) - 1) * _STEP + _WINDOW])
            for first in range(0, count, _AT_ONCE)
        ]
        measured = np.concatenate([np.zeros((0, _BANDS.shape[1] + 5)), *parts])
        self._bands, self.loudness, self._shapes = np.split(measured, [LOUDNESS, LOUDNESS + 1], axis=1)
        self.loudness = self.loudness[:, 0]  # power; 1 is that of full scale

    @classmethod
    def of(cls, samples: Samples) -> _Spectra:
        """Those of a whole sound."""
        lead, end = _WINDOW // 2, (_count(len(samples)) - 1) * _STEP + _WINDOW
        return cls(np.pad(samples, (lead, max(0, end - lead - len(samples)))))

    def features(self, levels: _Array, before: float = 0.0) -> Features:
        """``[n, 29]`` at levels ``[n]`` in dB, after a step of loudness `before`."""
        reference = 10 ** (levels[:, None] / 10)
        bands, loudness = (_compressed(power / reference) for power in (self._bands, self.loudness[:, None]))
        change = np.diff(loudness, axis=0, prepend=before)
        return np.hstack([bands, loudness, change, loudness * self._shapes]).astype(np.float32)

    @staticmethod
    def _measure(signal: Samples) -> _Array:
        """``[n, 28]``: the power in the bands and of all, murmur, voicing, centroid, flatness."""
        windows = sliding_window_view(signal, _WINDOW)[::_STEP]
        windows = (windows - (windows @ _HANN / _HANN.sum())[:, None]) * _HANN  # an offset would leak into low bands
        power = np.abs(np.fft.rfft(windows, _BINS)) ** 2 * (2 / _BINS / (_HANN**2).sum())
        heard = power * _HEARD
        total = heard.sum(1, keepdims=True)
        known = total.clip(min=1e-12)
        correlation = np.fft.irfft(heard)
        peaks = correlation[:, _LAGS] / correlation[:, :1].clip(min=1e-15) / _WINDOW_CORRELATION
        voicing = peaks.max(1, keepdims=True).clip(0, 1)
        murmur = heard[:, _FREQUENCY < 400].sum(1, keepdims=True) / known
        centroid = heard @ _FREQUENCY[:, None] / known / 4000
        inside = power[:, _HEARD] + 1e-15
        flatness = np.exp(np.log(inside).mean(1, keepdims=True)) / inside.mean(1, keepdims=True)
        return np.hstack([power @ _BANDS, total, murmur, voicing, centroid, flatness])


def _compressed(ratio: _Array) -> _Array:
    return np.asarray(np.log1p(_RANGE * ratio) / np.log1p(_RANGE))


def _count(samples: int) -> int:
    return -(-samples // _STEP)


def _finite(level: float | None) -> float | None:
    if level is not None and not np.isfinite(level):
        raise ValueError(f"level must be finite dB of full scale, got {level}")
    return level


def _mono(samples: ArrayLike, sample_rate: int) -> Samples:
    values = to_float(samples)
    if values.ndim != 1:
        raise ValueError(f"samples must be [N], mono, got {list(values.shape)}")
    if sample_rate != SAMPLE_RATE:
        raise ValueError(f"sample_rate must be {SAMPLE_RATE} Hz, got {sample_rate}")
    return values


def _checked(features: ArrayLike) -> Features:
    values = np.asarray(features)
    if values.ndim != 2 or values.shape[1] != FEATURES or values.dtype.kind not in "iuf":
        raise ValueError(f"features must be [T, {FEATURES}] numbers, got {list(values.shape)} {values.dtype}")
    if not len(values):
        raise ValueError(f"features must be [T, {FEATURES}] with T of at least 1, got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"features must be finite, got {int((~np.isfinite(values)).sum())} values that are not")
    return values.astype(np.float32)
