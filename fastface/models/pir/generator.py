"""The implicit representation: parameters to planes, planes to features, features to an image.

    [identity; expression] -> mapping -> style -> synthesis -> 3 planes of 32x256x256
    planes, camera -> volume rendering -> 32x64x64 -> super-resolution -> 3x512x512

EG3D's generators are the same with a latent and a camera in place of the parameters.
Source: PIR (CVPR 2023), supplement, section 2; EG3D (arXiv 2112.07945), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastface.models.pir.cameras import camera_rays
from fastface.models.pir.rendering import PlaneNetwork, Rendering, plane_decoder
from fastface.models.pir.synthesis import MappingNetwork, Noise, SuperResolution, SynthesisConfig, SynthesisNetwork

__all__ = ["FeatureMap", "GeneratorConfig", "TriplaneGenerator"]


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of the generator.

    Attributes:
        latent: length of what the mapping network reads: 80 numbers of identity and 64 of expression, those of the
            usual regressors of the Basel face model (the paper names no numbers).
        condition: length of a second input of it; 25 for EG3D's cameras, 0 for none.
        layers: of the mapping network.
        synthesis: of the planes.
        channels, hidden: of a plane and of the decoder; as many features are rendered as a plane has channels.
        image: side of the super-resolution's image; 0 is none.
        image_channels: of its two blocks.
        image_doublings: how many of these double the map.
        rays: side of the map that is rendered where none is asked for.
        condition_scale: what conditions are multiplied by; 0 for a generator that was trained without regard to them.
        rendering: how rays are sampled.
    """

    latent: int = 144
    condition: int = 0
    layers: int = 2
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    channels: int = 32
    hidden: int = 64
    image: int = 512
    image_channels: tuple[int, int] = (256, 128)
    image_doublings: int = 2
    rays: int = 64
    condition_scale: float = 1.0
    rendering: Rendering = field(default_factory=Rendering)

    def __post_init__(self) -> None:
        if self.synthesis.outputs != 3 * self.channels:
            raise ValueError(
                f"synthesis must have three planes of {self.channels} channels, got {self.synthesis.outputs} outputs"
            )
        if not isinstance(self.rays, int) or self.rays < 1:
            raise ValueError(f"rays must be an integer from 1 on, got {self.rays!r}")
        if not isinstance(self.condition_scale, (int, float)) or not math.isfinite(self.condition_scale):
            raise ValueError(f"condition_scale must be a finite number, got {self.condition_scale!r}")

    @classmethod
    def eg3d(cls) -> GeneratorConfig:
        """Of EG3D's generators of faces at 512x512."""
        return cls(latent=512, condition=25, rendering=Rendering.eg3d())


class FeatureMap(NamedTuple):
    """What a camera sees of the planes."""

    features: Tensor  # [B, F, h, w]
    depth: Tensor  # [B, 1, h, w]
    opacity: Tensor  # [B, 1, h, w]


class TriplaneGenerator(nn.Module):
    """Parameters to planes (`styles`, `planes`), to features (`render`), to an image (`image`).

    Args:
        config: sizes.
        backend: of the op that renders.
    """

    def __init__(self, config: GeneratorConfig | None = None, *, backend: str | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        self.backend = backend
        style = config.synthesis.style
        self.mapping = MappingNetwork(config.latent, config.condition, style, config.layers)
        self.synthesis = SynthesisNetwork(config.synthesis)
        self.decoder = PlaneNetwork(config.channels, config.hidden, config.channels)
        self.superresolution = (
            SuperResolution(
                config.channels, config.image_channels, style, config.image, doublings=config.image_doublings
            )
            if config.image
            else None
        )

    def styles(
        self,
        latent: Tensor,
        condition: Tensor | None = None,
        *,
        truncation: float = 1.0,
        cutoff: int | None = None,
    ) -> Tensor:
        """``[B, styles, style]``, one for each layer of the synthesis.

        Args:
            latent: ``[B, latent]``; of PIR the identity, then the expression.
            condition: ``[B, condition]``, see `cameras.camera_vector`.
            truncation: below 1, draws styles towards the average.
            cutoff: of how many styles, by default of all.
        """
        count = self.synthesis.styles
        if condition is not None:
            condition = condition * self.config.condition_scale
        styles = self.mapping(latent, condition)[:, None].expand(-1, count, -1)
        if truncation == 1:
            return styles
        drawn = self.mapping.average.lerp(styles, truncation)
        kept = count if cutoff is None else cutoff
        return torch.cat([drawn[:, :kept], styles[:, kept:]], 1)

    def planes(self, styles: Tensor, noise: Noise = "const") -> Tensor:
        """``[B, 3, C, size, size]`` of styles; channels are next to each other, as rendering reads them."""
        return self.synthesis(styles, noise).unflatten(1, (3, self.config.channels))

    def render(
        self,
        planes: Tensor,
        cam2world: Tensor,
        intrinsics: Tensor,
        size: int | tuple[int, int] | None = None,
        *,
        rendering: Rendering | None = None,
        jitter: Tensor | None = None,
        u: Tensor | None = None,
    ) -> FeatureMap:
        """What cameras see of planes.

        Args:
            planes: of `planes`.
            cam2world, intrinsics: ``[B, 4, 4]`` and ``[B, 3, 3]`` (`cameras.camera_rays`).
            size: (h, w) of the map, or one number for both; any, whatever the size in training. By default that of the
                configuration.
            rendering: other options than those of the configuration.
            jitter, u: numbers of `fastface.ops.render_planes`.
        """
        size = self.config.rays if size is None else size
        height, width = (size, size) if isinstance(size, int) else size
        origins, directions = camera_rays(cam2world, intrinsics, (height, width))
        rendering = rendering or self.config.rendering
        result = rendering.render(
            planes, origins, directions, plane_decoder(self.decoder), jitter=jitter, u=u, backend=self.backend
        )
        features = result.features.mT.unflatten(2, (height, width))
        depth, opacity = (each[:, None].unflatten(2, (height, width)) for each in (result.depth, result.opacity))
        return FeatureMap(features, depth, opacity)

    def image(self, features: Tensor, styles: Tensor) -> Tensor:
        """``[B, 3, image, image]`` in about [-1, 1], of a feature map ``[B, C, h, w]`` and the styles of its planes.

        Raises:
            ValueError: a generator without super-resolution.
        """
        if self.superresolution is None:
            raise ValueError("this generator has no super-resolution: its `image` is 0")
        return self.superresolution(features, styles[:, -1])

    def forward(
        self,
        latent: Tensor,
        cam2world: Tensor,
        intrinsics: Tensor,
        condition: Tensor | None = None,
        size: int | tuple[int, int] | None = None,
        *,
        truncation: float = 1.0,
    ) -> Tensor:
        """Parameters and cameras to images ``[B, 3, image, image]``."""
        styles = self.styles(latent, condition, truncation=truncation)
        seen = self.render(self.planes(styles), cam2world, intrinsics, size)
        return self.image(seen.features, styles)
