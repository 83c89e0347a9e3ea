"""PIR: sound to expressions, those to planes, planes to a face painted into a video (Huang et al., CVPR 2023)."""

from fastface.models.pir import layouts
from fastface.models.pir.audio import AudioEncoder, AudioToExpression, DecoderConfig, DecoderState, ExpressionDecoder
from fastface.models.pir.cameras import camera_rays, camera_vector, diagonal_fov, orbit, projection_rays
from fastface.models.pir.fitting import (
    ColouredMesh,
    FitConfig,
    FittedHead,
    Views,
    draw_views,
    fit_head,
    head_cameras,
    held_out_cameras,
    holds_fitted_head,
    portrait_mesh,
    read_mesh,
    shaded_mesh,
    training_cameras,
)
from fastface.models.pir.generator import FeatureMap, GeneratorConfig, TriplaneGenerator
from fastface.models.pir.inpainting import InpaintingConfig, InpaintingGenerator, face_mask
from fastface.models.pir.pickles import PickledNetwork, convert_pickle, holds_networks, load_generator, read_pickle
from fastface.models.pir.rendering import ImportanceRenderer, PlaneNetwork, Rendering, plane_decoder
from fastface.models.pir.synthesis import MappingNetwork, SuperResolution, SynthesisConfig, SynthesisNetwork
from fastface.models.pir.system import PIR, Painting, PIRMotion, PIRSource, face_camera
from fastface.models.pir.weights import load_networks, save_networks

__all__ = [
    "PIR",
    "AudioEncoder",
    "AudioToExpression",
    "ColouredMesh",
    "DecoderConfig",
    "DecoderState",
    "ExpressionDecoder",
    "FeatureMap",
    "FitConfig",
    "FittedHead",
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
    "Views",
    "camera_rays",
    "camera_vector",
    "convert_pickle",
    "diagonal_fov",
    "draw_views",
    "face_camera",
    "face_mask",
    "fit_head",
    "head_cameras",
    "held_out_cameras",
    "holds_fitted_head",
    "holds_networks",
    "layouts",
    "load_generator",
    "load_networks",
    "orbit",
    "plane_decoder",
    "portrait_mesh",
    "projection_rays",
    "read_mesh",
    "read_pickle",
    "save_networks",
    "shaded_mesh",
    "training_cameras",
]
