"""Where the built-in head comes from: formulas around a measured face. Needs SciPy; runs at no other time.

``python -m fastface.face.synthetic`` writes ``fastface/face/data/head.safetensors``.
"""

from __future__ import annotations

import numpy as np
import torch

from fastface.face.model import MorphableModel, SurfacePoints
from fastface.face.synthetic.measure import LANDMARKS
from fastface.face.synthetic.mesh import build_mesh
from fastface.face.synthetic.modes import expression_modes, identity_modes
from fastface.face.synthetic.surface import Array

LICENCE = (
    "fastface built-in head: Apache-2.0; its first 468 vertices follow the order of MediaPipe's face mesh and were "
    "measured as the mean of that detector's points on the photographs of skimage.data.lfw_subset"
)
# Multi-PIE's 68 points among MediaPipe's.
LANDMARKS_68 = (
    127, 234, 132, 58, 172, 136, 150, 176, 152, 400, 379, 365, 397, 288, 361, 454, 356,  # jaw
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
    168, 197, 5, 1, 98, 97, 2, 326, 327,  # nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,  # lips, outside
    78, 82, 13, 312, 308, 317, 14, 87,  # lips, inside
)  # fmt: skip


def build_head() -> MorphableModel:
    """The built-in head, before its bases are rounded to float16. Centimetres."""
    head = build_mesh()
    identity, expression = identity_modes(head), expression_modes(head)

    def basis(modes: dict[str, Array]) -> tuple[torch.Tensor, torch.Tensor]:
        """Modes of a largest displacement of 1, and that displacement as their scale."""
        stacked = np.stack(list(modes.values()), -1)  # [V, 3, modes]
        scale = np.linalg.norm(stacked, axis=1).max(0)
        return torch.from_numpy(stacked / scale).float(), torch.from_numpy(scale).float()

    identity_basis, identity_scale = basis(identity)
    expression_basis, expression_scale = basis(expression)
    return MorphableModel(
        mean=torch.from_numpy(head.vertices).float(),
        identity_basis=identity_basis,
        identity_scale=identity_scale,
        expression_basis=expression_basis,
        expression_scale=expression_scale,
        triangles=torch.from_numpy(head.triangles).int(),
        unit="cm",
        licence=LICENCE,
        landmarks68=SurfacePoints.at(LANDMARKS_68),
        dense=SurfacePoints.at(torch.arange(LANDMARKS)),
        identity_names=tuple(identity),
        expression_names=tuple(expression),
    )
