"""HeadGAN as a system: a portrait and a stream of 35 numbers a frame (and sound) to frames.

    driving frame -> landmarks -> fit -> expression, camera -> with the source's identity: PNCC -> G -> frame

Without trained weights the last step falls to `lifted`: the photo itself is moved by what the 3D face does. The chain
before it is the same, so it can be tried, sent over a wire and measured.
Source: HeadGAN (arXiv 2012.08261), section 3 and figure 2.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.face import (
    PNCC,
    FaceParameters,
    FaceTracker,
    Landmarks,
    LandmarkSketch,
    MediaPipeLandmarks,
    MorphableModel,
    built_in_head,
    face_square,
    largest_face,
    resized,
    rotation_matrix,
    scaled,
    topology,
    trackable,
)
from fastface.face.camera import FLIP
from fastface.models import lifted
from fastface.models.headgan.generator import Encoding, Generator
from fastface.nn import set_backend

__all__ = ["HeadGAN", "HeadGANMotion", "HeadGANSource"]

# Side of the crop in sides of the face's box: the margin of 100 pixels in 256 that the published weights know; more for
# `lifted`, which wants to see what surrounds the head.
_CROPS = {"headgan": 256 / 156, "lifted": 2.2}
_KEPT = 8  # drawn faces; a frame needs its own and the two before it


@dataclass(frozen=True)
class HeadGANSource:
    """What depends on the portrait alone.

    Attributes:
        portrait: the crop ``[1, 3, S, S]`` in [0, 1].
        parameters: the portrait's own face, in pixels of the crop.
        render: its 3D face as the generator sees it ``[1, 3, S, S]``.
        box: the crop in the photo, (x, y, side) in pixels.
        encoding: the generator's features; None without one.
        moving: what `lifted` made of the crop; None with a generator.
    """

    portrait: Tensor
    parameters: FaceParameters
    render: Tensor
    box: tuple[int, int, int]
    encoding: Encoding | None
    moving: lifted.Source | None


@dataclass(frozen=True)
class HeadGANMotion:
    """A batch of frames to render: each with those before it, as the generator sees three.

    Attributes:
        parameters: ``[B, T, E+7]``: expression and camera (`FaceParameters.vector`) of frames t-T+1 .. t, in pixels of
            the source's crop. T may be smaller than the generator's 3: the first one is repeated.
        audio: ``[B, 300]`` or None for silence; `lifted` does not listen.
    """

    parameters: Tensor
    audio: Tensor | None = None

    def __post_init__(self) -> None:
        if self.parameters.dim() != 3 or 0 in self.parameters.shape:
            raise ValueError(
                f"parameters must be [B, T, expressions + 7] with no size 0, got {list(self.parameters.shape)}"
            )
        if not torch.isfinite(self.parameters).all():
            raise ValueError("parameters must be finite")
        if self.audio is not None and (self.audio.dim() != 2 or len(self.audio) != len(self.parameters)):
            raise ValueError(f"audio must be [{len(self.parameters)}, 300], got {list(self.audio.shape)}")

    @classmethod
    def of(cls, *frames: FaceParameters, audio: Tensor | None = None) -> HeadGANMotion:
        """One frame (batch 1) from the parameters of the last few frames, the newest last."""
        return cls(torch.stack([frame.vector for frame in frames], 1), audio)


class HeadGAN:
    """The system: `prepare` once per portrait, `render` per frame.

    Args:
        generator: trained weights, from ``load_checkpoint(path, "headgan.generator")``, or optimised, on any device;
            None renders with `lifted`, on the CPU.
        model: the morphable model; the built-in head by default. A generator wants the one it was trained with. One
            without dense points gets them by its 68 landmarks.
        landmarks: the detector for portraits; MediaPipe's by default.
        size: side of the frames in pixels, a multiple of 4.
        face: how the generator sees the 3D face: "pncc", or "sketch", the paper's variant with landmarks.
        backend: of the ops, those of the generator included.

    Raises:
        ValueError: a size or a `face` that there is not, or a model that cannot be fitted to faces.
    """

    def __init__(
        self,
        generator: Generator | None = None,
        *,
        model: MorphableModel | None = None,
        landmarks: Landmarks | None = None,
        size: int = 256,
        face: str = "pncc",
        backend: str | None = None,
    ) -> None:
        if face not in ("pncc", "sketch"):
            raise ValueError(f"face must be 'pncc' or 'sketch', got {face!r}")
        if size < 64 or size % 4:
            raise ValueError(f"size must be a multiple of 4, at least 64, got {size}")
        self.generator, self.size = generator, size
        self.model = trackable(model or built_in_head())
        self.device = torch.device("cpu")
        if generator is not None:
            self.device = next(itertools.chain(generator.parameters(), generator.buffers())).device
            set_backend(generator, backend)
        self.landmarks = landmarks or MediaPipeLandmarks()
        area, there = (size, size), self.model.to(self.device)
        self._draw: Callable[[FaceParameters], Tensor] = (
            PNCC(there, area, backend=backend) if face == "pncc" else LandmarkSketch(there, area)
        )
        self._drawn: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lifted = (
            None
            if generator
            else lifted.Lifted(lifted.LiftedConfig(size=size), landmarks=self.landmarks, backend=backend)
        )
        self._blinks = [
            (index, lifted.EXPRESSIONS.index(name))
            for index, name in enumerate(self.model.expression_names)
            if name in ("blink_left", "blink_right")
        ]

    @property
    def renderer(self) -> str:
        """What makes the frames: "headgan" with trained weights, else "lifted"."""
        return "headgan" if self.generator else "lifted"

    def prepare(
        self, portrait: NDArray[np.uint8], *, face: int | None = None, parameters: FaceParameters | None = None
    ) -> HeadGANSource:
        """Everything that depends on the portrait alone.

        Args:
            portrait: ``[H, W, 3]`` uint8 RGB.
            face: chooses among several; the largest by default.
            parameters: the portrait's own, in its pixels, where they are known: the portrait is a crop already then.

        Raises:
            ValueError: no face, or no such face; with `parameters`, a portrait that is not square.
        """
        if parameters is None:
            crop, box, parameters = self._fit(portrait, face)
        else:
            side = portrait.shape[0]
            if portrait.shape[1] != side:
                raise ValueError(f"a portrait with parameters must be square, got {portrait.shape[1]}x{side}")
            crop, box = resized(portrait, self.size), (0, 0, side)
            parameters = replace(parameters, camera=scaled(parameters.camera, self.size / side))
        image = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
        render = self._faces(parameters)
        encoding, moving = None, None
        if self.generator is not None:
            with torch.inference_mode():
                encoding = self.generator.encode((image * 2 - 1).to(self.device), render)
        else:
            assert self._lifted is not None
            moving = self._lifted.prepare(crop)
        return HeadGANSource(image, parameters, render, box, encoding, moving)

    def _fit(
        self, photo: NDArray[np.uint8], face: int | None
    ) -> tuple[NDArray[np.uint8], tuple[int, int, int], FaceParameters]:
        """The crop about a face, where it is in the photo, and the face's parameters in pixels of the crop."""
        faces = self.landmarks(photo)
        if not faces:
            raise ValueError("no face found in the portrait, expected one")
        if face is not None and not 0 <= face < len(faces):
            raise ValueError(f"face must be from 0 to {len(faces) - 1}, got {face}")
        chosen = faces[largest_face(faces) if face is None else face]
        x, y, side = box = face_square(chosen.box, _CROPS[self.renderer], photo.shape)
        found = FaceTracker(self.model, self.landmarks).follow(chosen)
        parameters = replace(found, camera=scaled(found.camera, self.size / side, (x, y)))
        return resized(photo[y : y + side, x : x + side], self.size), box, parameters

    def draw(self, source: HeadGANSource, motion: HeadGANMotion) -> Tensor:
        """The driving face on the source's identity, ``[B, 3, S, S]`` in [0, 1]: the newest frame of the motion."""
        return self._faces(FaceParameters.of_vector(motion.parameters[:, -1], source.parameters.identity))

    def render(self, source: HeadGANSource, motion: HeadGANMotion) -> Tensor:
        """Frames ``[B, 3, S, S]`` in [0, 1]."""
        expected = self.model.expressions + 7
        if motion.parameters.shape[2] != expected:
            raise ValueError(f"parameters must be [B, T, {expected}], got {list(motion.parameters.shape)}")
        if source.portrait.shape[-1] != self.size or (source.moving is None) != (self.generator is not None):
            made = "headgan" if source.moving is None else "lifted"
            raise ValueError(
                f"source must be prepared for {self.renderer} at size {self.size}, "
                f"got one for {made} at size {source.portrait.shape[-1]}"
            )
        if self.generator is not None:
            return self._generate(source, motion)
        assert self._lifted is not None and source.moving is not None
        return self._lifted.render(source.moving, self._as_lifted(source, motion))

    def _faces(self, parameters: FaceParameters) -> Tensor:
        """The 3D faces drawn, ``[N, 3, S, S]``; the last few are kept, as the next frame looks back at them."""
        rows = torch.cat([parameters.identity, parameters.vector], 1).cpu()
        keys = [row.numpy().tobytes() for row in rows]
        new = [index for index, key in enumerate(keys) if key not in self._drawn]
        if new:
            wanted = FaceParameters.of_vector(
                parameters.vector[new].to(self.device), parameters.identity[new].to(self.device)
            )
            for index, image in zip(new, self._draw(wanted), strict=True):
                self._drawn[keys[index]] = image
        images = torch.stack([self._drawn[key] for key in keys])
        while len(self._drawn) > _KEPT:
            self._drawn.popitem(last=False)
        return images

    @torch.inference_mode()
    def _generate(self, source: HeadGANSource, motion: HeadGANMotion) -> Tensor:
        assert self.generator is not None and source.encoding is not None
        config = self.generator.config
        batch = len(motion.parameters)
        history = motion.parameters[:, -config.frames :]
        missing = history[:, :1].expand(-1, config.frames - history.shape[1], -1)
        history = torch.cat([missing, history], 1).flatten(0, 1)
        faces = self._faces(FaceParameters.of_vector(history, source.parameters.identity))
        audio = motion.audio
        if config.audio and audio is None:
            audio = torch.zeros(batch, config.audio)
        heard = None if audio is None else audio.to(self.device)
        frames = self.generator(source.encoding, faces.unflatten(0, (batch, -1)).flatten(1, 2), heard)
        return (frames.image + 1) / 2

    def _as_lifted(self, source: HeadGANSource, motion: HeadGANMotion) -> lifted.Motion:
        """The same motion relative to the portrait, in the terms of `lifted`."""
        assert source.moving is not None
        target = FaceParameters.of_vector(motion.parameters[:, -1], source.parameters.identity)
        own, flip = source.parameters, target.expression.new_tensor(FLIP)
        scale = target.camera.scale / own.camera.scale
        turn = rotation_matrix(target.camera.rotation) @ rotation_matrix(own.camera.rotation).mT
        turn = flip[:, None] * turn * flip  # in directions of the image
        # A point of the portrait goes to scale · turn · x + shift; lifted wants the move of its own pivot.
        moved = (scale[:, None, None] * turn) @ own.camera.translation[0]
        shift = target.camera.translation - moved
        pixel = 2 / (self.size - 1)
        pivot = (source.moving.pivot + 1) / pixel
        pivot = torch.cat([pivot[:2], source.moving.pivot[2:] / pixel])
        translation = (scale[:, None, None] * turn) @ pivot + shift - pivot
        translation[:, 2] = 0  # an orthographic image shows no depth
        width = source.moving.face_width / pixel
        difference = target.expression - own.expression
        controls = torch.zeros(len(difference), len(lifted.EXPRESSIONS))
        for index, control in self._blinks:
            # Measured from the portrait's own lids: what is left of them to close.
            open_share = (1 - own.expression[:, index]).clamp(min=0.1)
            controls[:, control] = (difference[:, index] / open_share).clamp(-0.3, 1)
        still = difference.clone()
        for index, _ in self._blinks:
            still[:, index] = 0  # lids close by their controls, the rest by offsets
        assert self.model.dense is not None
        face = self.model.dense.of(self.model.mean)
        ears = torch.linalg.vector_norm(face[topology.EAR_LEFT] - face[topology.EAR_RIGHT])
        offsets = self.model.dense.of(self.model.shape(expression=still) - self.model.mean) * flip
        return lifted.Motion(
            rotation=lifted.rotation_angles(turn),
            translation=translation / width,
            scale=scale,
            expression=controls,
            offsets=offsets / ears,
        )
