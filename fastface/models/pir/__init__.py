"""PIR: sound to expressions, those to planes, planes to a face painted into a video (Huang et al., CVPR 2023)."""

from fastface.models.pir import layouts
from fastface.models.pir.audio import AudioEncoder, AudioToExpression, DecoderConfig, DecoderState, ExpressionDecoder
from fastface.models.pir.cameras import camera_rays, camera_vector, diagonal_fov, orbit, projection_rays
from fastface.models.pir.generator import FeatureMap, GeneratorConfig, TriplaneGenerator
from fastface.models.pir.inpainting import InpaintingConfig, InpaintingGenerator, face_mask
from fastface.models.pir.pickles import PickledNetwork, convert_pickle, load_generator, read_pickle
from fastface.models.pir.rendering import ImportanceRenderer, PlaneNetwork, Rendering, plane_decoder
from fastface.models.pir.synthesis import MappingNetwork, SuperResolution, SynthesisConfig, SynthesisNetwork
from fastface.models.pir.system import PIR, Painting, PIRMotion, PIRSource, face_camera

__all__ = [
    "PIR",
    "AudioEncoder",
    "AudioToExpression",
    "DecoderConfig",
    "DecoderState",
    "ExpressionDecoder",
    "FeatureMap",
    "GeneratorConfig",
    "ImportanceRenderer",
    "InpaintingConfig",
    "InpaintingGenerator",
    "MappingNetwork",
    "PIRMotion",
    "PIRSource",
    "Painting",
    "PickledNetwork",
    "PlaneNetwork",
    "Rendering",
    "SuperResolution",
    "SynthesisConfig",
    "SynthesisNetwork",
    "TriplaneGenerator",
    "camera_rays",
    "camera_vector",
    "convert_pickle",
    "diagonal_fov",
    "face_camera",
    "face_mask",
    "layouts",
    "load_generator",
    "orbit",
    "plane_decoder",
    "projection_rays",
    "read_pickle",
]
