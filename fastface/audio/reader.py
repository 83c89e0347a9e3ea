"""A file's sound in pieces, so that an hour of it needs no more memory than a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from fastface.audio.sound import SAMPLE_RATE, Resampler, Samples, Track, _av, existing, reason, to_float


class AudioReader:
    """The sound of a file: iterate, once, over mono samples ``[n]`` of a second or so each.

    As `read_audio`: whatever FFmpeg opens, channels averaged, resampled. What is damaged is silent; a file that breaks
    off gives what came before the break.

    Args:
        path: wav, mp3, flac, a video, ...
        sample_rate: wanted, Hz.

    Attributes:
        expected_seconds: how long it is, as far as the header tells; 0 where it does not.
        track: what is known of it so far: where it starts, what is damaged, why it breaks off.

    Raises:
        ValueError: a directory, no such file, a file without (readable) sound; samples that are not finite.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: str | Path, *, sample_rate: int = SAMPLE_RATE) -> None:
        av = _av()
        self.path, self.sample_rate = existing(path), sample_rate
        try:
            self._container = av.open(str(self.path))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"cannot read sound from {self.path}: {reason(error)}") from error
        self.expected_seconds = (self._container.duration or 0) / av.time_base
        self.track = Track(self._container)
        self._pieces = self._resampled()
        try:
            self._first: Samples | None = next(self._pieces)
        except StopIteration:
            self.close()
            raise ValueError(f"cannot read sound from {self.path}: {self.track.broken or 'it is too short'}") from None

    def __iter__(self) -> Iterator[Samples]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._pieces

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _resampled(self) -> Iterator[Samples]:
        resampler, waiting = None, list[Samples]()
        for samples in self.track:
            resampler = resampler or Resampler(self.track.sample_rate, self.sample_rate)
            waiting.append(resampler.push(to_float(samples)))
            if sum(map(len, waiting)) >= self.sample_rate:
                yield np.concatenate(waiting)
                waiting.clear()
        if resampler is not None and len(rest := np.concatenate([*waiting, resampler.finish()])):
            yield rest
