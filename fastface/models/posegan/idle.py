"""What a face does besides speaking, by a seed and the time: lids that blink, a head that is never quite still."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastface.models.posegan.neck import carried

__all__ = ["Blinks", "Drift"]

Array = NDArray[np.float64]

_DRIFT = np.array([*np.radians([0.5, 0.9, 0.5]), 0.7, 0.6, 1.5])  # of each wave: pitch, yaw, roll, x, y, z
_ONSET = 1.5  # s until a head at rest has two thirds of it


class Blinks:
    """When lids close: called with rising seconds ``[n]``, how far, ``[n]`` from 0 to 1.

    The pause after a blink is at least `pause[0]`, then ends at any time as likely as at any other (a Poisson process),
    at the latest after `pause[1]` seconds. A blink closes in 0.3 of its time, stays for 0.25 and opens again: of 0.2 s
    none slips between two frames at 25 fps.

    Args:
        seed: of the times.
        pause: seconds between blinks.
        lasting: seconds of a blink.
    """

    def __init__(
        self,
        seed: int | np.random.SeedSequence,
        pause: tuple[float, float] = (2.0, 6.0),
        *,
        lasting: tuple[float, float] = (0.2, 0.3),
    ) -> None:
        self._random, self._pause, self._lasting = np.random.default_rng(seed), pause, lasting
        self._due = pause[0] * self._random.uniform(0.25, 1)
        self._current: list[tuple[float, float]] = []  # start and length of those that have not ended

    def __call__(self, seconds: Array) -> Array:
        if not len(seconds):
            return np.zeros(0)
        while self._due <= seconds[-1]:
            length = self._random.uniform(*self._lasting)
            self._current.append((self._due, length))
            least, most = self._pause
            self._due += length + min(most, least + self._random.exponential((most - least) / 3))
        amounts = [_closing((seconds - start) / length) for start, length in self._current]
        self._current = [(start, length) for start, length in self._current if start + length > seconds[-1]]
        return np.max([np.zeros(len(seconds)), *amounts], axis=0)


def _closing(share: Array) -> Array:
    """How far lids are closed after a share of a blink."""
    closed = np.interp(share, [0, 0.3, 0.55, 1], [0, 1, 1, 0])
    return closed * closed * (3 - 2 * closed)


class Drift:
    """What a head does by itself: called with seconds ``[n]``, poses ``[n, 6]`` in radians and millimetres, from 0 on.

    Three slow waves a number, of periods that never meet again; the angles turn the head about the neck.
    """

    def __init__(self, seed: int | np.random.SeedSequence) -> None:
        random = np.random.default_rng(seed)
        self._rates = 2 * np.pi * random.uniform([[0.06], [0.14], [0.25]], [[0.12], [0.22], [0.35]], (3, 6))
        self._phases = random.uniform(0, 2 * np.pi, (3, 6))

    def __call__(self, seconds: Array) -> Array:
        waves = np.sin(seconds[:, None, None] * self._rates + self._phases).sum(1)
        poses = _DRIFT * waves * (1 - np.exp(-seconds[:, None] / _ONSET))
        poses[:, 3:] += carried(poses[:, :3])
        return np.asarray(poses)
