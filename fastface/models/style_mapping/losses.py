"""What Style Mapping's networks train with.

    style-aware generator    E|W (I - Î)| + adversarial + feature matching + perceptual,  W = 5 mouth, 3 eyes, 1 skin, 0
    intermediate generator   E|I - Î| + the same + E|C(Î) - C|: the keypoints found again in its image
    style transfer           ||f(φ_mg) - f(φ_s)||² + (||∇f(φ_mg)||₂ - 1)² + L_mg

f is a network of landmarks, φ_mg and φ_s the landmarks of the motion generator and of a style reference, L_mg the
motion generator's own loss. Source: arXiv 2303.09799 and its supplement. No weights between terms are printed: those
of feature matching and of the perceptual term are pix2pixHD's (arXiv 1711.11585), the others follow suit. LSGAN is the
supplement's, hinge the published configuration's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.models.losses import (
    Features,
    Maps,
    feature_loss,
    feature_matching_loss,
    generator_hinge,
    hinge,
    least_squares,
)

__all__ = [
    "LossWeights",
    "StyleTransferNetwork",
    "discriminator_loss",
    "generator_loss",
    "part_weights",
    "reconstruction_loss",
    "style_transfer_loss",
]

Adversarial = Literal["least_squares", "hinge"]
# Of the 68 points of Multi-PIE.
_EYES, _MOUTH = (slice(36, 42), slice(42, 48)), slice(48, 60)


@dataclass(frozen=True)
class LossWeights:
    """Of the terms, and of the parts of a face in the reconstruction; what is no part counts 0."""

    reconstruction: float = 10.0
    feature_matching: float = 10.0
    features: float = 10.0
    keypoints: float = 10.0
    mouth: float = 5.0
    eyes: float = 3.0
    skin: float = 1.0


def part_weights(
    landmarks: Tensor, size: tuple[int, int], *, skin: Tensor | None = None, weights: LossWeights | None = None
) -> Tensor:
    """W, ``[B, 1, H, W]``: the parts of faces whose landmarks are ``[B, 68, 2]`` in pixels.

    Args:
        skin: ``[B, 1, H, W]``, above 0.5 where skin is; by default the hull of the landmarks.

    Raises:
        ValueError: landmarks or a mask of another shape.
    """
    import cv2

    weights = weights or LossWeights()
    if landmarks.dim() != 3 or landmarks.shape[1:] != (68, 2):
        raise ValueError(f"landmarks must be [B, 68, 2], got {list(landmarks.shape)}")
    if skin is not None and skin.shape != (len(landmarks), 1, *size):
        raise ValueError(f"skin must be {[len(landmarks), 1, *size]}, got {list(skin.shape)}")
    maps = []
    for index, points in enumerate(landmarks.detach().cpu().round().to(torch.int32).numpy()):
        if skin is None:
            parts = cv2.fillConvexPoly(np.zeros(size, np.float32), cv2.convexHull(points), weights.skin)
        else:
            parts = (skin[index, 0] > 0.5).float().mul(weights.skin).cpu().numpy()
        for eye in _EYES:
            cv2.fillConvexPoly(parts, cv2.convexHull(points[eye]), weights.eyes)
        cv2.fillConvexPoly(parts, cv2.convexHull(points[_MOUTH]), weights.mouth)
        maps.append(torch.from_numpy(parts))
    return torch.stack(maps)[:, None].to(landmarks.device)


def reconstruction_loss(image: Tensor, target: Tensor, parts: Tensor | None = None) -> Tensor:
    """``E|W (image - target)|`` over all pixels of ``[B, 3, H, W]``; W ``[B, 1, H, W]`` is 1 by default."""
    difference = (image - target).abs()
    return (difference if parts is None else difference * parts).mean()


def discriminator_loss(real: Maps, fake: Maps, adversarial: Adversarial = "least_squares") -> Tensor:
    """Of the discriminator on true and on generated images. Raises ValueError for another kind of loss."""
    judged = least_squares if _is_least_squares(adversarial) else hinge
    return judged(real, True) + judged(fake, False)


def _is_least_squares(adversarial: str) -> bool:
    if adversarial not in ("least_squares", "hinge"):
        raise ValueError(f"adversarial must be 'least_squares' or 'hinge', got {adversarial!r}")
    return adversarial == "least_squares"


def generator_loss(
    image: Tensor,
    target: Tensor,
    *,
    fake: Maps,
    real: Maps,
    adversarial: Adversarial = "least_squares",
    parts: Tensor | None = None,
    features: Features | None = None,
    keypoints: tuple[Tensor, Tensor] | None = None,
    weights: LossWeights | None = None,
) -> dict[str, Tensor]:
    """The terms of a generator's objective by name, weighted; their sum is the objective.

    Args:
        image, target: ``[B, 3, H, W]`` in [-1, 1], generated and true.
        fake, real: what the discriminator gives for them, and for what they were made from.
        parts: `part_weights`, for the style-aware generator.
        features: gives the feature maps of the perceptual term, such as VGG's; without it there is none.
        keypoints: ``[B, K, 3]`` found in the generated image and those that drove it, for the intermediate generator.

    Raises:
        ValueError: another kind of adversarial loss.
    """
    weights = weights or LossWeights()
    terms = {
        "adversarial": least_squares(fake, True) if _is_least_squares(adversarial) else generator_hinge(fake),
        "reconstruction": weights.reconstruction * reconstruction_loss(image, target, parts),
        "feature_matching": weights.feature_matching * feature_matching_loss(real, fake),
    }
    if features is not None:
        terms["features"] = weights.features * feature_loss(features, image, target)
    if keypoints is not None:
        found, driving = keypoints
        terms["keypoints"] = weights.keypoints * F.l1_loss(found, driving)
    return terms


class StyleTransferNetwork(nn.Sequential):
    """f: landmarks ``[B, 68, 3]`` to a style ``[B, 256]``, by layers of 1024, 512 and 256."""

    def __init__(self, points: int = 68, widths: tuple[int, int, int] = (1024, 512, 256)) -> None:
        first, second, last = widths
        super().__init__(
            nn.Flatten(),
            nn.Linear(3 * points, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, last),
        )


def style_transfer_loss(
    network: nn.Module, motion: Tensor, style: Tensor, motion_loss: Tensor | None = None
) -> dict[str, Tensor]:
    """The terms of the style transfer by name: they fine-tune a motion generator towards a style.

    The gradient is that of the sum of f's outputs by the motion, as Wasserstein GANs compute theirs (arXiv 1704.00028);
    the paper does not say which gradient of the vector f it means.

    Args:
        motion: φ_mg, ``[B, 68, 3]``, from the motion generator.
        style: φ_s, ``[B, 68, 3]``, of style references.
        motion_loss: L_mg.
    """
    # Landmarks without a graph behind them get one here, since the penalty is a gradient by them.
    tracked = motion if motion.requires_grad else motion.detach().requires_grad_()
    mapped = network(tracked)
    (gradient,) = torch.autograd.grad(mapped.sum(), tracked, create_graph=True)
    terms = {
        "style": (mapped - network(style)).square().sum(1).mean(),
        "gradient": (gradient.flatten(1).norm(dim=1) - 1).square().mean(),
    }
    if motion_loss is not None:
        terms["motion"] = motion_loss
    return terms
