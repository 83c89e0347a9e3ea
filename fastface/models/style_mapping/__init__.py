"""Style Mapping: a portrait that takes over pose and expression of other frames (arXiv 2303.09799), and what the whole
face-vid2vid family shares with it.
"""

from fastface.models.style_mapping import layouts, losses
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
from fastface.models.style_mapping.motion import HeadMotion, KeypointMotion, RelativeMotion, hull_scale
from fastface.models.style_mapping.pose import PoseConfig, PoseExpression, PoseExpressionNetwork
from fastface.models.style_mapping.style import (
    REFERENCES,
    StyleAwareConfig,
    StyleAwareGenerator,
    facial_map,
    retrieve_references,
    stack_patterns,
)
from fastface.models.style_mapping.system import Driving, StyleMapping, StyleMappingSource
from fastface.models.style_mapping.warping import WarpingConfig, WarpingNetwork, WarpingOutput, WarpingSource

__all__ = [
    "REFERENCES",
    "AppearanceConfig",
    "AppearanceEncoder",
    "DecoderConfig",
    "Driving",
    "HeadMotion",
    "IntermediateGenerator",
    "KeypointConfig",
    "KeypointDetector",
    "KeypointMotion",
    "PoseConfig",
    "PoseExpression",
    "PoseExpressionNetwork",
    "RelativeMotion",
    "ResidualDecoder",
    "SPADEDecoder",
    "SPADEResnetBlock",
    "StyleAwareConfig",
    "StyleAwareGenerator",
    "StyleMapping",
    "StyleMappingSource",
    "WarpingConfig",
    "WarpingNetwork",
    "WarpingOutput",
    "WarpingSource",
    "facial_map",
    "hull_scale",
    "layouts",
    "losses",
    "retrieve_references",
    "stack_patterns",
]
