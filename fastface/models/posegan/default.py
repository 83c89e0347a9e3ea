"""The trained networks that come with the package, trained on synthetic speech: `data/MODEL_CARD.md` has the measures.

``fastface train pgface DATA`` and ``fastface train posegan DATA`` train networks of the same sizes.
"""

from __future__ import annotations

from pathlib import Path

from fastface.models.posegan.networks import PGFace, PGFaceConfig, PoseGAN, PoseGANConfig
from fastface.models.posegan.weights import load

__all__ = ["DEFAULT_WEIGHTS", "load_default", "small_pgface", "small_posegan"]

DEFAULT_WEIGHTS = Path(__file__).parent / "data"


def load_default() -> tuple[PoseGAN, PGFace]:
    """Both, in evaluation mode and on the CPU: features of `SpectralSpeech` at 25 frames a second to poses,
    and to shapes of the built-in head.
    """
    return (
        load(DEFAULT_WEIGHTS / "posegan.safetensors", PoseGAN),
        load(DEFAULT_WEIGHTS / "pgface.safetensors", PGFace),
    )


def small_posegan() -> PoseGANConfig:
    """PoseGAN with 681,062 parameters."""
    return PoseGANConfig(
        frames=128,
        trunk=(16, 32, 64, 64),
        levels=(64, 96, 128, 128, 128),
        decoder=64,
        aligned=True,
        fps=25.0,
        speech="spectral",
    )


def small_pgface() -> PGFaceConfig:
    """PGFace for the built-in head, twice as wide as published: it is small anyway."""
    return PGFaceConfig(
        widths=(64, 96, 128, 128), hidden=(128, 64), identities=46, expressions=28, fps=25.0, speech="spectral"
    )
