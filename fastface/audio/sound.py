"""Sound: mono float32 in [-1, 1] at one rate, from any file that FFmpeg opens or from an array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Samples = NDArray[np.float32]

SAMPLE_RATE = 16_000  # Hz; what wav2vec 2.0, DeepSpeech and HeadGAN's features were made with
_INSTALL = "reading or resampling sound needs PyAV: pip install 'fastface-kernels[audio]'"
_HOLE = 0.05  # seconds between what came and a frame's own time, from which something is missing
_SILENT = 2.0**-15  # one step of 16 bits


@dataclass(frozen=True)
class Audio:
    """Mono sound: `samples` ``[N]`` in [-1, 1], `sample_rate` in Hz, and `notes` on what was done to get it."""

    samples: Samples  # [N]
    sample_rate: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def to_float(samples: ArrayLike) -> Samples:
    """Samples of any real type as float32: integers over their full scale (int16 / 2^15), floats as they are.

    Raises:
        TypeError: samples that are not integers or floats.
        ValueError: values that are not finite.
    """
    values = np.asarray(samples)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"samples must be integers or floats, got {values.dtype}")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError(f"samples must be finite, got {int((~np.isfinite(values)).sum())} values that are not")
        return np.asarray(values, dtype=np.float32)
    full_scale = 2.0 ** (8 * values.dtype.itemsize - 1)
    return np.asarray(values / full_scale - (values.dtype.kind == "u"), dtype=np.float32)


class Resampler:
    """FFmpeg's resampler for mono sound that comes in pieces: `push` them, then `finish`.

    Raises:
        ValueError: a rate that is not a positive integer.
        ImportError: the rates differ and PyAV is not installed.
    """

    def __init__(self, source: int, target: int) -> None:
        for rate in (source, target):
            if rate != int(rate) or rate <= 0:
                raise ValueError(f"a sample rate must be a positive integer in Hz, got {rate}")
        self._source = int(source)
        self._resampler = None if source == target else _av().AudioResampler("flt", "mono", int(target))

    def push(self, samples: Samples) -> Samples:
        """What the samples so far allow of the output; the filter holds a few milliseconds back."""
        if self._resampler is None or not samples.size:
            return samples
        frame = _av().AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), "flt", "mono")
        frame.sample_rate = self._source
        return self._run(frame)

    def finish(self) -> Samples:
        """What was held back."""
        return np.zeros(0, dtype=np.float32) if self._resampler is None else self._run(None)

    def _run(self, frame: Any) -> Samples:
        assert self._resampler is not None
        parts = [part.to_ndarray()[0] for part in self._resampler.resample(frame)]
        return np.concatenate([np.zeros(0, dtype=np.float32), *parts])


def as_audio(samples: ArrayLike, sample_rate: int, *, to: int = SAMPLE_RATE) -> Audio:
    """Sound from an array: channels averaged, resampled to `to` Hz. Silence is valid sound; a note says so.

    Args:
        samples: ``[N]`` or ``[channels, N]``, integers of any width or floats in [-1, 1].
        sample_rate: of `samples`, Hz.

    Raises:
        TypeError: samples that are not integers or floats.
        ValueError: another shape, no samples, values that are not finite, a rate that is not a positive integer.
        ImportError: the rates differ and PyAV is not installed.
    """
    values = to_float(samples)
    channels = np.atleast_2d(values)
    if values.ndim not in (1, 2) or not 1 <= len(channels) <= 32:
        raise ValueError(f"samples must be [N] or [channels, N] with 1 to 32 channels, got {list(values.shape)}")
    if values.size == 0:
        raise ValueError(f"samples must not be empty, got {list(values.shape)}")
    resampler = Resampler(sample_rate, to)
    mono = np.concatenate([resampler.push(channels.mean(0)), resampler.finish()])
    notes = []
    if len(channels) > 1:
        notes.append(f"{len(channels)} channels averaged")
    if sample_rate != to:
        notes.append(f"{sample_rate} Hz resampled to {to}")
    if np.abs(mono).max(initial=0) < _SILENT:
        notes.append("the sound is silent")
    return Audio(mono, int(to), tuple(notes))


def read_audio(path: str | Path, *, sample_rate: int = SAMPLE_RATE, start: float | None = None) -> Audio:
    """The sound of a file: wav, mp3, flac, the first audio track of a video, whatever FFmpeg opens.

    Channels are averaged. What is damaged is silent, a file that breaks off gives what came before the break. Notes say
    what was done.

    Args:
        sample_rate: wanted, Hz.
        start: seconds on the file's clock where sample 0 shall lie, such as `VideoReader.start`, so that sound and
            picture stay together: sound before it is cut, a gap is filled with silence. None: where the sound starts.

    Raises:
        ValueError: a directory, no such file, an empty file, a file without (readable) sound, sound that ends before
            `start`, or samples that are not finite.
        ImportError: PyAV is not installed.
    """
    path = existing(path)
    if path.stat().st_size == 0:
        raise ValueError(f"the sound is an empty file: {path}")
    track, mono = _read(path)
    notes = []
    if track.channels > 1:
        notes.append(f"{track.channels} channels averaged")
    if track.broken:
        notes.append(f"broken off after {len(mono) / track.sample_rate:.2f} s: {track.broken}")
    if track.damaged:
        notes.append(f"{track.damaged:.2f} s damaged and left silent")
    shift = 0 if start is None else round((start - track.start) * track.sample_rate)
    if shift >= len(mono):
        raise ValueError(f"the sound must reach beyond start = {start} s, got its end before that: {path}")
    if shift:
        mono = mono[shift:] if shift > 0 else np.concatenate([np.zeros(-shift, dtype=np.float32), mono])
        notes.append(f"{abs(shift) / track.sample_rate:.3f} s {'cut' if shift > 0 else 'of silence put before'}")
    audio = as_audio(mono, track.sample_rate, to=sample_rate)
    return Audio(audio.samples, audio.sample_rate, (*notes, *audio.notes))


class Track:
    """The first audio track of a container: iterate, once, over its samples ``[n]`` as they are decoded.

    Channels are averaged. A packet that cannot be decoded is silence of its length, and so is a hole between packets.

    Args:
        container: as `av.open` gives it.

    Attributes:
        sample_rate, channels: of the first frame, 0 before it.
        start: seconds on the container's clock of the first sample.
        damaged: seconds that are missing or could not be decoded.
        broken: why the container gave no sound, or breaks off; else empty.
    """

    def __init__(self, container: Any) -> None:
        self._container = container
        self.sample_rate = self.channels = 0
        self.start = self.damaged = 0.0
        self.broken = ""
        self._end = 0.0  # seconds on the container's clock, of what came

    def __iter__(self) -> Iterator[Samples]:
        av, why = _av(), "the audio track is empty"
        planar = av.AudioResampler("fltp")
        try:
            if not self._container.streams.audio:
                raise ValueError("the file has no audio track")
            for packet in self._container.demux(self._container.streams.audio[0]):
                try:
                    pieces = [(self._begun(frame), planar.resample(frame)) for frame in packet.decode()]
                except (av.FFmpegError, ValueError) as error:  # no frame, or one unlike those before
                    why, pieces = reason(error), []
                    if self.sample_rate:
                        yield self._missing(float((packet.duration or 0) * packet.time_base))
                for frame, parts in pieces:
                    if frame.time is not None and (hole := min(frame.time, self._known_end(av)) - self._end) > _HOLE:
                        yield self._missing(hole)
                    self._end += frame.samples / frame.sample_rate
                    yield from (part.to_ndarray().mean(0) for part in parts)
            if not self.sample_rate:
                raise ValueError(why)
        except (av.FFmpegError, OSError, ValueError) as error:
            self.broken = reason(error)

    def _begun(self, frame: Any) -> Any:
        if not self.sample_rate:
            self.sample_rate, self.channels = frame.sample_rate, frame.layout.nb_channels
            self.start = self._end = float(frame.time or 0.0)
        return frame

    def _known_end(self, av: Any) -> float:
        """Where the container says that it ends: no time beyond it is believed."""
        return float((self._container.start_time or 0) + (self._container.duration or 0)) / av.time_base

    def _missing(self, seconds: float) -> Samples:
        self.damaged += seconds
        self._end += seconds
        return np.zeros(round(seconds * self.sample_rate), dtype=np.float32)


def _read(path: Path) -> tuple[Track, Samples]:
    """A file's track, and all of its samples."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            track = Track(container)
            parts = list(track)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError(f"cannot read sound from {path}: {reason(error)}") from error
    if not parts:
        raise ValueError(f"cannot read sound from {path}: {track.broken}")
    return track, np.concatenate(parts)


def existing(path: str | Path) -> Path:
    """The path of a file, or ValueError."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"expected a sound file, got the directory {path}")
    if not path.exists():
        raise ValueError(f"no such sound file: {path}")
    return path


def reason(error: BaseException) -> str:
    """What FFmpeg or the system says."""
    return str(getattr(error, "strerror", None) or error)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return av
