"""What PoseGAN and PGFace are trained with: mean squares of values and of their differences from frame to frame.

The paper's supplement does not print its losses: terms and weights are FACIAL's (arXiv 2108.07938), the norms inferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fastface.models.losses import Maps, least_squares
from fastface.models.posegan.networks import Shape

__all__ = ["FaceLossWeights", "PoseLossWeights", "discriminator_loss", "face_loss", "pose_loss"]


@dataclass(frozen=True)
class PoseLossWeights:
    """Of the terms of `pose_loss`."""

    initial: float = 10.0
    pose: float = 1.0
    velocity: float = 10.0
    adversarial: float = 0.1


@dataclass(frozen=True)
class FaceLossWeights:
    """Of the terms of `face_loss`; that of the identity is inferred."""

    expression: float = 20.0
    velocity: float = 200.0
    identity: float = 1.0


def pose_loss(
    poses: Tensor, target: Tensor, fake: Maps | None = None, weights: PoseLossWeights | None = None
) -> dict[str, Tensor]:
    """The terms that PoseGAN minimises, weighted and by name; their sum is its objective.

    ``λ_i E|p_0 - q_0|² + λ_p E|p - q|² + λ_v E|Δp - Δq|² + λ_a E[(D(p) - 1)²]``

    Args:
        poses, target: ``[B, T, 6]`` of two frames or more, normalised (`PoseStatistics.normalize`).
        fake: the discriminator's maps of `poses`; without them that term is left out.

    Raises:
        ValueError: another shape than the target's, or a single frame.
    """
    _check_motion("poses", poses, target)
    weights = weights or PoseLossWeights()
    terms = {
        "initial": weights.initial * F.mse_loss(poses[:, 0], target[:, 0]),
        "pose": weights.pose * F.mse_loss(poses, target),
        "velocity": weights.velocity * F.mse_loss(poses.diff(dim=1), target.diff(dim=1)),
    }
    if fake is not None:
        terms["adversarial"] = weights.adversarial * least_squares(fake, True)
    return terms


def discriminator_loss(real: Maps, fake: Maps) -> Tensor:
    """``½ (E[(D(q) - 1)²] + E[D(p)²])``, of true motions q and generated ones p. Source: LSGAN (arXiv 1611.04076)."""
    return (least_squares(real, True) + least_squares(fake, False)) / 2


def face_loss(shape: Shape, target: Shape, weights: FaceLossWeights | None = None) -> dict[str, Tensor]:
    """The terms that PGFace minimises, weighted and by name; their sum is its objective.

    ``λ_e E|e - f|² + λ_v E|Δe - Δf|² + λ_i E|i - j|²``

    Args:
        shape: identity ``[B, T, I]`` and expression ``[B, T, E]`` of two frames or more.
        target: the same; its identity may be ``[B, 1, I]``, one for all frames.

    Raises:
        ValueError: another shape than the target's, or a single frame.
    """
    identity = target.identity.expand(-1, shape.identity.shape[1], -1)
    _check_motion("expression", shape.expression, target.expression)
    weights = weights or FaceLossWeights()
    return {
        "expression": weights.expression * F.mse_loss(shape.expression, target.expression),
        "velocity": weights.velocity * F.mse_loss(shape.expression.diff(dim=1), target.expression.diff(dim=1)),
        "identity": weights.identity * F.mse_loss(shape.identity, identity),
    }


def _check_motion(name: str, values: Tensor, target: Tensor) -> None:
    if values.dim() != 3 or values.shape[1] < 2 or values.shape != target.shape:
        expected = "[B, T, N] with T at least 2, like the target"
        raise ValueError(f"{name} must be {expected}, got {list(values.shape)} and {list(target.shape)}")
