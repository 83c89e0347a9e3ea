"""The face of a person in a video, followed, as clips to train on: see `fastface.models.posegan.corpus.format`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.audio.sound import SAMPLE_RATE, Samples
from fastface.face import Camera, MorphableModel, built_in_head, lip_gap_mm
from fastface.face.camera import FLIP
from fastface.models.headgan.driving import FaceTrack
from fastface.models.posegan.corpus import Clip, mouth_opening
from fastface.models.posegan.networks import CAMERA_DISTANCE
from fastface.models.posegan.windows import smooth

__all__ = ["Motion", "cut", "extract"]

Array = NDArray[np.float64]

_REST = 0.1  # of the frames, those with the narrowest mouths, are taken for the face at rest
_LONGEST_GAP = 0.3  # seconds without a face over which is interpolated
_PIECE, _SHORTEST = 10.0, 2.0  # seconds of a clip


@dataclass(frozen=True)
class Motion:
    """A face at a constant rate.

    Attributes:
        pose: ``[T, 6]``: pitch, yaw, roll in radians with the signs of `Camera.angles`; x, y, z in millimetres along
            the axes of model space, from the median place of the face. A camera sees no depth, so z is the one at which
            the size in the picture fits a camera 600 mm away.
        identity: ``[I]``.
        expression: ``[T, E]``, from the face at rest: the median of the tenth of the frames whose lips are closest.
        found: ``[T]``, whether the face was there, gaps under 0.3 s closed.
    """

    pose: Array
    identity: Array
    expression: Array
    found: NDArray[np.bool_]


def extract(track: FaceTrack, model: MorphableModel, fps: float) -> Motion:
    """The motion of a face that was followed, frame t at t / fps seconds.

    Poses are means of five frames, as a detector's points tremble; expressions are as found, for the lips close fast.

    Args:
        track: with times from 0.
        model: whose parameters it has, with dense points.
        fps: of the motion.

    Raises:
        ValueError: a model in an unknown unit or without dense points, or fps that are not positive.
    """
    millimetres = model.millimetres
    if not 0 < fps < np.inf:
        raise ValueError(f"fps must be positive, got {fps}")
    here, expression = track.found, track.vectors[:, :-7]
    gaps = expression[here] @ lip_gap_mm(model).slopes
    closest = expression[here][gaps.argsort()[: max(1, round(_REST * len(gaps)))]]
    poses = _poses(track.parameters.camera, here, millimetres)
    rows = torch.cat([poses, expression - closest.median(0).values], 1)[here].double().numpy()

    known = track.seconds[here].numpy()
    time = np.arange(round(float(track.seconds[-1]) * fps) + 1) / fps
    values = np.stack([np.interp(time, known, column) for column in rows.T], 1)
    after = np.searchsorted(known, time).clip(1, len(known) - 1)
    near = np.diff(known, prepend=-np.inf)[after] < _LONGEST_GAP
    inside = (time > known[0] - 0.5 / fps) & (time < known[-1] + 0.5 / fps)
    smoothed = smooth(torch.from_numpy(values[None, :, :6]))[0].numpy()
    return Motion(smoothed, track.identity[0].double().numpy(), values[:, 6:], near & inside)


def _poses(camera: Camera, found: Tensor, millimetres: float) -> Tensor:
    """``[T, 6]`` as in `Motion`, of a model whose unit is so many millimetres."""
    yaw, pitch, roll = camera.angles.deg2rad().T
    middle, size = camera.translation[found].median(0).values, camera.scale[found].median()
    shift = (camera.translation - middle) * camera.scale.new_tensor(FLIP) * millimetres / camera.scale[:, None]
    depth = CAMERA_DISTANCE * (1 - size / camera.scale)
    return torch.stack([pitch, yaw, roll, *shift[:, :2].T, depth], 1)


def cut(motion: Motion, samples: Samples, fps: float, model: MorphableModel) -> Iterator[Clip]:
    """Clips of up to 10 s where the face was there, none shorter than 2 s.

    Args:
        motion: the face.
        samples: ``[N]`` at 16 kHz from its first frame on; silence where they end before the face does.
        fps: of the motion.
        model: whose parameters it has; of the built-in head clips have the opening of the mouth too.
    """
    edges = np.flatnonzero(np.diff(motion.found.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    opens = model.content_hash == built_in_head().content_hash
    for first, last in edges:
        parts = -(-(last - first) // round(_PIECE * fps))
        bounds = np.linspace(first, last, parts + 1).round().astype(int)
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
            if end - start < _SHORTEST * fps:
                continue
            begin, stop = (round(frame / fps * SAMPLE_RATE) for frame in (start, end))
            sound = samples[begin:stop]
            expression = motion.expression[start:end].astype(np.float32)
            yield Clip(
                np.pad(sound, (0, stop - begin - len(sound))),
                fps,
                motion.pose[start:end].astype(np.float32),
                motion.identity.astype(np.float32),
                expression,
                mouth_opening(expression).astype(np.float32) if opens else None,
            )
