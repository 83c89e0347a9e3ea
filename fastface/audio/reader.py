"""A file's sound in pieces, so that an hour of it needs no more memory than a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from fastface.audio.sound import SAMPLE_RATE, Resampler, Samples, _av, decode, existing, reason, to_float


class AudioReader:
    """The sound of a file: iterate, once, over mono samples ``[n]`` of a second or so each.

    As `read_audio`: whatever FFmpeg opens, channels averaged, resampled. A file that breaks off gives what came before
    the break and sets `broken`.

    Args:
        path: wav, mp3, flac, a video, ...
        sample_rate: wanted, Hz.

    Attributes:
        start: seconds on the file's clock of the first sample.
        expected_seconds: how long it is, as far as the header tells; 0 where it does not.

    Raises:
        ValueError: a directory, no such file, a file without (readable) sound; samples that are not finite.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: str | Path, *, sample_rate: int = SAMPLE_RATE) -> None:
        av = _av()
        self.path, self.sample_rate = existing(path), sample_rate
        self.broken: str | None = None
        self.start = 0.0
        try:
            self._container = av.open(str(self.path))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"cannot read sound from {self.path}: {reason(error)}") from error
        self.expected_seconds = (self._container.duration or 0) / av.time_base
        self._pieces = self._resampled()
        try:
            self._first: Samples | None = next(self._pieces)
        except StopIteration:
            self.close()
            raise ValueError(
                f"cannot read sound from {self.path}: {self.broken or 'the audio track is empty'}"
            ) from None

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
        for samples, rate in self._decoded():
            resampler = resampler or Resampler(rate, self.sample_rate)
            waiting.append(resampler.push(to_float(samples)))
            if sum(map(len, waiting)) >= self.sample_rate:
                yield np.concatenate(waiting)
                waiting.clear()
        if resampler is not None and len(rest := np.concatenate([*waiting, resampler.finish()])):
            yield rest

    def _decoded(self) -> Iterator[tuple[Samples, int]]:
        """Mono samples and their rate, as the file has them."""
        av, begun = _av(), False
        try:
            for frame, mono in decode(self._container):
                if not begun:
                    self.start, begun = float(frame.time or 0.0), True
                yield mono, frame.sample_rate
        except (av.FFmpegError, OSError, ValueError) as error:
            self.broken = reason(error)
