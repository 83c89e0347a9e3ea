"""What the commands around Style Mapping share: the model they build, the squares of photos that it sees, and what
`fastface animate --model style_mapping` takes and makes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastface.apps._common import Image, UserError

if TYPE_CHECKING:
    from fastface.face import Face, Landmarks, OneEuro
    from fastface.models.style_mapping import HeadMotion, RelativeMotion, StyleMapping, StyleMappingSource

SIZE = 256  # side of the images that the networks know
_CROP = 1.6  # side of the crop in sides of the face's box: hair and chin in it, as in the videos of VoxCeleb


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--checkpoint and --untrained."""
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="trained weights of the face-vid2vid family: one file with generator, kp_detector and he_estimator",
    )
    weights.add_argument(
        "--untrained", action="store_true", help="random weights, to try and to time; what comes out is noise"
    )


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_weights(path: str | None, untrained: bool, option: str = "--checkpoint") -> None:
    """Refuse to go on without weights, or with two kinds of them."""
    if path is not None and untrained:
        raise UserError(f"{option} and --untrained exclude one another")
    if path is None and not untrained:
        raise UserError(
            f"needs {option} FILE, weights of the face-vid2vid family; --untrained tries it without, and gives noise"
        )


def open_model(path: str | None, backend: str | None = None) -> StyleMapping:
    """The model of a checkpoint, or an untrained one, optimised and on a GPU where there is one."""
    from fastface.engine import optimize
    from fastface.models.style_mapping import StyleMapping
    from fastface.nn import set_backend

    if path is None:
        print("note: untrained weights, what comes out is noise", file=sys.stderr)
        model = StyleMapping.from_random()
    else:
        model = StyleMapping.from_checkpoint(path)
    set_backend(model, backend)
    return optimize(model.to(device()))


@dataclass(frozen=True)
class Square:
    """A face's square (x, y, side) in a photo."""

    photo: Image
    box: tuple[int, int, int]

    def image(self, size: int = SIZE) -> Image:
        """``[size, size, 3]`` uint8."""
        from fastface.face import resized

        x, y, side = self.box
        return resized(self.photo[y : y + side, x : x + side], size)

    def tensor(self) -> Tensor:
        """``[1, 3, 256, 256]`` in [0, 1], as the networks read it."""
        pixels = torch.from_numpy(self.image()).to(device())
        return pixels.permute(2, 0, 1)[None].float() / 255


def square_about(photo: Image, face: Face) -> Square:
    """The square about a face."""
    from fastface.face import face_square

    return Square(photo, face_square(face.box, _CROP, photo.shape))


def read_square(path: str, landmarks: Landmarks | None) -> Square:
    """The square about the largest face of a picture; without a detector the picture has to be one."""
    from fastface.face import largest_face
    from fastface.media import read_image

    photo = read_image(path)
    if landmarks is None:
        height, width = photo.shape[:2]
        if height != width:
            raise UserError(f"--no-crop takes square pictures, got {width}x{height}: {path}")
        return Square(photo, (0, 0, height))
    faces = landmarks(photo)
    if not faces:
        raise UserError(f"no face found, expected one (--no-crop takes square pictures as they are): {path}")
    return square_about(photo, faces[largest_face(faces)])


@dataclass(frozen=True)
class AnimatedPortrait:
    """A photo and its square, ``[H, W, 3]`` uint8, where the square is, and what the model made of it."""

    photo: Tensor
    portrait: Tensor
    box: tuple[int, int, int]
    source: StyleMappingSource


class Animator:
    """The model as `fastface animate` calls it."""

    def __init__(self, model: StyleMapping, landmarks: Landmarks | None = None) -> None:
        from fastface.face import MediaPipeLandmarks

        self.model, self._landmarks = model, landmarks or MediaPipeLandmarks()

    def detect(self, photo: Image) -> list[Face]:
        """All faces of a photo, largest first."""
        return sorted(self._landmarks(photo), key=lambda face: -face.area)

    def prepare(self, photo: Image, *, face: Face) -> AnimatedPortrait:
        """Everything that depends on the photo alone."""
        square = square_about(photo, face)
        portrait = torch.from_numpy(square.image())
        return AnimatedPortrait(torch.from_numpy(photo), portrait, square.box, self.model.prepare(square.tensor()))

    def render_uint8(self, portrait: AnimatedPortrait, motion: HeadMotion | RelativeMotion) -> Tensor:
        """Frames ``[B, 256, 256, 3]`` uint8."""
        frames = self.model.render(portrait.source, motion)
        return (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


class VideoDriving:
    """Frames of a driving face to motions: called with an image and its time, one after another.

    The first frame with a face sets the square that is looked at and what relative motions refer to; before it nothing
    moves.

    Args:
        relative: what changed since that frame; else the driver's own pose and expression.
        smoothing: of the One-Euro filter: 0 none, 1 the default, larger is calmer and slower.
    """

    def __init__(self, animator: Animator, *, relative: bool = True, smoothing: float = 1.0) -> None:
        self.frames = 0
        self.missed = 0  # frames before the first face
        self._animator, self._relative, self._smoothing = animator, relative, smoothing
        self._box: tuple[int, int, int] | None = None
        self._filter: OneEuro | None = None
        self._first: HeadMotion | None = None

    def __call__(self, image: Image, seconds: float) -> HeadMotion | RelativeMotion:
        """The motion of one frame ``[H, W, 3]`` uint8."""
        from fastface.models.style_mapping import HeadMotion, RelativeMotion

        self.frames += 1
        if self._box is None:
            faces = self._animator.detect(image)
            if not faces:
                self.missed += 1
                keypoints = self._animator.model.warping.config.keypoints
                still = HeadMotion(*(torch.zeros(1, *shape, device=device()) for shape in ((3,), (3,), (keypoints, 3))))
                return RelativeMotion(still, still)
            self._box = square_about(image, faces[0]).box
        motion = self._calmed(self._animator.model.motion_of(Square(image, self._box).tensor()), seconds)
        self._first = self._first or motion
        return RelativeMotion(motion, self._first) if self._relative else motion

    def _calmed(self, motion: HeadMotion, seconds: float) -> HeadMotion:
        from fastface.face import OneEuro
        from fastface.models.style_mapping import HeadMotion

        if self._smoothing == 0:
            return motion
        values = torch.cat([motion.angles, motion.translation, motion.expression.flatten(1)], 1)[0]
        if self._filter is None:
            # Hz when still, and what speed adds: of angles in degrees, else of shares of the image's half side.
            cutoff = np.full(len(values), 2.0, dtype=np.float32)
            speed = np.full(len(values), 8.0, dtype=np.float32)
            speed[:3] *= math.pi / 180
            self._filter = OneEuro(cutoff / self._smoothing, speed / self._smoothing)
        calm = torch.from_numpy(self._filter(values.cpu().numpy(), seconds)).to(values.device)[None]
        return HeadMotion(calm[:, :3], calm[:, 3:6], calm[:, 6:].unflatten(1, (-1, 3)))


def preset(name: str, portrait: AnimatedPortrait) -> Callable[[float], RelativeMotion]:
    """A made motion as far as it turns the head; nobody says which keypoints open a mouth here."""
    from fastface.models.lifted import PRESETS
    from fastface.models.style_mapping import RelativeMotion

    own = portrait.source.motion

    def motion(seconds: float) -> RelativeMotion:
        yaw, pitch, roll = PRESETS[name](seconds).rotation[0].tolist()
        return RelativeMotion(own.turned(pitch=-pitch, yaw=-yaw, roll=roll), own)

    return motion
