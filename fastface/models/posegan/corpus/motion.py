"""A head that moves while it talks: slow drift, nods and tilts at prominent vowels, calm in pauses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastface.audio.sound import SAMPLE_RATE, Samples
from fastface.models.posegan.corpus.visemes import Segment

_Array = NDArray[np.float64]

LIMIT = np.radians(10)  # of every angle
_REACH = 12.0  # mm of every translation
_DRIFT_SECONDS = 1.2  # standard deviation of the Gaussian that makes noise a drift
_DRIFT = np.array([*np.radians([1.8, 3.5, 1.5]), 2.5, 1.5, 2.0])
_CALM_SECONDS = 0.35
_CALM = 0.35  # of the drift that is left in pauses
_NOD_SECONDS = 0.16  # standard deviation of a nod
_NODS_PER_VOWEL = 0.35
_NECK = 60.0  # mm from the joint that nods and tilts up to the middle of the head, which they move


def head_motion(
    parts: Sequence[Segment], samples: Samples, frames: int, fps: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Poses ``[T, 6]``: pitch, yaw, roll in radians with the signs of `Camera.angles`, each within 10 degrees; x, y, z
    in millimetres along the axes of model space, each within 12 mm. Frame t stands for t / fps s.

    A nod goes with the vowels that are longest and loudest, a third of them: the chin falls by about 3 degrees around
    the vowel, and the head may tilt or turn with it. In pauses the drift falls to a third. Blinks are no motion of the
    head and not in here.
    """
    time = np.arange(frames) / fps
    drift = _smooth(rng.standard_normal((frames, 6)), _DRIFT_SECONDS * fps)
    drift *= _DRIFT * np.sqrt(2 * np.sqrt(np.pi) * _DRIFT_SECONDS * fps)  # of unit variance before: its Gaussian's norm
    speaking = np.zeros(frames)
    for part in parts:
        if part.viseme.modes:
            speaking[(time >= part.start - 0.1) & (time < part.end + 0.1)] = 1
    speaking = _smooth(speaking[:, None], _CALM_SECONDS * fps)
    pose = drift * (_CALM + (1 - _CALM) * speaking)
    for at, strength in _prominent(parts, samples):
        bump = np.exp(-0.5 * ((time - at) / _NOD_SECONDS) ** 2)
        nod, turn, tilt = rng.normal([3.0, 0, 0], [1.0, 1.5, 1.2]) * strength
        pose[:, :3] += np.radians([-nod, turn, tilt]) * bump[:, None]
    pose[:, :3] = LIMIT * np.tanh(pose[:, :3] / LIMIT)
    pitch, _, roll = pose[:, :3].T
    pose[:, 3:] += _NECK * np.stack([np.sin(roll), 0 * roll, -np.sin(pitch)], 1)
    pose[:, 3:] = _REACH * np.tanh(pose[:, 3:] / _REACH)
    return pose.astype(np.float32)


def _prominent(parts: Sequence[Segment], samples: Samples) -> list[tuple[float, float]]:
    """The middles of the vowels with the most energy, and their share of the strongest one's to the root."""
    vowels = [part for part in parts if part.viseme.vowel]
    energy = np.array(
        [float(np.square(samples[int(v.start * SAMPLE_RATE) : int(v.end * SAMPLE_RATE)]).sum()) for v in vowels]
    )
    chosen = np.argsort(energy, kind="stable")[::-1][: round(_NODS_PER_VOWEL * len(vowels))]
    return [(vowels[index].middle, float(np.sqrt(energy[index] / energy.max()))) for index in sorted(chosen)]


def _smooth(values: _Array, deviation: float) -> _Array:
    """``[T, n]`` filtered by a Gaussian of that standard deviation in frames, the ends mirrored."""
    reach = int(np.ceil(4 * deviation))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="symmetric")
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], 1)
