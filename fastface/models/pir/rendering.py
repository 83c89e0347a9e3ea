"""From planes to what rays see: decoders by their structure, options, and EG3D's renderer by its call.

    from fastface.models.pir import ImportanceRenderer
    generator.renderer = ImportanceRenderer()

makes a generator with EG3D's interface render through `fastface.ops.render_planes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastface.models.pir.synthesis import FullyConnected
from fastface.nn.triplane import Rendering, plane_decoder

__all__ = ["ImportanceRenderer", "PlaneNetwork", "Rendering", "plane_decoder"]


class PlaneNetwork(nn.Module):
    """Features of a point to its density and colours: two linear layers about a softplus, the density first."""

    def __init__(self, channels: int = 32, hidden: int = 64, outputs: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(FullyConnected(channels, hidden), nn.Softplus(), FullyConnected(hidden, 1 + outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., C]`` to the raw density ``[..., 1]`` and colours ``[..., outputs]`` in [-0.001, 1.001]."""
        raw = self.net(x)
        return raw[..., :1], torch.sigmoid(raw[..., 1:]) * 1.002 - 0.001


class ImportanceRenderer(nn.Module):
    """EG3D's renderer by the signature of its call, through the fused op.

    Depths are the middles of their strata, so frames of a video do not flicker, unless `random`: then they are drawn as
    published. A ray that meets no density has the depth of its own last sample, not of the furthest of all rays.

    Args:
        axes: of the planes; "eg3d" is what published weights were trained with.
        backend: of the op.
    """

    def __init__(self, *, axes: str = "eg3d", random: bool = False, backend: str | None = None) -> None:
        super().__init__()
        self.axes, self.random, self.backend = axes, random, backend

    def forward(
        self,
        planes: Tensor,
        decoder: nn.Module,
        ray_origins: Tensor,
        ray_directions: Tensor,
        rendering_options: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``[B, R, F]``, depths ``[B, R, 1]`` and the sums of the weights ``[B, R, 1]``.

        Args:
            planes: ``[B, 3, C, H, W]``.
            decoder: a module of EG3D's structure, see `plane_decoder`.
            ray_origins, ray_directions: ``[B, R, 3]``.
            rendering_options: EG3D's dictionary, see `Rendering.of_options`.
        """
        rendering = Rendering.of_options(rendering_options, axes=self.axes)
        rays = ray_origins.shape[:2]
        jitter, u = (
            torch.rand(*rays, count, device=ray_origins.device) if self.random and count else None
            for count in (rendering.coarse, rendering.fine)
        )
        result = rendering.render(
            planes, ray_origins, ray_directions, plane_decoder(decoder), jitter=jitter, u=u, backend=self.backend
        )
        return result.features, result.depth[..., None], result.opacity[..., None]
