"""A driving video to HeadGAN's motions: the face's parameters over time, carried to the source.

Offline, a whole `FaceTrack` is smoothed and adapted with the statistics of the whole video, as published; live, a
`LiveDriver` does the same with those so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.face import Camera, CameraAdapter, FaceParameters, FaceTracker, OneEuro, adapt_cameras, scaled
from fastface.models.headgan.system import HeadGANMotion

__all__ = ["FaceTrack", "LiveDriver", "track_faces"]

Image = NDArray[np.uint8]
_FRAMES = 3  # that the generator sees: t-2, t-1, t


@dataclass(frozen=True)
class FaceTrack:
    """The face of a video over time.

    Attributes:
        vectors: ``[T, E+7]``: `FaceParameters.vector` of each frame; a frame without a face holds the last one's.
        seconds: ``[T]`` float64.
        found: ``[T]``, whether the frame had a face.
        identity: ``[1, I]``.
    """

    vectors: Tensor
    seconds: Tensor
    found: Tensor
    identity: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def parameters(self) -> FaceParameters:
        """All frames as one batch."""
        return FaceParameters.of_vector(self.vectors, self.identity)

    def smoothed(self, strength: float = 1.0) -> FaceTrack:
        """Calmed by the One-Euro filter; 0 leaves it as it is, 1 suits MediaPipe. Raises ValueError below 0."""
        _check_smoothing(strength)
        if strength == 0:
            return self
        calm = _filter(self.vectors.shape[1], float(self.vectors[:, -7].median()), strength)
        rows = [calm(row.numpy(), float(t)) for row, t in zip(self.vectors, self.seconds, strict=True)]
        return replace(self, vectors=torch.from_numpy(np.stack(rows)))

    def adapted(self, reference: FaceParameters, *, relative: bool = False) -> FaceTrack:
        """With the cameras that the source of `reference` would have (`fastface.face.adapt_cameras`).

        `relative` takes the first frame's face for the driver's neutral one, and adds what departs from it to the
        reference's expression; else the driver's expressions are taken as they are, as published.
        """
        cameras = adapt_cameras(self.parameters.camera, reference.camera)
        expressions = self.vectors[:, :-7]
        if relative:
            expressions = reference.expression + expressions - expressions[:1]
        return replace(self, vectors=torch.cat([expressions, cameras.vector], 1), identity=reference.identity)

    def in_crop(self, box: tuple[int, int, int], size: int) -> FaceTrack:
        """With cameras in pixels of a crop (x, y, side) resized to `size`."""
        camera = scaled(self.parameters.camera, size / box[2], (box[0], box[1]))
        return replace(self, vectors=torch.cat([self.vectors[:, :-7], camera.vector], 1))

    def motion(self, index: int, audio: Tensor | None = None) -> HeadGANMotion:
        """What to render for one frame, with the two frames before it; `audio` is its vector ``[300]``."""
        if not 0 <= index < len(self):
            raise ValueError(f"index must be from 0 to {len(self) - 1}, got {index}")
        history = self.vectors[max(0, index - _FRAMES + 1) : index + 1]
        return HeadGANMotion(history[None], None if audio is None else audio[None])


def track_faces(frames: Iterable[tuple[Image, float]], tracker: FaceTracker) -> FaceTrack:
    """Follow the face through frames and their times.

    Raises:
        ValueError: no frames, or no face in any of them.
    """
    vectors: list[Tensor | None] = []
    seconds = []
    for image, time in frames:
        parameters = tracker(image)
        vectors.append(None if parameters is None else parameters.vector[0])
        seconds.append(time)
    first = next((vector for vector in vectors if vector is not None), None)
    if first is None or tracker.identity is None:
        raise ValueError(f"no face found in any of the {len(vectors)} frames, expected one")
    held, rows = first, []
    for vector in vectors:
        held = held if vector is None else vector
        rows.append(held)
    found = torch.tensor([vector is not None for vector in vectors])
    return FaceTrack(torch.stack(rows), torch.tensor(seconds, dtype=torch.float64), found, tracker.identity)


class LiveDriver:
    """`FaceTrack` for a camera: one frame in, one motion out, nothing of the future used.

    Args:
        reference: the source's parameters, in pixels of its crop.
        tracker: follows the driver.
        smoothing, relative: as in `FaceTrack`.
    """

    def __init__(
        self,
        reference: FaceParameters,
        tracker: FaceTracker | None = None,
        *,
        smoothing: float = 1.0,
        relative: bool = False,
    ) -> None:
        _check_smoothing(smoothing)
        self.tracker = tracker or FaceTracker()
        self._reference, self._smoothing, self._relative = reference, smoothing, relative
        self._adapt = CameraAdapter(reference.camera)
        self._calm: OneEuro | None = None
        self._neutral: Tensor | None = None
        self._history: deque[Tensor] = deque(maxlen=_FRAMES)

    def __call__(self, frame: Image, seconds: float, audio: Tensor | None = None) -> HeadGANMotion:
        """The motion of one frame; without a face in it the last one's, at first the reference itself."""
        parameters = self.tracker(frame)
        if parameters is not None:
            self._history.append(self._carried(parameters.vector[0], seconds))
        elif self._history:
            self._history.append(self._history[-1])
        history = list(self._history) or [self._reference.vector[0]]
        return HeadGANMotion(torch.stack(history)[None], None if audio is None else audio[None])

    def _carried(self, vector: Tensor, seconds: float) -> Tensor:
        """A frame's vector, smoothed and adapted to the source."""
        if self._smoothing > 0:
            if self._calm is None:
                self._calm = _filter(len(vector), float(vector[-7]), self._smoothing)
            vector = torch.from_numpy(self._calm(vector.numpy(), seconds))
        expression = vector[:-7]
        if self._neutral is None:
            self._neutral = expression
        if self._relative:
            expression = self._reference.expression[0] + expression - self._neutral
        return torch.cat([expression, self._adapt(Camera.of_vector(vector[None, -7:])).vector[0]])


def _check_smoothing(strength: float) -> None:
    if not strength >= 0:
        raise ValueError(f"smoothing must be at least 0, got {strength}")


def _filter(count: int, scale: float, strength: float) -> OneEuro:
    """Cutoffs in Hz for expressions, scale, rotation and translation; speeds in their own units."""
    expressions = count - 7
    cutoff = np.concatenate([np.full(expressions, 3.0), np.full(7, 2.0)])
    # In full expressions, radians and centimetres a second.
    beta = np.concatenate([np.full(expressions, 3.0), [8.0 / scale], np.full(3, 8.0), np.full(3, 0.8 / scale)])
    return OneEuro((cutoff / strength).astype(np.float32), (beta / strength).astype(np.float32))
