"""The 3D face: where it is (landmarks), its shape (morphable models), its camera and its fitting."""

from fastface.face.camera import Camera, CameraAdapter, adapt_cameras, rotation_matrix, rotation_vector
from fastface.face.crop import face_square, resized
from fastface.face.fitting import FaceFitter, FaceParameters, transfer_dense
from fastface.face.landmarks import Face, Landmarks, MediaPipeLandmarks, PrecomputedLandmarks, largest_face
from fastface.face.lips import LipGap, lip_gap_in_widths, lip_gap_mm
from fastface.face.loaders import built_in_head, load_face_model, save_face_model
from fastface.face.model import MorphableModel, SurfacePoints, pncc_colors
from fastface.face.pncc import PNCC
from fastface.face.sketch import LandmarkSketch, draw_landmarks
from fastface.face.smoothing import OneEuro
from fastface.face.tracking import FaceTracker, scaled, trackable

__all__ = [
    "PNCC",
    "Camera",
    "CameraAdapter",
    "Face",
    "FaceFitter",
    "FaceParameters",
    "FaceTracker",
    "LandmarkSketch",
    "LipGap",
    "Landmarks",
    "MediaPipeLandmarks",
    "MorphableModel",
    "OneEuro",
    "PrecomputedLandmarks",
    "SurfacePoints",
    "adapt_cameras",
    "built_in_head",
    "draw_landmarks",
    "face_square",
    "largest_face",
    "lip_gap_in_widths",
    "lip_gap_mm",
    "load_face_model",
    "pncc_colors",
    "resized",
    "rotation_matrix",
    "rotation_vector",
    "save_face_model",
    "scaled",
    "trackable",
    "transfer_dense",
]
