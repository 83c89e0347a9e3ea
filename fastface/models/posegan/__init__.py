"""PoseGAN and PGFace: speech to the motion of a head and the shape of its face (Zhang et al., TVCG 2023)."""

from fastface.models.posegan import losses
from fastface.models.posegan.default import load_default
from fastface.models.posegan.networks import (
    PGFace,
    PGFaceConfig,
    PoseDiscriminator,
    PoseDiscriminatorConfig,
    PoseGAN,
    PoseGANConfig,
    PoseStatistics,
    Shape,
)
from fastface.models.posegan.speaker import Speaker, SpeakerConfig
from fastface.models.posegan.streams import FaceStream, Motion, MotionStream, PoseStream
from fastface.models.posegan.weights import load, save
from fastface.models.posegan.windows import long_poses, smooth

__all__ = [
    "FaceStream",
    "Motion",
    "MotionStream",
    "PGFace",
    "PGFaceConfig",
    "PoseDiscriminator",
    "PoseDiscriminatorConfig",
    "PoseGAN",
    "PoseGANConfig",
    "PoseStatistics",
    "PoseStream",
    "Shape",
    "Speaker",
    "SpeakerConfig",
    "load",
    "load_default",
    "long_poses",
    "losses",
    "save",
    "smooth",
]
