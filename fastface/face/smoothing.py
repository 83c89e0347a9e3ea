"""Calms numbers that a detector gives frame by frame."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

__all__ = ["OneEuro"]


class OneEuro:
    """The One-Euro filter (Casiez et al. 2012) on a vector: smooth when slow, prompt when fast.

    Args:
        cutoff: Hz when still.
        beta: how much the cutoff grows with speed, per unit of the values per second.
    """

    def __init__(self, cutoff: Array, beta: Array) -> None:
        self.cutoff, self.beta = cutoff, beta
        self._value: Array | None = None
        self._speed: Array | None = None
        self._time = 0.0

    def __call__(self, value: Array, seconds: float) -> Array:
        """The filtered value; a time that does not grow starts anew."""
        if self._value is None or self._speed is None or seconds <= self._time:
            self._value, self._speed, self._time = value, np.zeros_like(value), seconds
            return value
        step = seconds - self._time
        speed = (value - self._value) / step
        self._speed = self._speed + _gain(np.float32(1.0), step) * (speed - self._speed)
        gain = _gain(self.cutoff + self.beta * np.abs(self._speed), step)
        self._value = (self._value + gain * (value - self._value)).astype(np.float32)
        self._time = seconds
        return self._value


def _gain(cutoff: Array | np.float32, step: float) -> Array:
    return np.asarray(1 / (1 + 1 / (2 * math.pi * cutoff * step)), dtype=np.float32)
