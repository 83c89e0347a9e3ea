"""Motions that the motion extractor did not see: from the 3D face's parameters, from controls, from opening ratios.

Head pose carries over exactly. Of the face only what is known of LivePortrait's keypoints does: how far eyes and lips
are open, which its retargeting networks turn into offsets. Smiles, brows and gaze have no known keypoints; an
`ExpressionMap` learns them from a clip that both the face tracker and the motion extractor have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.face import FaceParameters, MorphableModel, built_in_head, rotation_matrix, trackable
from fastface.face import topology as topo
from fastface.face.camera import FLIP
from fastface.models import lifted
from fastface.models.live_portrait.crop import outline_size
from fastface.models.live_portrait.motion import LivePortraitMotion

if TYPE_CHECKING:
    from fastface.models.live_portrait.system import LivePortraitSource

__all__ = ["ExpressionMap", "eye_ratios", "from_controls", "from_face", "lip_ratio", "openings"]

_CROP = 2.3  # sides of the face in the side of a portrait's crop, which is 2 units of the keypoints
_OPEN = 0.55  # the gap between the lips in widths of the mouth when a jaw is open all the way


def eye_ratios(points: NDArray[np.floating]) -> tuple[float, float]:
    """How far the eyes are open: the gap between the lids over the eye's length, the image's left eye first.

    Args:
        points: ``[N, 2]`` or ``[N, 3]``, MediaPipe's topology.
    """
    right = _ratio(points, (topo.EYE_RIGHT_UPPER[4], topo.EYE_RIGHT_LOWER[4]), topo.EYE_RIGHT_UPPER)
    left = _ratio(points, (topo.EYE_LEFT_UPPER[4], topo.EYE_LEFT_LOWER[4]), topo.EYE_LEFT_UPPER)
    return right, left


def lip_ratio(points: NDArray[np.floating]) -> float:
    """How far the lips are apart: the gap between them over the mouth's width; points as for `eye_ratios`."""
    return _ratio(points, (topo.LIPS_INNER_UPPER[5], topo.LIPS_INNER_LOWER[5]), topo.LIPS_OUTER_UPPER)


def openings(points: NDArray[np.floating]) -> tuple[Tensor, Tensor]:
    """Both as tensors: eyes ``[1, 2]`` and lips ``[1, 1]``."""
    return torch.tensor([eye_ratios(points)]), torch.tensor([[lip_ratio(points)]])


def _ratio(points: NDArray[np.floating], gap: tuple[int, int], line: tuple[int, ...]) -> float:
    flat = points[:, :2]
    length = float(np.linalg.norm(flat[line[0]] - flat[line[-1]]))
    return float(np.linalg.norm(flat[gap[0]] - flat[gap[1]])) / max(length, 1e-6)


