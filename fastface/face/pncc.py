"""Draws a face as HeadGAN sees it: every triangle in the colour of where it lies on the mean face (PNCC).

Source: HeadGAN (arXiv 2012.08261), section 3.2: the normalised x-y-z coordinates of a triangle's centre.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastface.face.fitting import FaceParameters
from fastface.face.model import MorphableModel, pncc_colors
from fastface.nn import Rasterizer

__all__ = ["PNCC"]


class PNCC(nn.Module):
    """Renders of a morphable model, ``[B, 3, H, W]`` in [0, 1], 0 where there is no face.

    Args:
        size: (H, W) of the image, in whose pixels the cameras are.
    """

    def __init__(self, model: MorphableModel, size: tuple[int, int], *, backend: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.draw = Rasterizer(model.triangles, pncc_colors(model), size, cull="back", per="triangle", backend=backend)

    @torch.no_grad()
    def forward(self, parameters: FaceParameters) -> Tensor:
        shape = self.model.shape(parameters.identity, parameters.expression)
        return self.draw(parameters.camera.project(shape)).image
