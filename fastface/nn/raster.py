"""A module over `fastface.ops.raster`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastface import ops

__all__ = ["Rasterizer"]


class Rasterizer(nn.Module):
    """`fastface.ops.rasterize` with a mesh's triangles, their attributes and the size of the image held.

    Args:
        triangles: ``[T, 3]`` indices of vertices.
        attributes: ``[T, A]`` or ``[V, A]``.
        size: (H, W).

    Raises:
        ValueError: a triangle with a negative index.
    """

    triangles: Tensor
    attributes: Tensor

    def __init__(
        self,
        triangles: Tensor,
        attributes: Tensor,
        size: tuple[int, int],
        *,
        cull: str | None = None,
        per: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        lowest = int(triangles.min())
        if lowest < 0:
            raise ValueError(f"triangles must be indices from 0, got {lowest}")
        self.register_buffer("triangles", triangles.to(torch.int32).contiguous(), persistent=False)
        self.register_buffer("attributes", attributes, persistent=False)
        self.size, self.cull, self.per, self.backend = size, cull, per, backend

    def forward(self, vertices: Tensor) -> ops.RasterOutput:
        """Draw ``[B, V, 3]`` vertices, in pixels."""
        return ops.rasterize(
            vertices, self.triangles, self.attributes, self.size, cull=self.cull, per=self.per, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"triangles={len(self.triangles)}, size={self.size}, cull={self.cull}"
