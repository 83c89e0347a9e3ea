"""Images to the parameters of the face in them: landmarks, then the fit."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.face.camera import Camera
from fastface.face.fitting import FaceFitter, FaceParameters, transfer_dense
from fastface.face.landmarks import Face, Landmarks, MediaPipeLandmarks, largest_face
from fastface.face.loaders import built_in_head
from fastface.face.model import MorphableModel

__all__ = ["FaceTracker", "scaled", "trackable"]

_DETECTOR_NOISE = 0.02  # of a coordinate of MediaPipe's points, as a share of the face's size
# Standard deviations of expressions: people who are met are mostly at rest, people who are followed are not.
_MET, _FOLLOWED = 0.15, 0.4


class FaceTracker:
    """Follows one face from frame to frame: expression and camera, the identity of the first frame held.

    Args:
        model: whose coefficients are found; the built-in head by default. It needs dense points or the 68 landmarks.
        landmarks: the detector; MediaPipe's, tracking, by default.
        identity: ``[1, I]``, held from the start; by default fitted to the first face.
    """

    def __init__(
        self,
        model: MorphableModel | None = None,
        landmarks: Landmarks | None = None,
        *,
        identity: Tensor | None = None,
    ) -> None:
        self.model = trackable(model or built_in_head())
        self.identity = identity
        self.frames = 0
        self.missed = 0  # frames without a face: their parameters are None
        self._meet, self._follow = (
            FaceFitter(self.model, iterations=3, noise=_DETECTOR_NOISE, prior=(1.0, spread))
            for spread in (_MET, _FOLLOWED)
        )
        self._landmarks = landmarks or MediaPipeLandmarks(video=True, max_faces=1)

    def __call__(self, frame: NDArray[np.uint8]) -> FaceParameters | None:
        """The parameters of the largest face of ``[H, W, 3]`` uint8 RGB, batch 1, in its pixels; None without one."""
        self.frames += 1
        faces = self._landmarks(frame)
        if not faces:
            self.missed += 1
            return None
        return self.follow(faces[largest_face(faces)])

    def follow(self, face: Face) -> FaceParameters:
        """The parameters of landmarks already found. Raises ValueError for fewer points than the model's dense ones."""
        count = len(self._follow.points)
        if len(face.points) < count:
            raise ValueError(f"face must have at least the model's {count} dense points, got {len(face.points)}")
        points = torch.from_numpy(face.points[None, :count])
        if self.identity is None:
            self.identity = self._meet.fit(points).identity
        return self._follow.fit(points, self.identity)


def trackable(model: MorphableModel) -> MorphableModel:
    """The model with the dense points of a detector: its own, else those of the built-in head carried over by the 68.

    Raises:
        ValueError: a model with neither.
    """
    if model.dense is not None:
        return model
    if model.landmarks68 is None:
        raise ValueError("the face model must have dense points or the 68 landmarks to fit a face, got neither")
    return transfer_dense(model, built_in_head())


def scaled(camera: Camera, factor: float, offset: tuple[float, float] = (0.0, 0.0)) -> Camera:
    """The camera of the same face in an image cropped at `offset` (x, y; pixels) and then resized by `factor`."""
    shift = camera.translation.new_tensor([*offset, 0.0])
    # Pixel centres: the first pixel's is 0 before and after.
    centre = camera.translation.new_tensor([0.5, 0.5, 0.0])
    moved = (camera.translation - shift + centre) * factor - centre
    return Camera(camera.scale * factor, camera.rotation, moved)
