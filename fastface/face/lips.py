"""How far lips are apart, in the middle of the mouth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastface.face import topology
from fastface.face.model import MorphableModel

__all__ = ["LipGap", "lip_gap_in_widths", "lip_gap_mm"]

_UPPER, _LOWER = topology.LIPS_INNER_UPPER[5], topology.LIPS_INNER_LOWER[5]


class LipGap(NamedTuple):
    """The height between the lips, ``rest + slopes · e`` of expressions e; below 0 lips cross."""

    rest: float
    slopes: Tensor  # [E]


def lip_gap_mm(model: MorphableModel) -> LipGap:
    """The gap between the lips of a model's mean face in millimetres.

    Raises ValueError for a model without dense points or in an unknown unit.
    """
    if model.dense is None:
        raise ValueError("the face model must have dense points, got none")
    heights = model.dense.of((model.expression_basis * model.expression_scale).movedim(2, 0))[..., 1]  # [E, N]
    mean = model.dense.of(model.mean)[:, 1]
    return LipGap(
        float(mean[_UPPER] - mean[_LOWER]) * model.millimetres,
        (heights[:, _UPPER] - heights[:, _LOWER]) * model.millimetres,
    )


def lip_gap_in_widths(landmarks: NDArray[np.floating]) -> float:
    """The gap between the lips of landmarks ``[N, 3]``, seen from the front, in face widths (ear to ear)."""
    gap = np.linalg.norm(landmarks[_LOWER, :2] - landmarks[_UPPER, :2])
    return float(gap / np.linalg.norm(landmarks[topology.EAR_LEFT] - landmarks[topology.EAR_RIGHT]))
