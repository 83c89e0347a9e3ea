"""Heads turn about the neck, poses about the origin of the face model: what the one moves of the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["carried"]

_UP, _FRONT = 55.0, 22.0  # mm from the neck's joint to the built-in head's origin
_LEVER = np.array([[0, _FRONT, -_UP], [_FRONT, 0, 0], [_UP, 0, 0]])  # x, y, z per radian of pitch, yaw, roll


def carried(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a turn about the neck moves the face, ``[..., 3]`` millimetres along the axes of model space.

    ``Δ = (R - 1) v``, to first order, of angles ``[..., 3]``, pitch, yaw and roll in radians with the signs of
    `Camera.angles`, and v from the neck to the origin of the built-in head: the x, y and z of a pose.
    """
    return np.asarray(angles @ _LEVER)
