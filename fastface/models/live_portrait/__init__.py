"""LivePortrait (arXiv 2407.03168): a photo moved by implicit keypoints, with stitching and retargeting."""

from fastface.models.live_portrait import layouts
from fastface.models.live_portrait.crop import FaceCrop
from fastface.models.live_portrait.driving import LivePortraitDriving, make_template
from fastface.models.live_portrait.motion import EYES, LIPS, REGIONS, LivePortraitMotion
from fastface.models.live_portrait.networks import (
    KeypointMLP,
    MotionConfig,
    MotionExtractor,
    MotionParameters,
    rotation_matrix,
    transform_keypoints,
)
from fastface.models.live_portrait.retargeting import ExpressionMap, eye_ratios, from_controls, from_face, lip_ratio
from fastface.models.live_portrait.system import LivePortrait, LivePortraitConfig, LivePortraitSource
from fastface.models.live_portrait.templates import MotionTemplate, load_template, save_template

__all__ = [
    "EYES",
    "LIPS",
    "REGIONS",
    "ExpressionMap",
    "FaceCrop",
    "KeypointMLP",
    "LivePortrait",
    "LivePortraitConfig",
    "LivePortraitDriving",
    "LivePortraitMotion",
    "LivePortraitSource",
    "MotionConfig",
    "MotionExtractor",
    "MotionParameters",
    "MotionTemplate",
    "eye_ratios",
    "from_controls",
    "from_face",
    "layouts",
    "lip_ratio",
    "load_template",
    "make_template",
    "rotation_matrix",
    "save_template",
    "transform_keypoints",
]
