"""The 21 features and their deltas: against loops over the definitions, and their invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.audio.short_term import NAMES, ShortTermFeatures, dct_matrix, mel_filters
from tests import goldens
from tests.audio.signals import talk

EPS = 1e-8


def entropy(values: list[float]) -> float:
    size = len(values) // 10
    total = sum(values) + EPS
    shares = [sum(values[b * size : (b + 1) * size]) / total for b in range(10)]
    return -sum(share * math.log2(share + EPS) for share in shares)


def by_hand(frame: np.ndarray, before: list[float] | None, rate: float) -> tuple[list[float], list[float]]:
    """The features of one window but for the MFCC, and its shares for the flux of the next."""
    count, bins = len(frame), len(frame) // 2
    angle = 2 * np.pi / count * np.arange(count)
    spectrum = [math.hypot(frame @ np.cos(k * angle), frame @ np.sin(k * angle)) / bins for k in range(bins)]
    signs = [(value > 0) - (value < 0) for value in frame.tolist()]
    crossings = sum(abs(b - a) for a, b in zip(signs, signs[1:], strict=False)) / 2 / (count - 1)
    weights = [value / max(spectrum) for value in spectrum]
    frequency = [(k + 1) * rate / (2 * bins) for k in range(bins)]
    total = sum(weights) + EPS
    centroid = sum(f * w for f, w in zip(frequency, weights, strict=True)) / total
    spread = math.sqrt(sum((f - centroid) ** 2 * w for f, w in zip(frequency, weights, strict=True)) / total)
    whole = sum(value + EPS for value in spectrum)
    shares = [value / whole for value in spectrum]
    flux = sum((b - a) ** 2 for a, b in zip(before or shares, shares, strict=True))
    power = [value**2 for value in spectrum]
    rolloff = next(k for k in range(bins) if sum(power[: k + 1]) + EPS > 0.9 * sum(power)) / bins
    squares = (frame**2).tolist()
    features = [crossings, sum(squares) / count, entropy(squares), centroid / rate * 2, spread / rate * 2]
    return [*features, entropy(power), flux, rolloff], shares


@settings(max_examples=12, deadline=None)
@given(
    rate=st.sampled_from([8000, 16_000, 44_100]),
    window=st.integers(20, 90),
    step=st.integers(1, 50),
    count=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_definitions(rate: int, window: int, step: int, count: int, seed: int) -> None:
    signal = np.random.default_rng(seed).standard_normal((count - 1) * step + window + step - 1)
    rows = ShortTermFeatures(rate, window, step)(signal)
    assert rows.shape == (count, 42)
    shares = None
    for index in range(count):
        expected, shares = by_hand(signal[index * step : index * step + window], shares, rate)
        assert np.allclose(rows[index, :8], expected, atol=1e-11)
    assert np.array_equal(rows[1:, 21:], np.diff(rows[:, :21], axis=0)) and (rows[0, 21:] == 0).all()


def test_mfcc_of_a_tone_is_the_transform_of_its_filters() -> None:
    """Bin 20 of 160 alone: only the two filters over 2000 Hz (bin · rate / bins) answer."""
    rate, window = 16_000, 320
    signal = np.cos(2 * np.pi * 20 * np.arange(window) / window)
    rows = ShortTermFeatures(rate, window, 40)(signal)
    filters = mel_filters(rate, 160)
    answering = np.flatnonzero(filters[:, 20])
    assert len(answering) == 2
    energies = np.log10(filters[:, 20] + EPS)  # a cosine of amplitude 1 has magnitude N / 2 over N / 2 bins
    expected = [
        math.sqrt((1 if k == 0 else 2) / 40)
        * sum(energies[n] * math.cos(math.pi * k * (n + 0.5) / 40) for n in range(40))
        for k in range(13)
    ]
    assert np.allclose(rows[0, 8:21], expected, atol=1e-6)


def test_filters_and_transform() -> None:
    filters = mel_filters(16_000, 16_000)  # a bin per Hz: the areas are 1
    assert filters.shape == (40, 16_000) and np.allclose(filters.sum(1), 1, atol=1e-3)
    peaks = filters.argmax(1)
    assert np.allclose(peaks[:12], 200 + 200 / 3 * np.arange(12), atol=1)
    assert np.allclose(peaks[14:] / peaks[13:-1], 1.0711703, atol=1e-3)
    assert np.allclose(dct_matrix(40, 40) @ dct_matrix(40, 40).T, np.eye(40), atol=1e-12)


def test_goldens() -> None:
    _, arrays = goldens.load("audio.features.npz")
    signal = arrays["in.signal"] / 2.0**15
    signal = (signal - signal.mean()) / (np.abs(signal).max() + 1e-10)
    rows = ShortTermFeatures(16_000, 320, 40)(signal)
    assert np.abs(rows[:64] - arrays["headgan42.short"]).max() < 1e-9


def test_long_sounds_are_cut_without_a_seam() -> None:
    """More windows than are computed at once: the same as any later part alone, but for what has no window before."""
    features = ShortTermFeatures(16_000, 64, 8)
    signal = talk(1.5).astype(np.float64)
    rows = features(signal)
    assert len(rows) == features.count(len(signal)) > 2500
    for start in (1000, 1023, 2047):
        assert np.abs(features(signal[start * 8 :])[2:] - rows[start + 2 :]).max() < 1e-12


def test_scale_changes_energy_alone() -> None:
    signal = talk(0.2).astype(np.float64)
    features = ShortTermFeatures(16_000, 320, 40)
    rows, loud = features(signal), features(4 * signal)
    index = {name: NAMES.index(name) for name in ("energy", "mfcc_1")}
    assert np.allclose(loud[:, index["energy"]], 16 * rows[:, index["energy"]])
    same = [NAMES.index(name) for name in ("zcr", "spectral_rolloff")]
    assert np.array_equal(loud[:, same], rows[:, same])
    shift = loud[:, index["mfcc_1"]] - rows[:, index["mfcc_1"]]
    assert np.allclose(shift, math.sqrt(40) * math.log10(4), atol=0.01)


def test_zeros_are_finite() -> None:
    rows = ShortTermFeatures(16_000, 320, 40)(np.zeros(1000))
    assert np.isfinite(rows).all() and (rows[:, :8] == 0).all()
    assert np.allclose(rows[:, 8], -8 * math.sqrt(40)) and np.abs(rows[:, 9:]).max() < 1e-12


def test_bad_windows() -> None:
    with pytest.raises(ValueError, match="window must be at least 20 samples, got 19"):
        ShortTermFeatures(16_000, 19, 5)
    with pytest.raises(ValueError, match="step must be at least 1 sample, got 0"):
        ShortTermFeatures(16_000, 320, 0)
    assert ShortTermFeatures(16_000, 320, 40)(np.zeros(319)).shape == (0, 42)
