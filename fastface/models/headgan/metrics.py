"""HeadGAN's metrics that need no downloaded network. Source: HeadGAN (arXiv 2012.08261), appendix E.

LPIPS and FID come from torchmetrics (``pip install 'fastface-kernels[metrics]'``) and download their networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["ard", "are", "au_hamming", "csim", "fid", "l1_distance", "lpips", "psnr"]


def l1_distance(frames: Tensor, truth: Tensor) -> float:
    """Mean ``|frames - truth|`` over channels, pixels and frames; uint8, or floats in [0, 255]."""
    _same_shape(frames, truth)
    return float((frames.double() - truth.double()).abs().mean())


def psnr(frames: Tensor, truth: Tensor) -> float:
    """``20 log10(255) - 10 log10(MSE)`` in dB over all frames at once; inf where they are equal."""
    _same_shape(frames, truth)
    error = float((frames.double() - truth.double()).square().mean())
    return 20 * torch.tensor(255.0).log10().item() - 10 * torch.tensor(error).log10().item()


def ard(angles: Tensor, truth: Tensor) -> float:
    """Average rotation distance in degrees: the mean ``|angles - truth|`` of Euler angles ``[N, 3]`` in degrees.

    A difference is taken the short way round, modulo 360 into [-180, 180].
    """
    _same_shape(angles, truth)
    difference = angles.double() - truth.double()
    return float((torch.remainder(difference + 180, 360) - 180).abs().mean())


def are(angles: Tensor) -> float:
    """Average rotation error in degrees: `ard` of Euler angles ``[N, 3]`` in degrees from the frontal pose, 0."""
    return ard(angles, torch.zeros_like(angles))


def au_hamming(units: Tensor, truth: Tensor) -> float:
    """Action units' Hamming distance in [0, 1]: the share of booleans ``[N, A]`` that differ."""
    _same_shape(units, truth)
    if units.dtype != torch.bool or truth.dtype != torch.bool:
        raise TypeError(f"units must be booleans, got {units.dtype} and {truth.dtype}")
    return float((units != truth).double().mean())


def csim(embed: Callable[[Tensor], Tensor], frames: Tensor, truth: Tensor) -> float:
    """Mean cosine of ``embed(frames)`` and ``embed(truth)``, ``[N, D]`` each; a `truth` of one image serves all frames.

    `embed` is an identity network, such as ArcFace.
    """
    similarity = torch.nn.functional.cosine_similarity(embed(frames).double(), embed(truth).double(), dim=1)
    return float(similarity.mean())


def lpips(frames: Tensor, truth: Tensor, *, network: str = "alex") -> float:
    """Learned perceptual image patch similarity of ``[N, 3, H, W]`` frames in [0, 1]; smaller is better."""
    metric = _torchmetrics("lpip", "LearnedPerceptualImagePatchSimilarity")(net_type=network, normalize=True)
    return float(metric(frames, truth))


def fid(frames: Tensor, truth: Tensor) -> float:
    """Fréchet inception distance between two sets of ``[N, 3, H, W]`` frames in [0, 1]; smaller is better."""
    metric = _torchmetrics("fid", "FrechetInceptionDistance")(normalize=True)
    metric.update(truth, real=True)
    metric.update(frames, real=False)
    return float(metric.compute())


def _torchmetrics(module: str, name: str) -> Any:
    import importlib

    try:
        return getattr(importlib.import_module(f"torchmetrics.image.{module}"), name)
    except ImportError as error:
        raise ImportError("torchmetrics is not installed: pip install 'fastface-kernels[metrics]'") from error


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"both must have one shape, got {list(a.shape)} and {list(b.shape)}")
    if a.numel() == 0:
        raise ValueError("there must be at least one frame, got none")
