"""Draws a face as its 68 landmarks joined by lines: a driving image of HeadGAN's landmark variant, and Style Mapping's
facial map.

Source: HeadGAN (arXiv 2012.08261), ablation study, table 3: "sketch images, drawn by connecting 2D landmarks with
edges".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fastface.face.fitting import FaceParameters
from fastface.face.model import MorphableModel

__all__ = ["LandmarkSketch", "draw_landmarks"]

# Parts of the 68 points of Multi-PIE: first, last, whether the line closes.
_PARTS = (
    (0, 16, False),  # jaw
    (17, 21, False),  # brows
    (22, 26, False),
    (27, 30, False),  # nose
    (31, 35, False),
    (36, 41, True),  # eyes
    (42, 47, True),
    (48, 59, True),  # lips
    (60, 67, True),
)


class LandmarkSketch(nn.Module):
    """Sketches ``[B, 3, H, W]`` in [0, 1], white lines on black.

    Args:
        size: (H, W) of the image, in whose pixels the cameras are.

    Raises:
        ValueError: a model without the 68 landmarks.
    """

    def __init__(self, model: MorphableModel, size: tuple[int, int]) -> None:
        super().__init__()
        if model.landmarks68 is None:
            raise ValueError("a sketch needs a model with the 68 landmarks, got one without")
        self.model, self.size = model, size

    @torch.no_grad()
    def forward(self, parameters: FaceParameters) -> Tensor:
        assert self.model.landmarks68 is not None
        shape = self.model.shape(parameters.identity, parameters.expression)
        return self.draw(parameters.camera.project(self.model.landmarks68.of(shape)))

    def draw(self, points: Tensor) -> Tensor:
        """Sketches of landmarks ``[B, 68, 2]`` or ``[B, 68, 3]`` in pixels, such as a detector's own.

        Raises:
            ValueError: points of another shape.
        """
        return draw_landmarks(points, self.size).expand(-1, 3, -1, -1)


def draw_landmarks(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Landmarks ``[B, 68, 2]`` or ``[B, 68, 3]`` in pixels of an image (H, W) as white lines on black, ``[B, 1, H, W]``
    in [0, 1].

    Raises:
        ValueError: points of another shape.
    """
    import cv2

    if points.dim() != 3 or points.shape[1] != 68 or points.shape[2] < 2:
        raise ValueError(f"points must be [B, 68, 2] or [B, 68, 3], got {list(points.shape)}")
    bits = 4  # OpenCV takes whole numbers of 1/16 pixel
    images = []
    for each in np.rint(points[..., :2].cpu().double().numpy() * (1 << bits)).astype(np.int32):
        image = np.zeros(size, dtype=np.uint8)
        for first, last, closed in _PARTS:
            cv2.polylines(image, [each[first : last + 1]], closed, 255, 1, cv2.LINE_AA, bits)
        images.append(image)
    return torch.from_numpy(np.stack(images)).to(points.device)[:, None].float() / 255
