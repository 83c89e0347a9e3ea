"""How well lips follow the sound: their opening, found again in the frames, against the envelope of the speech.

Of the envelopes of bands that of the first formant's follows a mouth best (Chandrasekaran et al. 2009, "The natural
statistics of audiovisual speech"). It does so in part only: an open vowel may be soft and a closed one loud.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastface.audio.speech import FEATURES, STEP_RATE, VOICING
from fastface.face import Landmarks, MediaPipeLandmarks, largest_face, lip_gap_in_widths

__all__ = ["LipSync", "lip_openings", "lip_sync"]

Array = NDArray[np.float64]

_BANDS = slice(3, 9)  # of SpectralSpeech, over 420 to 880 Hz, where a first formant tells how open the mouth is
_VOICED = 0.3  # of voicing times loudness
_RATE = 100  # both are compared at so many times a second
_REACH = 0.4  # s, the largest lag
_AROUND = 0.2  # s about voiced sound: the closures between vowels belong to it
_SMOOTH = 0.1  # s: syllables, not periods of the voice
_LEAST = 0.5  # s of voiced parts


class LipSync(NamedTuple):
    """How lips follow the sound.

    Attributes:
        correlation: Pearson's r of opening and envelope at the lag where it is largest.
        lag: seconds by which lips are late; negative where they lead.
        seconds: of voiced parts that were compared.
    """

    correlation: float
    lag: float
    seconds: float


def lip_openings(
    frames: Iterable[tuple[NDArray[np.uint8], float]], landmarks: Landmarks | None = None
) -> tuple[Array, Array]:
    """The times ``[T]`` of the frames that have a face, and how far its lips are apart ``[T]``, in face widths.

    Args:
        frames: ``[H, W, 3]`` uint8 and seconds, as a `VideoReader` gives them.
        landmarks: the detector; MediaPipe's, searching every frame anew, by default: tracking would lag itself.
    """
    landmarks = landmarks or MediaPipeLandmarks(max_faces=1)
    found = [
        (seconds, lip_gap_in_widths(faces[largest_face(faces)].points))
        for image, seconds in frames
        if (faces := landmarks(image))
    ]
    times, openings = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return times, openings


def lip_sync(seconds: ArrayLike, openings: ArrayLike, features: NDArray[np.float32]) -> LipSync:
    """Lips against the sound's envelope on voiced parts, at the lag within 400 ms at which they agree best.

    Args:
        seconds: ``[T]``, rising; `openings` ``[T]``, as `lip_openings` finds them.
        features: ``[N, 29]`` of `fastface.audio.SpectralSpeech`; its time 0 is that of the frames.

    Raises:
        ValueError: other shapes, or less than half a second of voiced sound with lips to compare.
    """
    times, values = np.asarray(seconds, dtype=np.float64), np.asarray(openings, dtype=np.float64)
    if times.ndim != 1 or times.shape != values.shape:
        raise ValueError(f"seconds and openings must be [T], got {list(times.shape)} and {list(values.shape)}")
    if features.ndim != 2 or features.shape[1] != FEATURES:
        raise ValueError(f"features must be [N, {FEATURES}], got {list(features.shape)}")
    grid = np.arange(round(len(features) * _RATE / STEP_RATE)) / _RATE

    def at_grid(at: Array, numbers: NDArray[np.floating]) -> Array:
        return _mean(np.interp(grid, at, numbers), _SMOOTH)

    sounds = np.arange(len(features)) / STEP_RATE
    voiced = _mean(np.interp(grid, sounds, features[:, VOICING] > _VOICED), 2 * _AROUND) > 0
    if not len(times) or voiced.sum() < _LEAST * _RATE:
        raise ValueError(f"lips need {_LEAST} s of voiced sound to be compared with, got {voiced.sum() / _RATE:.2f} s")
    envelope, lips = at_grid(sounds, features[:, _BANDS].mean(1)), at_grid(times, values)
    shifts = range(-round(_REACH * _RATE), round(_REACH * _RATE) + 1)
    agreement = [_agreement(envelope, lips, voiced, shift) for shift in shifts]
    best = int(np.argmax(agreement))
    return LipSync(agreement[best], shifts[best] / _RATE, float(voiced.sum()) / _RATE)


def _agreement(envelope: Array, lips: Array, voiced: NDArray[np.bool_], shift: int) -> float:
    """Pearson's r on voiced parts of the sound and lips that many grid steps later; 0 where either never changes, or
    where half of those lips are beyond the ends.
    """
    index = np.flatnonzero(voiced)
    index = index[(index + shift >= 0) & (index + shift < len(lips))]
    if 2 * len(index) < voiced.sum():
        return 0.0
    x, y = envelope[index] - envelope[index].mean(), lips[index + shift] - lips[index + shift].mean()
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12))


def _mean(values: Array, seconds: float) -> Array:
    """The mean over that much time about each value."""
    width = 2 * round(seconds * _RATE / 2) + 1
    return np.convolve(np.pad(values, width // 2, mode="edge"), np.full(width, 1 / width), "valid")
