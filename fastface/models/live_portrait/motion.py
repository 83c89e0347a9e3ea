"""What moves a portrait: head pose, offsets of its keypoints, and how far eyes and lips shall open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastface.face import rotation_matrix as matrix_of_vector
from fastface.face import rotation_vector
from fastface.models import lifted
from fastface.models.live_portrait.networks import MotionParameters, transform_keypoints

__all__ = ["EYES", "LIPS", "REGIONS", "LivePortraitMotion", "check_region"]

# Of the public model's 21 keypoints, those that carry the lips and the eyes: the field's convention, not derivable
# from the weights' layout.
LIPS = (6, 12, 14, 17, 19, 20)
EYES = (11, 13, 15, 16, 18)
_KEYPOINTS = 21

# What a motion may move, by the name of the region.
REGIONS: Mapping[str, frozenset[str]] = {
    "all": frozenset({"pose", "eyes", "lip", "rest"}),
    "exp": frozenset({"eyes", "lip", "rest"}),
    "pose": frozenset({"pose"}),
    "lip": frozenset({"lip"}),
    "eyes": frozenset({"eyes"}),
}


@dataclass(frozen=True)
class LivePortraitMotion:
    """A batch of motions, on the CPU: canonical keypoints c go to ``s (c R + e) + t``, the z of t left out.

    Attributes:
        rotation: R, ``[B, 3, 3]``, applied from the right.
        expression: e, ``[B, K, 3]``.
        scale: s, ``[B, 1]``.
        translation: t, ``[B, 3]``.
        eyes: None, or how far they are open ``[B, 2]``, the image's left one first (`retargeting.eye_ratios`).
        lips: None, or how far they are apart ``[B, 1]`` (`retargeting.lip_ratio`).
        relative: whether this is a change of the portrait it meets, R R_s, e_s + e, s_s s, t_s + t, or replaces what
            the portrait does. Eyes and lips are what shall be reached either way.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, a scale that is not positive.
    """

    rotation: Tensor
    expression: Tensor
    scale: Tensor
    translation: Tensor
    eyes: Tensor | None = None
    lips: Tensor | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if self.expression.dim() != 3 or self.expression.shape[2] != 3:
            raise ValueError(f"expression must be [B, K, 3], got {list(self.expression.shape)}")
        batch = len(self.expression)
        shapes = {"rotation": (3, 3), "scale": (1,), "translation": (3,), "eyes": (2,), "lips": (1,)}
        for name, tensor in self.tensors().items():
            if name in shapes and tuple(tensor.shape) != (batch, *shapes[name]):
                raise ValueError(f"{name} must be {[batch, *shapes[name]]}, got {list(tensor.shape)}")
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} must be finite, got {tensor.detach().flatten()[:8].tolist()}")
        if not (self.scale > 0).all():
            raise ValueError(f"scale must be positive, got {self.scale.flatten().tolist()}")

    def __len__(self) -> int:
        return len(self.expression)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, those that are None left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def frames(self, index: slice) -> LivePortraitMotion:
        """Some motions of the batch."""
        parts: dict[str, Any] = {name: tensor[index] for name, tensor in self.tensors().items()}
        return replace(self, **parts)

    @classmethod
    def cat(cls, motions: Sequence[LivePortraitMotion]) -> LivePortraitMotion:
        """Motions one after another in one batch; eyes and lips are kept where all have them."""
        if not motions:
            raise ValueError("motions must not be empty")
        if len({motion.relative for motion in motions}) > 1:
            raise ValueError("motions must be all relative or all absolute, got both")
        names = set.intersection(*(set(motion.tensors()) for motion in motions))
        parts: dict[str, Any] = {name: torch.cat([getattr(motion, name) for motion in motions]) for name in names}
        return cls(**parts, relative=motions[0].relative)

    @classmethod
    def of(
        cls,
        *,
        yaw: float = 0.0,
        pitch: float = 0.0,
        roll: float = 0.0,
        translation: tuple[float, float] = (0.0, 0.0),
        scale: float = 1.0,
        expression: Tensor | None = None,
        eyes: float | None = None,
        lips: float | None = None,
        keypoints: int = _KEYPOINTS,
    ) -> LivePortraitMotion:
        """One relative motion (batch 1) from numbers; without any of them the portrait stays as it is.

        Args:
            yaw, pitch, roll: degrees, about the head's own axes: yaw > 0 turns the face to the image's right, pitch > 0
                raises the chin, roll > 0 tilts the head clockwise. They count z into the image, as the volume does.
            translation: x right and y down; 2 is the side of the crop.
            expression: ``[K, 3]``, added to the portrait's.
            eyes, lips: how far they shall be open.
        """
        turn = lifted.rotation_matrix(torch.tensor([[yaw, pitch, roll]]))
        offsets = torch.zeros(keypoints, 3) if expression is None else expression.float()
        return cls(
            rotation=turn.mT,
            expression=offsets[None],
            scale=torch.tensor([[scale]], dtype=torch.float32),
            translation=torch.tensor([[*translation, 0.0]], dtype=torch.float32),
            eyes=None if eyes is None else torch.full((1, 2), float(eyes)),
            lips=None if lips is None else torch.full((1, 1), float(lips)),
            relative=True,
        )

    @classmethod
    def of_parameters(
        cls, parameters: MotionParameters, eyes: Tensor | None = None, lips: Tensor | None = None
    ) -> LivePortraitMotion:
        """What the motion extractor says of images, as absolute motions, on the CPU."""
        said = (parameters.rotation, parameters.expression, parameters.scale, parameters.translation)
        rotation, expression, scale, translation = (each.detach().float().cpu() for each in said)
        return cls(rotation, expression, scale, translation * torch.tensor([1.0, 1.0, 0.0]), eyes, lips)

    def relative_to(self, first: LivePortraitMotion) -> LivePortraitMotion:
        """The changes since `first` (batch 1): ``R R₀ᵀ``, ``e - e₀``, ``s / s₀``, ``t - t₀``.

        Raises ValueError for motions that are relative already.
        """
        if self.relative or first.relative:
            raise ValueError("both motions must be absolute, got a relative one")
        return replace(
            self,
            rotation=self.rotation @ first.rotation.mT,
            expression=self.expression - first.expression,
            scale=self.scale / first.scale,
            translation=self.translation - first.translation,
            relative=True,
        )

    def scaled(self, *, pose: float = 1.0, expression: float = 1.0) -> LivePortraitMotion:
        """The same change, weaker or stronger: its angle, translation and the logarithm of its scale times `pose`.

        Raises ValueError for an absolute motion with a strength other than 1.
        """
        if pose == expression == 1:
            return self
        if not self.relative:
            raise ValueError(f"only a relative motion has a strength, got pose {pose:g} and expression {expression:g}")
        return replace(
            self,
            rotation=matrix_of_vector(rotation_vector(self.rotation) * pose),
            translation=self.translation * pose,
            scale=self.scale**pose,
            expression=self.expression * expression,
        )

    def smoothed(self, frames: float) -> LivePortraitMotion:
        """A clip calmed over time by a Gaussian of so many frames, without delay; rotations stay rotations.

        Raises ValueError for a negative width.
        """
        if not frames >= 0:
            raise ValueError(f"frames must be at least 0, got {frames}")
        if frames == 0:
            return self
        reach = math.ceil(4 * frames)
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (offsets / frames) ** 2).to(self.expression)[None, None]
        share = F.conv1d(kernel.new_ones(1, 1, len(self)), kernel, padding=reach)

        def calm(values: Tensor) -> Tensor:
            rows = values.flatten(1).T[:, None]  # [N, 1, T]
            return (F.conv1d(rows, kernel, padding=reach) / share)[:, 0].T.reshape(values.shape)

        parts: dict[str, Any] = {name: calm(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **parts | {"rotation": matrix_of_vector(rotation_vector(parts["rotation"]))})

    def with_ratios(self, *, eyes: bool, lips: bool) -> LivePortraitMotion:
        """The same, eyes and lips left to the expression where they are not asked for."""
        return replace(self, eyes=self.eyes if eyes else None, lips=self.lips if lips else None)

    def applied_to(self, source: LivePortraitMotion, region: str = "all") -> LivePortraitMotion:
        """The absolute motion of a portrait that does this; what the region leaves out stays as in `source` (batch 1).

        Eyes and lips that shall be retargeted keep the source's offsets as well, so that they do not move twice.

        Raises:
            ValueError: a region that there is not, or a relative `source`.
        """
        moves = check_region(region)
        if source.relative:
            raise ValueError("source must be an absolute motion, got a relative one")
        batch, count = self.expression.shape[:2]
        if source.expression.shape[1] != count:
            raise ValueError(f"motion must have the source's {source.expression.shape[1]} keypoints, got {count}")
        wanted = self
        if self.relative:
            wanted = replace(
                self,
                rotation=self.rotation @ source.rotation,
                expression=source.expression + self.expression,
                scale=source.scale * self.scale,
                translation=source.translation + self.translation,
                relative=False,
            )
        eyes, lips = (each if name in moves else None for name, each in (("eyes", self.eyes), ("lip", self.lips)))
        pose = wanted if "pose" in moves else source
        free = _free(
            count, moves - ({"eyes"} if eyes is not None else set()) - ({"lip"} if lips is not None else set())
        )
        return replace(
            wanted,
            rotation=pose.rotation.expand(batch, -1, -1),
            scale=pose.scale.expand(batch, -1),
            translation=pose.translation.expand(batch, -1),
            expression=torch.where(free, wanted.expression, source.expression),
            eyes=eyes,
            lips=lips,
        )

    def keypoints(self, canonical: Tensor) -> Tensor:
        """``s (c R + e) + t`` for canonical keypoints ``[B, K, 3]`` or ``[1, K, 3]``."""
        if self.relative:
            raise ValueError("a relative motion has keypoints only when applied to a portrait's")
        return transform_keypoints(canonical, self.rotation, self.expression, self.scale, self.translation)


def check_region(region: str) -> frozenset[str]:
    """What a region moves. Raises ValueError for one that there is not."""
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}")
    return REGIONS[region]


def _free(count: int, moves: frozenset[str] | set[str]) -> Tensor:
    """``[K, 1]``: which keypoints take a new expression."""
    free = torch.full((count, 1), "rest" in moves)
    if len(moves & {"eyes", "lip", "rest"}) in (0, 3):
        return free
    if count != _KEYPOINTS:
        raise ValueError(f"eyes and lips are known among {_KEYPOINTS} keypoints, got {count}")
    for name, index in (("eyes", EYES), ("lip", LIPS)):
        free[list(index)] = name in moves
    return free
