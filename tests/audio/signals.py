"""Test signals."""

from __future__ import annotations

import numpy as np


def talk(
    seconds: float, *, seed: int = 0, rate: int = 16_000, silence: float = 0.0, offset: float = 0.005
) -> np.ndarray:
    """Something like speech, float32: harmonics under formants, syllables, pauses, changing loudness, faint noise.

    `silence` seconds of noise alone come first.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formant = 600 + 250 * np.sin(2 * np.pi * 1.3 * time)
    voice = sum(
        np.exp(-(((h * pitch - formant) / 250) ** 2)) * np.cos(h * phase) + 0.1 * np.cos(h * phase + h) / h
        for h in range(1, 25)
    )
    syllables = np.sin(2 * np.pi * 2 * time).clip(0) * (np.sin(2 * np.pi * 0.25 * time + 1) > -0.6)
    loudness = np.interp(time, np.arange(seconds + 2), rng.uniform(0.3, 1.0, len(np.arange(seconds + 2))))
    voice = voice * syllables * loudness * (time >= silence)
    voice *= 0.4 / np.abs(voice).max()
    return (voice + 1e-3 * rng.standard_normal(len(time)) + offset).astype(np.float32)
