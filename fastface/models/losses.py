"""Losses that several systems train with: adversarial ones over the maps of patch discriminators, and distances of
features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["feature_loss", "feature_matching_loss", "generator_hinge", "hinge", "least_squares"]

Maps = Sequence[Sequence[Tensor]]  # of a discriminator: per scale the features, the judgement last
Features = Callable[[Tensor], Sequence[Tensor]]  # such as the layers of a VGG network, of an image in [-1, 1]


def hinge(maps: Maps, real: bool) -> Tensor:
    """``-E[min(0, -1 + D)]`` for real images, ``-E[min(0, -1 - D)]`` for generated ones; the mean over the scales."""
    sign = 1 if real else -1
    return torch.stack([F.relu(1 - sign * scale[-1]).mean() for scale in maps]).mean()


def generator_hinge(fake: Maps) -> Tensor:
    """What a generator minimises against `hinge`: ``-E[D]``, the mean over the scales."""
    return -torch.stack([scale[-1].mean() for scale in fake]).mean()


def least_squares(maps: Maps, real: bool) -> Tensor:
    """``E[(D - 1)²]`` for images to be called real, ``E[D²]`` for others; the mean over the scales.

    A generator minimises it with ``real=True`` on its own images. Source: LSGAN (arXiv 1611.04076), equation (9).
    """
    return torch.stack([(scale[-1] - float(real)).square().mean() for scale in maps]).mean()


def feature_matching_loss(real: Maps, fake: Maps) -> Tensor:
    """``4 / (n + 1) Σ_j E|D_j(real) - D_j(fake)|`` over the n maps before the judgement; the mean over the scales.

    Source: arXiv 1711.11585, equation (3); the factor, which is 4 / 5 for the published four maps, is the code's.
    """
    losses = []
    for one, other in zip(real, fake, strict=True):
        distances = [F.l1_loss(b, a.detach()) for a, b in zip(one[:-1], other[:-1], strict=True)]
        losses.append(torch.stack(distances).sum() * 4 / len(one))
    return torch.stack(losses).mean()


def feature_loss(features: Features, image: Tensor, target: Tensor) -> Tensor:
    """``Σ_l E|φ_l(image) - φ_l(target)|``; a weighting of the layers belongs into `features`.

    Source: arXiv 1603.08155, section 3.2, with L1 in place of L2.
    """
    pairs = zip(features(image), features(target), strict=True)
    return torch.stack([F.l1_loss(a, b.detach()) for a, b in pairs]).sum()