@dataclass(frozen=True)
class ExpressionMap:
    """Expressions of a face model to offsets of keypoints, linear: ``e = weights f``.

    Attributes:
        weights: ``[E, K, 3]``.
    """

    weights: Tensor

    @classmethod
    def fit(cls, faces: Tensor, motions: LivePortraitMotion, *, noise: float = 0.01) -> ExpressionMap:
        """Learn the map from a clip seen both ways, by ridge regression on the changes since its first frame.

        Args:
            faces: ``[T, E]``, expressions of the face model (`FaceParameters.expression`).
            motions: T absolute motions of the same frames.
            noise: standard deviation of an expression below which it is not trusted, so that what the clip does not
                show stays at zero.

        Raises:
            ValueError: clips of different lengths, or fewer than two frames.
        """
        count = len(motions)
        if faces.dim() != 2 or len(faces) != count or count < 2:
            raise ValueError(f"faces must be [T, E] for T = {count} motions, at least 2, got {list(faces.shape)}")
        changes = (faces - faces[:1]).double()
        offsets = motions.relative_to(motions.frames(slice(1))).expression.flatten(1).double()
        gram = changes.T @ changes / count + noise**2 * torch.eye(faces.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(gram, changes.T @ offsets / count)
        return cls(weights.float().unflatten(1, motions.expression.shape[1:]))

    def __call__(self, change: Tensor) -> Tensor:
        """``[B, E]`` to ``[B, K, 3]``."""
        if change.dim() != 2 or change.shape[1] != len(self.weights):
            raise ValueError(f"change must be [B, {len(self.weights)}], got {list(change.shape)}")
        return torch.einsum("be,ekc->bkc", change, self.weights)


def from_face(
    parameters: FaceParameters,
    reference: FaceParameters,
    source: LivePortraitSource,
    *,
    model: MorphableModel | None = None,
    expressions: ExpressionMap | None = None,
) -> LivePortraitMotion:
    """Relative motions from parameters of the 3D face: what they change since `reference`, on the portrait.

    The head's rotation is the camera's, ``F Rᵀ R₀ F`` in the terms of `fastface.face.camera`; its place and size are
    those of the face's middle, in sides of the face. With `expressions` the rest of the face follows it; without, eyes
    and lips open by the networks of the portrait's model as much more or less as the 3D face's do, and nothing else.

    Args:
        parameters: B frames.
        reference: the driver at rest, batch 1, usually the first frame.
        source: the portrait that shall move.
        model: whose parameters these are; the built-in head by default.

    Raises:
        ValueError: a model without points to measure eyes and lips by, or coefficients of another model.
    """
    model = trackable(model or built_in_head())
    assert model.dense is not None
    flip = torch.tensor(FLIP)
    turn = rotation_matrix(parameters.camera.rotation).mT @ rotation_matrix(reference.camera.rotation)
    rest = model.shape(reference.identity, reference.expression)
    unit = _CROP / 2 * outline_size(model.dense.of(rest)[0].numpy()) * reference.camera.scale  # pixels
    middle = model.mean.mean(0)[None, None]
    moved = parameters.camera.project(middle)[:, 0] - reference.camera.project(middle)[:, 0]
    change = parameters.expression - reference.expression
    batch = len(change)
    motion = LivePortraitMotion(
        rotation=flip[:, None] * turn * flip,
        expression=torch.zeros(batch, *source.motion.expression.shape[1:]),
        scale=(parameters.camera.scale / reference.camera.scale)[:, None],
        translation=moved / unit * torch.tensor([1.0, 1.0, 0.0]),
        relative=True,
    )
    if expressions is not None:
        return replace(motion, expression=expressions(change))
    own_eyes, own_lips = _own(source)
    before = _measured(model, reference)
    now = _measured(model, replace(parameters, identity=reference.identity))
    eyes = own_eyes * now[:, :2] / before[:, :2].clamp(min=0.05)
    return replace(motion, eyes=eyes, lips=(own_lips + now[:, 2:] - before[:, 2:]).clamp(min=0))


def from_controls(motion: lifted.Motion, source: LivePortraitSource) -> LivePortraitMotion:
    """Motions made for `lifted`, such as its presets: pose, jaw and lids; the other controls and offsets have no
    counterpart. The head turns about its own middle instead of the neck.
    """
    own = source.motion.rotation
    # The same turn seen in the image, R_s Mᵀ, as the change from the left that a relative motion is.
    turn = own @ lifted.rotation_matrix(motion.rotation).mT @ own.mT
    values = dict(zip(lifted.EXPRESSIONS, motion.expression.T, strict=True))
    ears = source.landmarks[topo.EAR_LEFT] - source.landmarks[topo.EAR_RIGHT]
    unit = 2 * float(torch.linalg.vector_norm(ears)) / source.crop.size  # a face width
    own_eyes, own_lips = _own(source)
    closed = torch.stack([values["blink_right"], values["blink_left"]], 1)
    batch = motion.batch
    return LivePortraitMotion(
        rotation=turn,
        expression=torch.zeros(batch, *source.motion.expression.shape[1:]),
        scale=motion.scale[:, None],
        translation=motion.translation * torch.tensor([unit, unit, 0.0]),
        eyes=(own_eyes * (1 - closed)).clamp(min=0),
        lips=(own_lips + _OPEN * values["jaw_open"][:, None]).clamp(min=0),
        relative=True,
    )


def _own(source: LivePortraitSource) -> tuple[Tensor, Tensor]:
    """The portrait's own eyes ``[1, 2]`` and lips ``[1, 1]``."""
    assert source.motion.eyes is not None and source.motion.lips is not None
    return source.motion.eyes, source.motion.lips


def _measured(model: MorphableModel, parameters: FaceParameters) -> Tensor:
    """Both eyes and the lips of a 3D face that looks straight ahead, ``[B, 3]``."""
    assert model.dense is not None
    points = model.dense.of(model.shape(parameters.identity, parameters.expression)).numpy()
    return torch.tensor([[*eye_ratios(face), lip_ratio(face)] for face in points])
