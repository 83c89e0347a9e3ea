"""LivePortrait: a portrait animated by implicit keypoints, stitched and retargeted (arXiv 2407.03168)."""

from fastface.models.live_portrait import layouts
from fastface.models.live_portrait.networks import (
    KeypointMLP,
    MotionConfig,
    MotionExtractor,
    MotionParameters,
    rotation_matrix,
    transform_keypoints,
)

__all__ = [
    "KeypointMLP",
    "MotionConfig",
    "MotionExtractor",
    "MotionParameters",
    "layouts",
    "rotation_matrix",
    "transform_keypoints",
]
