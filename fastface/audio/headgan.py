"""HeadGAN's audio vector: 300 numbers per video frame, of a whole sound or live.

84 low-level numbers, the means and then the population standard deviations of the 42 short-term features over a window
of eight frames that starts with the frame, then 216 high-level ones (`fastface.audio.characters.one_hots`). A short
window lasts half a frame and sixteen start per frame: at 25 fps and 16 kHz 320 samples every 40, 128 for a frame.
Source: Doukas et al., "HeadGAN", ICCV 2021, section 3.2, read as its authors' program behaves: the low-level window
starts with the frame instead of lying around it, and the logits are one-hots of 27 classes in eight slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastface.audio.characters import CLASSES, LOOK_AHEAD, SLOTS, Characters, LiveCharacters, one_hots
from fastface.audio.short_term import LEAD, NAMES, ShortTermFeatures
from fastface.audio.sound import SAMPLE_RATE, Samples, to_float

SIZE = 4 * len(NAMES) + len(SLOTS) * CLASSES

Vectors = NDArray[np.float32]
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """Which short windows make a video frame.

    Attributes:
        sample_rate: Hz; networks were trained at 16000.
        fps: of the video.
        published: a frame starts a fixed number of short windows after the one before, as the authors have it. At
            25 fps and 16 kHz that is exact; at 30 fps it runs 1 % slow, 0.6 s per minute. Otherwise a frame starts at
            the short window nearest to its time.

    Raises:
        ValueError: fps outside 1 to 240, or a rate too low for short windows of 20 samples.
    """

    sample_rate: int = SAMPLE_RATE
    fps: float = 25.0
    published: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.fps <= 240:
            raise ValueError(f"fps must be from 1 to 240, got {self.fps}")
        if not self.sample_rate >= 40 * self.fps:
            raise ValueError(f"sample_rate must be at least 40 fps = {40 * self.fps:g} Hz, got {self.sample_rate}")

    @property
    def samples_per_frame(self) -> float:
        return self.sample_rate / self.fps

    @property
    def window(self) -> int:
        """Of a short window, samples."""
        return round(self.samples_per_frame / 2)

    @property
    def step(self) -> int:
        """Between short windows, samples."""
        return round(self.samples_per_frame / 16)

    @property
    def length(self) -> int:
        """Of a frame, short windows."""
        return round(round(8 * self.samples_per_frame) / self.step)

    def start(self, frame: int) -> int:
        """The first short window of a frame."""
        if self.published:
            return frame * round(round(self.samples_per_frame) / self.step)
        return round(frame * self.samples_per_frame / self.step)

    def starts(self, short_windows: int) -> Iterator[int]:
        """`start` of every frame that starts within that many short windows."""
        return itertools.takewhile(lambda start: start < short_windows, map(self.start, itertools.count()))

    def end(self, short_windows: int) -> int:
        """The samples that so many short windows take."""
        return (short_windows - 1) * self.step + self.window

    def features(self) -> ShortTermFeatures:
        return ShortTermFeatures(self.sample_rate, self.window, self.step)


@dataclass(frozen=True)
class Normalization:
    """``(x - offset) / (peak + 1e-10)``, the offset being a mean and the peak the largest absolute value before it is
    taken off.
    """

    offset: float
    peak: float

    @classmethod
    def of(cls, samples: Samples) -> Normalization:
        """That of a whole sound, as published."""
        return cls(float(samples.mean(dtype=np.float64)), float(np.abs(samples).max()))

    def __call__(self, samples: Samples) -> _Array:
        return np.asarray((samples.astype(np.float64) - self.offset) / (self.peak + 1e-10))


def low_level(
    samples: ArrayLike,
    sample_rate: int = SAMPLE_RATE,
    fps: float = 25.0,
    *,
    normalization: Normalization | None = None,
    published: bool = False,
) -> NDArray[np.float64]:
    """The 84 low-level numbers of every frame, ``[frames, 84]``: 42 means, then 42 population standard deviations, each
    in the order of `short_term.NAMES` with the deltas behind. The last frames have fewer short windows.

    Arguments and errors as in `audio_vectors`.
    """
    windows, values = Windows(sample_rate, fps, published), _mono(samples)
    if len(values) < windows.window:
        raise ValueError(f"samples must hold a short window of {windows.window}, got {len(values)}")
    rows = windows.features()((normalization or Normalization.of(values))(values))
    return np.stack([_statistics(rows[start : start + windows.length]) for start in windows.starts(len(rows))])


def audio_vectors(
    samples: ArrayLike,
    sample_rate: int = SAMPLE_RATE,
    fps: float = 25.0,
    *,
    characters: Characters | None = None,
    frames: int | None = None,
    normalization: Normalization | None = None,
    published: bool = False,
) -> Vectors:
    """HeadGAN's vector for every video frame of a sound, ``[frames, 300]``: 84 low-level and 216 high-level numbers.

    Args:
        samples: mono ``[N]``, integers or floats in [-1, 1]. Silence is valid and gives finite numbers.
        sample_rate: Hz; networks were trained at 16000.
        fps: of the video.
        characters: what a `CharacterRecognizer` heard; None gives 216 zeros.
        frames: how many are wanted, the last one repeated where the sound is shorter; None: all that the sound has.
        normalization: None: that of all `samples`.
        published: also keep two slips of the authors' program, which matter for parity only: frames that drift at rates
            such as 30 fps (`Windows.published`), and ties between characters (`Characters.at_published`).

    Raises:
        TypeError: samples that are not integers or floats.
        ValueError: samples that are not ``[N]``, not finite, or under one short window (half a frame); fps or a rate
            out of range; frames under 1.
    """
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    low = low_level(samples, sample_rate, fps, normalization=normalization, published=published)
    high = one_hots(characters, np.arange(len(low)), fps, count=len(low), published=published)
    vectors = np.hstack([low.astype(np.float32), high])
    return vectors if frames is None else vectors[np.arange(frames).clip(max=len(vectors) - 1)]


class AudioVectorStream:
    """`audio_vectors` live: push samples in pieces of any size, get the vectors of the frames that they complete.

    Frame i comes once the sound has reached `latency` seconds past its time (0.34 s at 25 fps) and live characters are
    known to eight frames past it. How the sound is cut into pieces changes no bit.

    With a `normalization` the vectors equal those of `audio_vectors` with the same one, to rounding. Without one the
    mean and the peak of the sound so far stand in for those of the whole; a short window keeps the normalisation of the
    frame that first needed it. docs/audio.md has the difference.

    Args:
        sample_rate: Hz; networks were trained at 16000.
        fps: of the video.
        characters: all of them beforehand, a `LiveCharacters`, or None for zeros.
        normalization: a fixed one, such as that of an earlier recording with the same microphone.
        peak: where the running peak starts, so that noise before the first word is not raised to full scale.

    Raises:
        ValueError: fps or a rate out of range, a negative peak, or live characters at another rate.
    """

    def __init__(
        self,
        sample_rate: int = SAMPLE_RATE,
        fps: float = 25.0,
        *,
        characters: Characters | LiveCharacters | None = None,
        normalization: Normalization | None = None,
        peak: float = 0.1,
    ) -> None:
        self.windows = Windows(sample_rate, fps)
        self._features = self.windows.features()
        self._live = characters if isinstance(characters, LiveCharacters) else None
        self._given = None if isinstance(characters, LiveCharacters) else characters
        if self._live and self._live.sample_rate != sample_rate:
            raise ValueError(f"live characters must hear {sample_rate} Hz, got {self._live.sample_rate}")
        self._fixed, self._running = normalization, _RunningNormalization(peak)
        self._buffer: Samples = np.zeros(0, dtype=np.float32)
        self._origin = 0  # samples before the buffer
        self._rows = np.zeros((0, 2 * len(NAMES)))
        self._first = 0  # short windows before the rows
        self._frame = 0  # the next to come
        self._ended = False

    @property
    def latency(self) -> float:
        """Seconds of sound past a frame's time that its low-level numbers need."""
        return self.windows.end(self.windows.length) / self.windows.sample_rate

    def push(self, samples: ArrayLike) -> Vectors:
        """Mono ``[n]``, integers or floats in [-1, 1]; returns ``[frames, 300]``, often none.

        Raises:
            TypeError, ValueError: samples that are not numbers, not ``[n]`` or not finite, or sound after `finish`; the
                stream is as before.
        """
        values = _mono(samples)
        if self._ended:
            raise ValueError(f"the stream must not have ended, got {len(values)} samples after finish()")
        self._buffer = np.concatenate([self._buffer, values])
        if self._live:
            self._live.push(values)
        return self._vectors(list(itertools.takewhile(self._is_ready, itertools.count(self._frame))))

    def finish(self) -> Vectors:
        """The frames that are left, with fewer short windows, once the sound has ended."""
        self._ended = True
        if self._live:
            self._live.finish()
        count = sum(1 for _ in self.windows.starts(self._short_windows))
        return self._vectors(list(range(self._frame, count)), count)

    @property
    def _short_windows(self) -> int:
        return self._features.count(self._origin + len(self._buffer))

    def _is_ready(self, frame: int) -> bool:
        if self.windows.start(frame) + self.windows.length > self._short_windows:
            return False
        needed = (frame + SLOTS[-1] + LOOK_AHEAD) / self.windows.fps
        return not self._live or self._live.known > needed

    def _vectors(self, frames: list[int], count: int | None = None) -> Vectors:
        if not frames:
            return np.zeros((0, SIZE), dtype=np.float32)
        low = np.stack([self._low_level(frame) for frame in frames]).astype(np.float32)
        characters = self._live.characters if self._live else self._given
        high = one_hots(characters, np.array(frames), self.windows.fps, count=count)
        self._frame += len(frames)
        self._trim()
        return np.hstack([low, high])

    def _low_level(self, frame: int) -> _Array:
        start = self.windows.start(frame)
        self._extend(min(start + self.windows.length, self._short_windows))
        self._rows, self._first = self._rows[start - self._first :], start
        return _statistics(self._rows)

    def _extend(self, stop: int) -> None:
        """The rows up to short window `stop`; the running normalisation hears no more than those windows do, however
        much has been pushed.
        """
        done = self._first + len(self._rows)
        if stop == done:
            return
        lead = min(LEAD, done)
        end = self.windows.end(stop) - self._origin
        self._running.hear(self._buffer[self._running.count - self._origin : end])
        normalize = self._fixed or self._running.normalization
        part = self._buffer[(done - lead) * self.windows.step - self._origin : end]
        self._rows = np.concatenate([self._rows, self._features(normalize(part))[lead:]])

    def _trim(self) -> None:
        """Forget what no later frame needs."""
        keep = max(0, self._first + len(self._rows) - LEAD) * self.windows.step
        self._buffer, self._origin = self._buffer[keep - self._origin :], keep
        if self._live:
            self._live.forget(self._frame / self.windows.fps)


class _RunningNormalization:
    """The mean and the peak of what has been heard so far."""

    def __init__(self, peak: float) -> None:
        if not peak >= 0:
            raise ValueError(f"peak must be at least 0, got {peak}")
        self.count = 0
        self._sum, self._peak = 0.0, peak

    def hear(self, samples: Samples) -> None:
        self.count += len(samples)
        self._sum += float(samples.sum(dtype=np.float64))
        self._peak = max(self._peak, float(np.abs(samples).max()))

    @property
    def normalization(self) -> Normalization:
        return Normalization(self._sum / self.count, self._peak)


def _statistics(rows: _Array) -> _Array:
    return np.concatenate([rows.mean(0), rows.std(0)])


def _mono(samples: ArrayLike) -> Samples:
    values = to_float(samples)
    if values.ndim != 1:
        raise ValueError(f"samples must be [N], mono, got {list(values.shape)}")
    return values
