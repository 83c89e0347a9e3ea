"""HeadGAN: one portrait and a driving video, through a 3D face, to frames (arXiv 2012.08261)."""

from fastface.models.headgan import layouts, losses, metrics
from fastface.models.headgan.discriminator import Discriminator, DiscriminatorConfig, audio_and_mouth
from fastface.models.headgan.driving import FaceTrack, LiveDriver, track_faces
from fastface.models.headgan.generator import Encoding, Generator, GeneratorConfig, GeneratorOutput
from fastface.models.headgan.system import HeadGAN, HeadGANMotion, HeadGANSource

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "Encoding",
    "FaceTrack",
    "Generator",
    "GeneratorConfig",
    "GeneratorOutput",
    "HeadGAN",
    "HeadGANMotion",
    "HeadGANSource",
    "LiveDriver",
    "audio_and_mouth",
    "layouts",
    "losses",
    "metrics",
    "track_faces",
]
