"""Frames of a driving face to motions, by the motion extractor: live with a causal filter, or a whole clip at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.face import Landmarks, MediaPipeLandmarks, OneEuro, largest_face, rotation_matrix, rotation_vector
from fastface.models.live_portrait.crop import FaceCrop
from fastface.models.live_portrait.motion import LivePortraitMotion
from fastface.models.live_portrait.system import LivePortrait
from fastface.models.live_portrait.templates import MotionTemplate

__all__ = ["LivePortraitDriving", "make_template"]

Image = NDArray[np.uint8]
_SCALE, _SHIFT = 2.2, -0.1  # of the driver's crop, as the public weights are used
# Cutoff in Hz of what is still, and how much it grows per unit a second: radians, units of keypoints, ratios.
_CALM = {
    "rotation": (2.0, 8.0),
    "expression": (3.0, 40.0),
    "scale": (2.0, 8.0),
    "translation": (2.0, 15.0),
    "eyes": (5.0, 10.0),
    "lips": (5.0, 10.0),
}


class LivePortraitDriving:
    """Frames of a face to motions for any portrait: called with an image and its time, one after another.

    The first frame with a face sets the crop, so that the head may move in it, and what relative motions refer to; it
    should be calm and look as the portrait looks. A frame without a face holds the last motion.

    Args:
        model: whose motion extractor looks at the frames.
        relative: changes since the first frame; else the driver's own pose and expression.
        smoothing: of the One-Euro filter: 0 none, 1 the default, larger is calmer and slower.
        retarget: "eyes", "lips" or both, to open as the driver's instead of following the expression.
        crop: cut the frames about the face; else they must be square and cut already.
        landmarks: the detector; MediaPipe's, tracking, by default.

    Raises:
        ValueError: a negative smoothing, or something else to retarget.
    """

    def __init__(
        self,
        model: LivePortrait,
        *,
        relative: bool = True,
        smoothing: float = 1.0,
        retarget: Collection[str] = (),
        crop: bool = True,
        landmarks: Landmarks | None = None,
    ) -> None:
        if not smoothing >= 0:
            raise ValueError(f"smoothing must be at least 0, got {smoothing}")
        if not set(retarget) <= {"eyes", "lips"}:
            raise ValueError(f"retarget must be among eyes, lips, got {', '.join(sorted(retarget))}")
        self.frames = 0
        self.missed = 0  # frames without a face: the last motion is held
        self._model, self._relative, self._smoothing, self._cut = model, relative, smoothing, crop
        self._retarget = set(retarget)
        self._landmarks = landmarks or MediaPipeLandmarks(video=True, max_faces=1)
        self._crop: FaceCrop | None = None
        self._first: LivePortraitMotion | None = None
        self._filter: OneEuro | None = None
        self._last: LivePortraitMotion | None = None

    def __call__(self, image: Image, seconds: float) -> LivePortraitMotion:
        """The motion of one frame ``[H, W, 3]`` uint8, at a time that grows; none at all before the first face."""
        seen = self.observe(image)
        if seen is not None:
            self._last = self._calmed(self._changed(seen), seconds)
        return self._last or LivePortraitMotion.of()

    def observe(self, image: Image) -> LivePortraitMotion | None:
        """The absolute motion of one frame, its openings measured; None without a face."""
        self.frames += 1
        faces = self._landmarks(image)
        if not faces:
            self.missed += 1
            return None
        points = faces[largest_face(faces)].points
        if not self._cut:
            return self._model.motion_of(image, points)
        if self._crop is None or self._crop.photo_size != image.shape[:2]:
            side = self._model.config.network
            self._crop = FaceCrop.around(points, image.shape, side, scale=_SCALE, shift=_SHIFT, level=False)
        return self._model.motion_of(self._crop.cut(image), points)

    def _changed(self, motion: LivePortraitMotion) -> LivePortraitMotion:
        motion = motion.with_ratios(eyes="eyes" in self._retarget, lips="lips" in self._retarget)
        if not self._relative:
            return motion
        if self._first is None:
            self._first = motion
        return motion.relative_to(self._first)

    def _calmed(self, motion: LivePortraitMotion, seconds: float) -> LivePortraitMotion:
        if self._smoothing == 0:
            return motion
        values = {name: _row(name, tensor) for name, tensor in motion.tensors().items()}
        if self._filter is None:
            cutoff, beta = (
                np.concatenate([np.full(len(row), _CALM[name][which]) for name, row in values.items()])
                for which in (0, 1)
            )
            strength = self._smoothing
            self._filter = OneEuro((cutoff / strength).astype(np.float32), (beta / strength).astype(np.float32))
        calm = torch.from_numpy(self._filter(torch.cat(list(values.values())).numpy(), seconds).copy())
        rows = calm.split([len(row) for row in values.values()])
        parts: dict[str, Any] = {
            name: rotation_matrix(row[None]) if name == "rotation" else row.view_as(getattr(motion, name))
            for name, row in zip(values, rows, strict=True)
        }
        return replace(motion, **parts)


def _row(name: str, tensor: Tensor) -> Tensor:
    """The numbers of one motion that a filter may take for a vector."""
    return (rotation_vector(tensor) if name == "rotation" else tensor).flatten()


def make_template(
    model: LivePortrait,
    frames: Iterable[tuple[Image, float]],
    fps: float,
    *,
    crop: bool = True,
    landmarks: Landmarks | None = None,
) -> MotionTemplate:
    """The motions of a clip, which drive any portrait later; a frame without a face holds the last one's.

    Args:
        frames: images ``[H, W, 3]`` uint8 and their times, as a `VideoReader` gives them.
        fps: of the template.

    Raises:
        ValueError: no face in any of the frames.
    """
    driving = LivePortraitDriving(model, crop=crop, landmarks=landmarks)
    seen = [driving.observe(image) for image, _ in frames]
    held = next((motion for motion in seen if motion is not None), None)
    if held is None:
        raise ValueError(f"no face found in any of the {len(seen)} frames, expected one")
    motions = []
    for motion in seen:
        held = motion or held
        motions.append(held)
    return MotionTemplate(LivePortraitMotion.cat(motions), fps)
