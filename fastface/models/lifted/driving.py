"""A driving video to motions: the head's rigid motion and the face's expression, relative to the first frame."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fastface.face import topology as topo
from fastface.face.fitting import similarity
from fastface.face.landmarks import Face, Landmarks, MediaPipeLandmarks, largest_face
from fastface.face.smoothing import OneEuro
from fastface.models.lifted.expression import FaceFrame
from fastface.models.lifted.motion import EXPRESSIONS, Motion, rotation_angles

Array = NDArray[np.float32]

_LIDS = topo.EYE_RIGHT_UPPER + topo.EYE_RIGHT_LOWER + topo.EYE_LEFT_UPPER + topo.EYE_LEFT_LOWER
_IRIS = 0.042  # radius of an iris in face widths: 5.9 mm of 140 mm


def _similarity(source: Array, target: Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale, rotation and shift that carry points ``[N, 3]`` to others."""
    scale, rotation, shift = similarity(torch.from_numpy(source)[None], torch.from_numpy(target)[None])
    return scale[0], rotation[0], shift[0]


def head_rotation(neutral: Array, current: Array) -> Array:
    """Yaw, pitch and roll in degrees that carry one set of landmarks ``[N, 3]`` to another, fitted where the face
    is stiff.
    """
    stable = list(topo.STABLE)
    return rotation_angles(_similarity(neutral[stable], current[stable])[1]).numpy()


def eye_opening(landmarks: Array) -> tuple[float, float]:
    """The gap between the lids over the eye's length: the person's right and left eye."""

    def ratio(upper: tuple[int, ...], lower: tuple[int, ...]) -> float:
        gap = np.linalg.norm(landmarks[list(upper[2:7]), :2] - landmarks[list(lower[2:7]), :2], axis=1).mean()
        return float(gap / max(1e-6, float(np.linalg.norm(landmarks[upper[0], :2] - landmarks[upper[-1], :2]))))

    return (
        ratio(topo.EYE_RIGHT_UPPER, topo.EYE_RIGHT_LOWER),
        ratio(topo.EYE_LEFT_UPPER, topo.EYE_LEFT_LOWER),
    )


class DrivingMotion:
    """Frames of a driving face to motions for any portrait; the first frame with a face is taken as neutral.

    Pose: a similarity between the neutral and the current landmarks on the stiff parts of the face. Expression: what
    is left, in face widths along the face's own axes, so that it carries over to another face of another
    size; lids and irises as controls.

    Args:
        landmarks: the detector; MediaPipe's, tracking, when None.
        smoothing: 0 none, 1 the default, larger is calmer and slower.
    """

    def __init__(self, landmarks: Landmarks | None = None, *, smoothing: float = 1.0) -> None:
        if not smoothing >= 0:
            raise ValueError(f"smoothing must be at least 0, got {smoothing}")
        self._landmarks = landmarks or MediaPipeLandmarks(video=True, max_faces=1)
        self.frames = 0
        self.missed = 0  # frames without a face: the last motion is held
        self._neutral: Array | None = None
        self._frame: FaceFrame | None = None
        self._pivot = np.zeros(3, dtype=np.float32)
        self._eyes = (1.0, 1.0)
        self._gaze = np.zeros(2, dtype=np.float32)
        self._keep = np.ones((468, 1), dtype=np.float32)
        self._last = Motion.of()
        self._filter: OneEuro | None = None
        if smoothing > 0:
            # rotation (degrees), translation (face widths), scale, controls, offsets (face widths)
            cutoff = np.concatenate(
                [np.full(3, 2.0), np.full(4, 2.0), np.full(len(EXPRESSIONS), 5.0), np.full(468 * 3, 3.0)]
            )
            beta = np.concatenate(
                [np.full(3, 0.15), np.full(4, 8.0), np.full(len(EXPRESSIONS), 3.0), np.full(468 * 3, 40.0)]
            )
            self._filter = OneEuro((cutoff / smoothing).astype(np.float32), (beta / smoothing).astype(np.float32))

    def __call__(self, frame: NDArray[np.uint8], seconds: float) -> Motion:
        """The motion of one frame, ``[H, W, 3]`` uint8 RGB, at a time that grows from call to call."""
        self.frames += 1
        faces = self._landmarks(frame)
        if not faces:
            self.missed += 1
            return self._last
        return self.follow(faces[largest_face(faces)], seconds)

    def follow(self, face: Face, seconds: float) -> Motion:
        """The motion of landmarks already found."""
        points = face.points.astype(np.float32)
        if self._neutral is None or self._frame is None:
            self._start(points)
        assert self._neutral is not None and self._frame is not None
        stable = list(topo.STABLE)
        size, turn, move = _similarity(self._neutral[stable], points[stable])
        scale, rotation, shift = float(size), turn.numpy(), move.numpy()
        moved = scale * rotation @ self._pivot + shift - self._pivot
        moved[2] = 0  # the detector measures depth from the head itself
        still = (points - shift) @ rotation / scale  # back in the neutral pose
        offsets = (still[:468] - self._neutral[:468]) @ self._frame.axes.T / self._frame.width * self._keep
        controls = np.zeros(len(EXPRESSIONS), dtype=np.float32)
        for name, now, before in zip(("blink_right", "blink_left"), eye_opening(still), self._eyes, strict=True):
            controls[EXPRESSIONS.index(name)] = np.clip((1 - now / before) / 0.85, -0.3, 1)
        if len(points) >= 478:
            open_share = 1 - max(0.0, float(controls[4:6].max()))
            gaze = (self._look(still) - self._gaze) / np.array([0.75, -0.35], dtype=np.float32) / _IRIS
            controls[6:8] = np.clip(gaze, -1.2, 1.2) * open_share
        vector = np.concatenate(
            [
                rotation_angles(torch.from_numpy(rotation)).numpy(),
                moved / self._frame.width,
                [scale],
                controls,
                offsets.ravel(),
            ]
        ).astype(np.float32)
        if self._filter is not None:
            vector = self._filter(vector, seconds)
        count = len(EXPRESSIONS)
        parts = torch.from_numpy(vector.copy())[None]
        self._last = Motion(
            rotation=parts[:, :3],
            translation=parts[:, 3:6],
            scale=parts[:, 6].clamp(min=0.2),
            expression=parts[:, 7 : 7 + count],
            offsets=parts[:, 7 + count :].reshape(1, 468, 3),
        )
        return self._last

    def _start(self, points: Array) -> None:
        self._neutral = points
        self._frame = FaceFrame.of(points)
        self._pivot = self._frame.origin + self._frame.directions(np.array([0, 0.35, 0.45], dtype=np.float32))
        right, left = eye_opening(points)
        self._eyes = (max(right, 0.05), max(left, 0.05))
        if len(points) >= 478:
            self._gaze = self._look(points)
        # Lids close by a control of their own; what is near them must not be dragged along as well.
        near = ((points[:468, None, :2] - points[None, list(_LIDS), :2]) ** 2).sum(-1).min(1)
        self._keep = np.clip(np.sqrt(near) / (0.09 * self._frame.width), 0, 1)[:, None].astype(np.float32) ** 2

    def _look(self, points: Array) -> Array:
        """Where the irises stand between the corners of their eyes, face widths, (x, y)."""
        assert self._frame is not None
        middle = (points[[33, 362]] + points[[133, 263]]) / 2
        irises = points[[topo.IRIS_RIGHT[0], topo.IRIS_LEFT[0]]]
        return ((irises - middle) @ self._frame.axes.T / self._frame.width).mean(0)[:2].astype(np.float32)
