"""A head that moves while it talks: it sways as the sound changes, nods at prominent vowels and rests in silence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastface.audio import SpectralSpeech, to_frame_rate
from fastface.audio.sound import SAMPLE_RATE, Samples
from fastface.audio.speech import LOUDNESS
from fastface.models.posegan.corpus.visemes import Segment
from fastface.models.posegan.neck import carried

_Array = NDArray[np.float64]

LIMIT = np.radians(10)  # of every angle
REACH = 12.0  # mm of every translation but what the neck makes of angles
_SWAY = np.array([*np.radians([1.8, 3.5, 1.5]), 2.5, 1.5, 2.0])  # its standard deviations, about
_SLOW_SECONDS = (0.5, 1.5)  # standard deviations of the Gaussians between which a change is slow
_EDGES = (0, 5, 10, 16, 20, 23)  # of groups among the bands of `SpectralSpeech`
# What pitch, yaw, roll, x, y and z have of each; the divisors are the deviations of slow changes in speech.
_MIXTURE = np.array(
    [
        [0.6, 0.0, 0.6, 0.0, 1.0, 0.7],  # loudness
        [0.0, 1.0, 0.0, 0.7, 0.0, 0.0],  # open vowels: 600 to 1300 Hz over 1300 to 2700
        [0.75, 0.0, 0.0, 0.0, 0.0, 0.0],  # close ones: 100 to 600 Hz over 600 to 1300
        [0.0, 0.0, 0.9, -0.7, 0.0, -0.7],  # hiss: over 4000 Hz over 2700 to 4000
    ]
) / np.array([[0.071], [0.028], [0.028], [0.024]])
_CHANCE = 0.3  # of the motion that no sound foretells, so that the initial pose says something
_CHANCE_SECONDS = 1.2
_CALM_SECONDS, _CALM = 0.35, 0.35  # and of that, what is left in pauses
_NOD_SECONDS = 0.16  # standard deviation of a nod
_NOD = 3.5  # degrees of the strongest
_PROMINENT = 0.45  # of the strongest vowel, from which a vowel makes the head nod


def head_motion(
    parts: Sequence[Segment], samples: Samples, frames: int, fps: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Poses ``[T, 6]``: pitch, yaw, roll in radians with the signs of `Camera.angles`, each within 10 degrees; x, y, z
    in millimetres along the axes of model space, each within 12 mm of where the neck carries the face (`carried`).
    Frame t stands for t / fps s.

    A rule, so that it can be learnt: the head sways as loudness and timbre change over a second or so, which is 0 in
    silence; with the longest and loudest vowels the chin falls, by up to 3.5 degrees. A tenth of the variance of the
    sway is chance. Blinks are no motion of the head and not in here.
    """
    time = np.arange(frames) / fps
    chance = _smooth(rng.standard_normal((frames, 6)), _CHANCE_SECONDS * fps, "symmetric")
    chance *= np.sqrt(2 * np.sqrt(np.pi) * _CHANCE_SECONDS * fps)  # to unit variance: its Gaussian's norm
    chance *= _CALM + (1 - _CALM) * _speaking(parts, time, fps)
    pose = _SWAY * (np.sqrt(1 - _CHANCE**2) * _sway(samples, frames, fps) + _CHANCE * chance)
    for at, strength in _prominent(parts, samples):
        bump = np.exp(-0.5 * ((time - at) / _NOD_SECONDS) ** 2)
        nod, turn, tilt = rng.normal([_NOD, 0, 0], [0.3, 0.45, 0.36]) * strength
        pose[:, :3] += np.radians([-nod, turn, tilt]) * bump[:, None]
    pose[:, :3] = LIMIT * np.tanh(pose[:, :3] / LIMIT)
    pose[:, 3:] = REACH * np.tanh(pose[:, 3:] / REACH) + carried(pose[:, :3])
    return pose.astype(np.float32)


def _sway(samples: Samples, frames: int, fps: float) -> _Array:
    """``[T, 6]`` of about unit deviation: slow changes of loudness and timbre, mixed."""
    features = to_frame_rate(SpectralSpeech()(samples), frames, fps).astype(np.float64)
    low, middle, high, higher, hiss = (features[:, first:last].mean(1) for first, last in pairwise(_EDGES))
    heard = np.stack([features[:, LOUDNESS], middle - high, low - middle, hiss - higher], 1)
    fast, slow = (_smooth(heard, seconds * fps, "constant") for seconds in _SLOW_SECONDS)
    return np.asarray((fast - slow) @ _MIXTURE)


def _speaking(parts: Sequence[Segment], time: _Array, fps: float) -> _Array:
    """``[T, 1]`` from 0 in pauses to 1."""
    speaking = np.zeros((len(time), 1))
    for part in parts:
        if part.viseme.modes:
            speaking[(time >= part.start - 0.1) & (time < part.end + 0.1)] = 1
    return _smooth(speaking, _CALM_SECONDS * fps, "symmetric")


def _prominent(parts: Sequence[Segment], samples: Samples) -> list[tuple[float, float]]:
    """The middles of prominent vowels, and how prominent: by energy, to the root, over that of the strongest one."""
    vowels = [part for part in parts if part.viseme.vowel]
    energy = [np.square(samples[int(v.start * SAMPLE_RATE) : int(v.end * SAMPLE_RATE)]).sum() for v in vowels]
    amounts = np.sqrt(energy) / max(np.sqrt(energy).max(initial=0), 1e-9)
    strengths = ((amounts - _PROMINENT) / (1 - _PROMINENT)).tolist()
    return [(vowel.middle, strength) for vowel, strength in zip(vowels, strengths, strict=True) if strength > 0]


def _smooth(values: _Array, deviation: float, beyond: Literal["constant", "symmetric"]) -> _Array:
    """``[T, n]`` filtered by a Gaussian of that standard deviation in frames; beyond the ends 0, or mirrored."""
    reach = int(np.ceil(4 * deviation))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    padded = np.pad(values, ((reach, reach), (0, 0)), mode=beyond)
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], 1)
