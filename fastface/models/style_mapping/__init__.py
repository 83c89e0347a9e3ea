"""Style Mapping: keypoints that move a feature volume, the face-vid2vid family (arXiv 2303.09799)."""

from fastface.models.style_mapping import layouts
from fastface.models.style_mapping.generator import (
    AppearanceConfig,
    AppearanceEncoder,
    DecoderConfig,
    IntermediateGenerator,
    ResidualDecoder,
    SPADEDecoder,
    SPADEResnetBlock,
)
from fastface.models.style_mapping.keypoints import KeypointConfig, KeypointDetector
from fastface.models.style_mapping.pose import PoseConfig, PoseExpression, PoseExpressionNetwork
from fastface.models.style_mapping.warping import WarpingConfig, WarpingNetwork, WarpingOutput, WarpingSource

__all__ = [
    "AppearanceConfig",
    "AppearanceEncoder",
    "DecoderConfig",
    "IntermediateGenerator",
    "KeypointConfig",
    "KeypointDetector",
    "PoseConfig",
    "PoseExpression",
    "PoseExpressionNetwork",
    "ResidualDecoder",
    "SPADEDecoder",
    "SPADEResnetBlock",
    "WarpingConfig",
    "WarpingNetwork",
    "WarpingOutput",
    "WarpingSource",
    "layouts",
]
