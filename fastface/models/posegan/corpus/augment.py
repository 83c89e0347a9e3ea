"""Clean speech as a room, a microphone and a line would have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastface.audio.sound import SAMPLE_RATE, Samples


@dataclass(frozen=True)
class Augmentation:
    """Ranges from which `augment` draws.

    Attributes:
        gain: dB.
        tilt: dB per octave that a microphone favours high over low, around 1 kHz.
        noise: dB of speech over noise; the noise's slope is between white and brown.
        decay: seconds until a room has lost 60 dB; the direct sound stays in front.
        wet: reverberation's energy over that of the direct sound.
        narrow: probability of a band of 300 to 3400 Hz, as on a telephone.
        clip: probability of clipping at half the peak.
    """

    gain: tuple[float, float] = (-15.0, 6.0)
    tilt: tuple[float, float] = (-3.0, 3.0)
    noise: tuple[float, float] = (12.0, 45.0)
    decay: tuple[float, float] = (0.1, 0.5)
    wet: tuple[float, float] = (0.0, 0.3)
    narrow: float = 0.1
    clip: float = 0.1


def augment(samples: Samples, rng: np.random.Generator, options: Augmentation | None = None) -> Samples:
    """Speech ``[N]`` at 16 kHz in a room, through a microphone; as long, not delayed, within [-1, 1]."""
    options = options or Augmentation()
    decay, wet = rng.uniform(*options.decay), rng.uniform(*options.wet)
    slope, tilt = rng.uniform(0, 2), rng.uniform(*options.tilt)
    noise, gain = rng.uniform(*options.noise), rng.uniform(*options.gain)
    narrow, clip = rng.random() < options.narrow, rng.random() < options.clip

    tail = rng.standard_normal(round(decay * SAMPLE_RATE)) * 10 ** (-3 * np.linspace(0, 1, round(decay * SAMPLE_RATE)))
    tail[: SAMPLE_RATE // 100] = 0
    tail *= np.sqrt(wet / np.square(tail).sum())
    tail[0] = 1  # the direct sound
    size = 1 << (len(samples) + len(tail)).bit_length()
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    colour = (frequency.clip(min=50) / 1000) ** (tilt / 6.02)  # 6.02 dB an octave is proportional to the frequency
    if narrow:
        colour = colour * ((frequency > 300) & (frequency < 3400))
    hiss = np.fft.rfft(rng.standard_normal(size)) * frequency.clip(min=50) ** (-slope / 2)
    heard, noises = (
        np.fft.irfft(spectrum * colour)[: len(samples)]
        for spectrum in (np.fft.rfft(samples, size) * np.fft.rfft(tail, size), hiss)
    )
    heard += noises * np.sqrt(np.square(heard).mean() / np.square(noises).mean() / 10 ** (noise / 10))
    heard *= 10 ** (gain / 20) * np.sqrt(np.square(samples).mean() / max(1e-12, np.square(heard).mean()))
    limit = 0.5 * np.abs(heard).max() if clip else 1.0
    return np.asarray(heard.clip(-min(limit, 1.0), min(limit, 1.0)), dtype=np.float32)
