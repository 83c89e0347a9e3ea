"""`lifted`: a photo that moves, without trained weights of its own."""

from fastface.models.lifted.driving import DrivingMotion
from fastface.models.lifted.model import Lifted, LiftedConfig, Source
from fastface.models.lifted.motion import EXPRESSIONS, PRESETS, Motion, rotation_angles, rotation_matrix

__all__ = [
    "EXPRESSIONS",
    "PRESETS",
    "DrivingMotion",
    "Lifted",
    "LiftedConfig",
    "Motion",
    "Source",
    "rotation_angles",
    "rotation_matrix",
]
