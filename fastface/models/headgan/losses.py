"""HeadGAN's training objective. Source: HeadGAN (arXiv 2012.08261), appendix B, equations (3) to (9).

In print the brackets of equations (4) and (5) never close, and (5) conditions D_m on the face; read is the hinge loss,
with D_m on the audio. The published code masks the pixel loss to the rendered face and adds a term for its mask head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastface.models.headgan.generator import GeneratorOutput
from fastface.models.losses import Features, Maps, feature_loss, feature_matching_loss, generator_hinge, hinge

__all__ = [
    "LossWeights",
    "discriminator_loss",
    "feature_loss",
    "feature_matching_loss",
    "generator_hinge",
    "generator_loss",
    "hinge",
    "masked_l1",
]


@dataclass(frozen=True)
class LossWeights:
    """Equation (8); `mask` is the weight that the published code gives to its mask head's L1 term."""

    l1: float = 50.0
    features: float = 10.0
    feature_matching: float = 10.0
    mask: float = 10.0


def discriminator_loss(real: Maps, fake: Maps) -> Tensor:
    """Equations (4) and (5): the hinge loss on real and on generated images."""
    return hinge(real, True) + hinge(fake, False)


def masked_l1(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Equation (6), ``E|image - target|``; with `mask` ``[B, 1, H, W]`` it is ``E|mask · image - mask · target|``.

    The mean is over all pixels, as in the published code: those outside of the mask count, as equal.
    """
    if mask is None:
        return F.l1_loss(image, target)
    return F.l1_loss(image * mask, target * mask)


def generator_loss(
    output: GeneratorOutput,
    target: Tensor,
    *,
    fakes: Sequence[Maps],
    reals: Sequence[Maps],
    features: Features | None = None,
    face: Tensor | None = None,
    person: Tensor | None = None,
    weights: LossWeights | None = None,
) -> dict[str, Tensor]:
    """Equation (8), its terms weighted and by name; their sum is the objective of G.

    Args:
        target: the true frame ``[B, 3, H, W]`` in [-1, 1].
        fakes, reals: maps of each discriminator, D and where there is one D_m, on the generated and on the true frame.
        features: gives the feature maps of equation (7); without it those terms are left out.
        face: ``[B, 1, H, W]``, 1 where the render shows a face: the mask of the pixel losses, see `masked_l1`.
        person: ``[B, 1, H, W]`` in [0, 1], what the mask head should give; without it that term is left out.

    Raises:
        ValueError: `person` for a generator without mask head.
    """
    weights = weights or LossWeights()
    terms = {"adversarial": torch.stack([generator_hinge(maps) for maps in fakes]).sum()}
    matching = [feature_matching_loss(real, fake) for real, fake in zip(reals, fakes, strict=True)]
    terms["feature_matching"] = weights.feature_matching * torch.stack(matching).sum()
    for name, image in (("image", output.image), ("warped", output.warped)):
        terms[f"l1_{name}"] = weights.l1 * masked_l1(image, target, face)
        if features is not None:
            terms[f"features_{name}"] = weights.features * feature_loss(features, image, target)
    if person is not None:
        if output.mask is None:
            raise ValueError("person must be None for a generator without mask head")
        terms["mask"] = weights.mask * F.l1_loss(output.mask, person)
    return terms
