"""Short-term features of sound: 21 numbers per window of a few milliseconds, and their deltas.

The definitions are pyAudioAnalysis' (Giannakopoulos, PLoS ONE 10(12), 2015) without its chroma features, with the
constants that HeadGAN (Doukas et al., ICCV 2021) took. For a window x of N samples, with X its magnitude spectrum
(no window function, the first N // 2 bins over their number), ε = 1e-8 and X̂ = X / max X:

====== =================================================================================================
0      zero crossing rate Σ|Δ sign x| / 2 / (N - 1)
1      energy Σx² / N
2      entropy -Σ p log2(p + ε) of the shares p of ten equal blocks in Σx²
3, 4   centroid Σ f X̂ / (ΣX̂ + ε) and spread √(Σ (f - centroid)² X̂ / (ΣX̂ + ε)), over half the sample rate
5      entropy of X² as above
6      flux Σ (X / Σ(X + ε) - the same of the window before)², 0 in the first window
7      roll-off: the bin that reaches 0.9 of ΣX², over their number
8..20  13 MFCC: orthonormal DCT-II of log10(B X + ε) with 40 triangular filters B
====== =================================================================================================

The filters take bin k for k · rate / (N // 2), twice its true frequency, while f is (k + 1) · rate / (2 (N // 2)).
Networks were trained on these numbers, so they stay.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]

NAMES = (
    "zcr", "energy", "energy_entropy", "spectral_centroid", "spectral_spread", "spectral_entropy", "spectral_flux",
    "spectral_rolloff", *(f"mfcc_{index}" for index in range(1, 14)),
)  # fmt: skip
LEAD = 2  # windows before one that its features depend on: the delta of a flux reaches back that far

_EPS = 1e-8
_BLOCKS = 10
_ROLLOFF = 0.9
_AT_ONCE = 1024  # windows; keeps the working set within a few megabytes


class ShortTermFeatures:
    """``[windows, 42]``: the 21 features of every window, then their differences to the window before (0 in the first).

    Args:
        sample_rate: Hz.
        window, step: samples.

    Raises:
        ValueError: a window of under 20 samples, which has no ten blocks of bins, or a step under 1.
    """

    def __init__(self, sample_rate: float, window: int, step: int) -> None:
        if window < 2 * _BLOCKS:
            raise ValueError(f"window must be at least {2 * _BLOCKS} samples, got {window}")
        if step < 1:
            raise ValueError(f"step must be at least 1 sample, got {step}")
        self.window, self.step = window, step
        bins = window // 2
        self._frequency = (np.arange(bins) + 1) / bins  # over half the sample rate
        self._filters = mel_filters(sample_rate, bins).T
        self._dct = dct_matrix(self._filters.shape[1], 13).T

    def count(self, samples: int) -> int:
        """How many windows lie within that many samples."""
        return max(0, (samples - self.window) // self.step + 1)

    def __call__(self, signal: Array) -> Array:
        """The features of a normalised signal ``[N]``."""
        count = self.count(len(signal))
        parts = [np.zeros((0, 2 * len(NAMES)))]
        for begin in range(0, count, _AT_ONCE):
            lead = min(LEAD, begin)
            end = min(count, begin + _AT_ONCE)
            part = signal[(begin - lead) * self.step : (end - 1) * self.step + self.window]
            parts.append(self._features(part)[lead:])
        return np.concatenate(parts)

    def _features(self, signal: Array) -> Array:
        frames: Array = np.ascontiguousarray(sliding_window_view(signal, self.window)[:: self.step])  # [n, window]
        bins = len(self._frequency)
        spectrum = np.abs(np.fft.rfft(frames)[:, :bins]) / bins
        squares, power = np.square(frames), np.square(spectrum)
        centroid, spread = self._moments(spectrum)
        features = np.column_stack(
            [
                np.abs(np.diff(np.sign(frames))).sum(1) / 2 / (self.window - 1),
                squares.mean(1),
                _entropy(squares),
                centroid,
                spread,
                _entropy(power),
                _flux(spectrum),
                _rolloff(power),
                np.log10(spectrum @ self._filters + _EPS) @ self._dct,
            ]
        )
        return np.hstack([features, np.diff(features, axis=0, prepend=features[:1])])

    def _moments(self, spectrum: Array) -> tuple[Array, Array]:
        peak = spectrum.max(1, keepdims=True)
        peak[peak == 0] = 1  # a window of zeros: its centroid and spread are 0
        shares = spectrum / peak
        total = shares.sum(1) + _EPS
        centroid = shares @ self._frequency / total
        spread = np.sqrt((shares * (self._frequency - centroid[:, None]) ** 2).sum(1) / total)
        return centroid, spread


def mel_filters(sample_rate: float, bins: int) -> Array:
    """``[40, bins]``: triangles of area 1 over 42 corners, 13 from 133.33 Hz in steps of 200/3, then by factors of
    1.0711703; bin k counts as k · rate / bins.
    """
    linear = 133.33 + 200 / 3 * np.arange(13)
    corners = np.concatenate([linear, linear[-1] * 1.0711703 ** np.arange(1, 30)])
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    frequency = np.arange(bins) * sample_rate / bins
    rise, fall = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return np.asarray(2 / (high - low) * np.minimum(rise, fall).clip(min=0))


def dct_matrix(inputs: int, outputs: int) -> Array:
    """``[outputs, inputs]``: the first rows of the orthonormal DCT-II."""
    matrix = np.sqrt(2 / inputs) * np.cos(np.pi / inputs * np.outer(np.arange(outputs), np.arange(inputs) + 0.5))
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix)


def _entropy(energy: Array) -> Array:
    """Of the shares of ten equal blocks ``[n, N]``; what N leaves over counts in the whole only."""
    size = energy.shape[1] // _BLOCKS
    blocks = energy[:, : size * _BLOCKS].reshape(len(energy), _BLOCKS, size).sum(2)
    shares = blocks / (energy.sum(1, keepdims=True) + _EPS)
    return np.asarray(-(shares * np.log2(shares + _EPS)).sum(1))


def _flux(spectrum: Array) -> Array:
    shares = spectrum / (spectrum + _EPS).sum(1, keepdims=True)
    return np.asarray((np.diff(shares, axis=0, prepend=shares[:1]) ** 2).sum(1))


def _rolloff(power: Array) -> Array:
    reached = power.cumsum(1) + _EPS > _ROLLOFF * power.sum(1, keepdims=True)
    return np.asarray(reached.argmax(1) / power.shape[1])
