"""PIR as a system: a video and other sound to the video of that person saying it.

    sound, identity -> expressions;  identity, expression -> planes;  planes, the frame's camera -> 32x64x64
    the frame without its face, those features -> the frame with the new face

Identity and camera come from a fit of the 3D face, which is scaled orthographic: it turns, its size is a zoom and its
place the principal point of a camera that stays at EG3D's distance. So near and far hold for every frame.
Source: PIR (CVPR 2023), figure 2 and supplement.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastface.audio.sound import Samples
from fastface.engine import optimize
from fastface.face import (
    Camera,
    Face,
    FaceTracker,
    Landmarks,
    MediaPipeLandmarks,
    MorphableModel,
    built_in_head,
    face_square,
    largest_face,
    resized,
    rotation_matrix,
    scaled,
    trackable,
)
from fastface.face.camera import FLIP
from fastface.models.pir.audio import AudioEncoder, AudioToExpression, DecoderConfig, ExpressionDecoder
from fastface.models.pir.generator import GeneratorConfig, TriplaneGenerator
from fastface.models.pir.inpainting import InpaintingGenerator, Region, face_mask
from fastface.models.pir.weights import load_networks

__all__ = ["PIR", "PIRMotion", "PIRSource", "Painting", "face_camera"]

Image = NDArray[np.uint8]
Timed = Callable[..., Any]  # (name of a stage, function, *arguments) -> what the function returns

_RADIUS, _FOCAL = 2.7, 4.2647  # EG3D's camera of faces: its distance, and its focal length in sizes of the image
_CROP = 1.8  # side of the crop in sides of the face's box
_FEATHER = 1 / 64  # of the image's side: how soft the seam is


@dataclass(frozen=True)
class PIRSource:
    """What depends on the person alone.

    Attributes:
        identity: ``[1, I]``.
        scale: of the person's face in the crop, pixels per unit of the model: where the camera does not zoom.
        box: the crop in frames, (x, y, side) in pixels.
    """

    identity: Tensor
    scale: float
    box: tuple[int, int, int]


@dataclass(frozen=True)
class PIRMotion:
    """A batch of frames to paint.

    Attributes:
        expression: ``[B, E]``.
        cam2world, intrinsics: ``[B, 4, 4]`` and ``[B, 3, 3]``, see `cameras.camera_rays`.
        frame: crops ``[B, 3, S, S]`` in [0, 1].
        mask: ``[B, 1, S, S]``, 1 where the face is to be painted.
    """

    expression: Tensor
    cam2world: Tensor
    intrinsics: Tensor
    frame: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.frame.dim() != 4 or self.frame.shape[1] != 3:
            raise ValueError(f"frame must be [B, 3, S, S], got {list(self.frame.shape)}")
        batch, _, height, width = self.frame.shape
        wanted = {
            "cam2world": (batch, 4, 4),
            "intrinsics": (batch, 3, 3),
            "mask": (batch, 1, height, width),
            "expression": (batch, *self.expression.shape[1:2]),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(getattr(self, name).shape)}")


class Painting(NamedTuple):
    """What was painted and where."""

    image: Tensor  # [B, 3, S, S] in [0, 1]
    weight: Tensor  # [B, 1, S, S] in [0, 1]: 0 outside of the mask, 1 well inside


def face_camera(camera: Camera, size: int, scale: float) -> tuple[Tensor, Tensor]:
    """The pose ``[B, 4, 4]`` and intrinsics ``[B, 3, 3]`` from which the 3D face looks as `camera` shows it.

    Args:
        camera: of the face, in pixels of a square image.
        size: side of that image.
        scale: of a face at which the camera does not zoom.
    """
    rotation = camera.rotation.new_tensor(FLIP)[:, None] * rotation_matrix(camera.rotation)  # world to camera
    batch = len(rotation)
    pose = torch.eye(4).to(rotation).repeat(batch, 1, 1)
    pose[:, :3, :3] = rotation.mT
    pose[:, :3, 3] = -_RADIUS * rotation[:, 2]
    intrinsics = torch.eye(3).to(rotation).repeat(batch, 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = _FOCAL * camera.scale / scale
    intrinsics[:, :2, 2] = (camera.translation[:, :2] + 0.5) / size
    return pose, intrinsics


def _called(stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class PIR:
    """The system: `prepare` once per person, `expressions` once per sound, `render` per frame; `dub` does all frames.

    Args:
        generator: of the planes. It takes identity and expression of `model`, one behind the other.
        inpainter: paints what the planes show.
        audio: sound to expressions; None for expressions made elsewhere.
        model: the morphable model that the weights were trained with; the built-in head by default.
        landmarks: the detector; MediaPipe's by default.
        size: side of the crop in pixels, a multiple of 8 from 64 on.
        region: what is painted anew: "lower", or the whole "face".

    Raises:
        ValueError: parts whose sizes do not fit together.
    """

    def __init__(
        self,
        generator: TriplaneGenerator,
        inpainter: InpaintingGenerator,
        audio: AudioToExpression | None = None,
        *,
        model: MorphableModel | None = None,
        landmarks: Landmarks | None = None,
        size: int = 512,
        region: Region = "lower",
    ) -> None:
        self.model = trackable(model or built_in_head())
        latent = self.model.identities + self.model.expressions
        if generator.config.latent != latent or generator.config.condition:
            raise ValueError(
                f"generator must take {latent} numbers of identity and expression and no condition, "
                f"got {generator.config.latent} and {generator.config.condition}"
            )
        if audio is not None:
            found = (audio.decoder.config.style, audio.decoder.config.outputs)
            wanted = (self.model.identities, self.model.expressions)
            if found != wanted:
                raise ValueError(f"audio must make {wanted[1]} numbers of {wanted[0]}, got {found[1]} of {found[0]}")
        if size < 64 or size % 8:
            raise ValueError(f"size must be a multiple of 8 from 64 on, got {size}")
        self.generator, self.inpainter, self.audio = generator, inpainter, audio
        self.landmarks = landmarks or MediaPipeLandmarks()
        self.size, self.region = size, region
        self.device = next(itertools.chain(generator.parameters(), generator.buffers())).device

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, device: str | torch.device = "cpu", **options: Any) -> PIR:
        """Of the weights that `save_networks` wrote, optimised.

        Args:
            device: of the networks.
            options: `model`, `landmarks`, `size` and `region`, as of the class.

        Raises:
            ValueError: a file that cannot be read or holds something else, or parts that do not fit together.
        """
        return cls._optimized(*load_networks(path), device, options)

    @classmethod
    def untrained(
        cls,
        config: GeneratorConfig | None = None,
        *,
        audio: bool = False,
        device: str | torch.device = "cpu",
        model: MorphableModel | None = None,
        **options: Any,
    ) -> PIR:
        """Of random weights, at the sizes of the paper and the face model, optimised: for its speed, not its pictures.

        Args:
            config: of the generator; its `latent` is what the face model asks for.
            audio: whether it hears; wav2vec 2.0 at full size is 1.3 GB.
            device: of the networks.
            model, options: as of the class.
        """
        model = trackable(model or built_in_head())
        latent = model.identities + model.expressions
        generator = TriplaneGenerator(replace(config or GeneratorConfig(image=0), latent=latent))
        decoder = ExpressionDecoder(DecoderConfig(outputs=model.expressions, style=model.identities))
        hears = AudioToExpression(AudioEncoder.large(), decoder) if audio else None
        return cls._optimized(generator, InpaintingGenerator(), hears, device, {"model": model, **options})

    @classmethod
    def _optimized(
        cls,
        generator: TriplaneGenerator,
        inpainter: InpaintingGenerator,
        audio: AudioToExpression | None,
        device: str | torch.device,
        options: dict[str, Any],
    ) -> PIR:
        hears = None if audio is None else audio.eval().to(device)
        return cls(optimize(generator.to(device)), optimize(inpainter.to(device)), hears, **options)

    def prepare(self, portrait: Image, *, face: int | None = None) -> PIRSource:
        """Everything that depends on the person alone, from one frame ``[H, W, 3]`` uint8 RGB.

        Args:
            face: chooses among several; the largest by default.

        Raises:
            ValueError: no face, or no such face.
        """
        faces = self.landmarks(portrait)
        if not faces:
            raise ValueError("no face found in the portrait, expected one")
        if face is not None and not 0 <= face < len(faces):
            raise ValueError(f"face must be from 0 to {len(faces) - 1}, got {face}")
        chosen = faces[largest_face(faces) if face is None else face]
        box = face_square(chosen.box, _CROP, portrait.shape)
        found = FaceTracker(self.model, self.landmarks).follow(chosen)
        return PIRSource(found.identity, float(found.camera.scale) * self.size / box[2], box)

    def expressions(self, source: PIRSource, samples: Samples, frames: int, *, timed: Timed = _called) -> Tensor:
        """``[frames, E]`` of sound ``[N]`` at 16 kHz.

        Args:
            timed: calls the stages "features" and "expressions".

        Raises:
            ValueError: a system without `audio`.
        """
        if self.audio is None:
            raise ValueError("this system has no part that hears: pass `audio`")
        heard = torch.from_numpy(np.ascontiguousarray(samples))[None].to(self.device)
        features = timed("features", self.audio.features, heard, frames)
        return timed("expressions", self.audio.decoder, features, source.identity.to(self.device))[0]

    def motion(self, source: PIRSource, frame: Image, expression: Tensor, face: Face, camera: Camera) -> PIRMotion:
        """What to paint into a frame.

        Args:
            expression: ``[E]``.
            face, camera: where the face is, in pixels of the frame.
        """
        x, y, side = source.box
        factor = self.size / side
        crop = resized(frame[y : y + side, x : x + side], self.size)
        points = (face.points[:, :2] - (x, y) + 0.5) * factor - 0.5
        pose, intrinsics = face_camera(scaled(camera, factor, (x, y)), self.size, source.scale)
        image = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
        mask = face_mask(points, (self.size, self.size), self.region)[None]
        return PIRMotion(expression[None], pose, intrinsics, image, mask)

    @torch.inference_mode()
    def paint(self, source: PIRSource, motion: PIRMotion, *, timed: Timed = _called) -> Painting:
        """The new face, and how much of it goes into the frame.

        Args:
            timed: calls the stages "planes", "rendering" and "painting".

        Raises:
            ValueError: frames of another size, or expressions of another length.
        """
        if motion.frame.shape[2:] != (self.size, self.size):
            raise ValueError(f"frame must be [B, 3, {self.size}, {self.size}], got {list(motion.frame.shape)}")
        if motion.expression.shape[1] != self.model.expressions:
            raise ValueError(f"expression must be [B, {self.model.expressions}], got {list(motion.expression.shape)}")
        expression, pose, intrinsics, frame, mask = (
            each.to(self.device)
            for each in (motion.expression, motion.cam2world, motion.intrinsics, motion.frame, motion.mask)
        )
        latent = torch.cat([source.identity.to(self.device).expand(len(expression), -1), expression], 1)
        planes = timed("planes", self._planes, latent)
        seen = timed("rendering", self.generator.render, planes, pose, intrinsics, self.size // 8)
        painted = timed("painting", self.inpainter, (2 * frame - 1) * (1 - mask), seen.features)
        return Painting((painted + 1) / 2, _feathered(mask))

    def render(self, source: PIRSource, motion: PIRMotion) -> Tensor:
        """Frames ``[B, 3, S, S]`` in [0, 1]: the new face, and outside of the mask the frame as it was."""
        image, weight = self.paint(source, motion)
        return torch.lerp(motion.frame.to(self.device), image, weight)

    def follow(self, source: PIRSource) -> FaceTracker:
        """What follows this person through the frames of one video."""
        return FaceTracker(self.model, self.landmarks, identity=source.identity)

    def repaint(
        self, source: PIRSource, tracker: FaceTracker, frame: Image, expression: Tensor, *, timed: Timed = _called
    ) -> Image | None:
        """A frame ``[H, W, 3]`` uint8 with the new face painted in, or None where it has no face.

        Args:
            tracker: of `follow`.
            expression: ``[E]``.
            timed: calls the stages "following", "planes", "rendering", "painting" and "pasting".
        """
        motion = timed("following", self._followed, source, tracker, frame, expression)
        if motion is None:
            return None
        return timed("pasting", self._pasted, frame, source.box, self.paint(source, motion, timed=timed))

    def dub(self, source: PIRSource, frames: Iterable[Image], expressions: Tensor) -> Iterator[Image]:
        """Frames ``[H, W, 3]`` uint8 with the new face painted in, one for each; one without a face stays as it is.

        Raises:
            ValueError: fewer expressions than frames.
        """
        tracker = self.follow(source)
        for index, frame in enumerate(frames):
            if index >= len(expressions):
                raise ValueError(f"expressions must be one for each frame, got {len(expressions)}")
            painted = self.repaint(source, tracker, frame, expressions[index])
            yield frame if painted is None else painted

    def _planes(self, latent: Tensor) -> Tensor:
        return self.generator.planes(self.generator.styles(latent))

    def _followed(self, source: PIRSource, tracker: FaceTracker, frame: Image, expression: Tensor) -> PIRMotion | None:
        faces = self.landmarks(frame)
        if not faces:
            return None
        face = faces[largest_face(faces)]
        return self.motion(source, frame, expression, face, tracker.follow(face).camera)

    def _pasted(self, frame: Image, box: tuple[int, int, int], painting: Painting) -> Image:
        x, y, side = box
        image, weight = (
            F.interpolate(each.float(), (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0).cpu()
            for each in painting
        )
        below = torch.from_numpy(frame[y : y + side, x : x + side].copy())
        pasted = torch.lerp(below.float(), 255 * image.clamp(0, 1), weight.clamp(0, 1))
        result = frame.copy()
        result[y : y + side, x : x + side] = pasted.round().to(torch.uint8).numpy()
        return result


def _feathered(mask: Tensor) -> Tensor:
    """Soft towards the inside, so that nothing outside changes."""
    radius = max(1, round(_FEATHER * mask.shape[-1]))
    softened = F.avg_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
    return (2 * softened - 1).clamp(min=0) * mask
