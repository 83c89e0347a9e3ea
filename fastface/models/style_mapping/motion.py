"""What drives a portrait: poses and expressions of frames, and the keypoints that they make of the portrait's own.

    C_k = R c_k + τ + ε_k          the portrait's keypoints c_k in a pose (R, τ) with an expression ε
    absolute:  driving = C̄_k       the driving frame's pose and expression as they are
    relative:  driving = C_k + s (C̄_k - C̄_k of the first driving frame),  s = sqrt(hull(C) / hull(C̄ first))

Source: Style Mapping (arXiv 2303.09799), the keypoint equations, whose row vectors c_k R are columns R c_k here; the
relative form is that of the published code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastface.models.style_mapping.keypoints import rotation_matrix, transform_keypoints
from fastface.models.style_mapping.pose import PoseExpression

__all__ = ["HeadMotion", "KeypointMotion", "RelativeMotion", "hull_scale"]


@dataclass(frozen=True)
class HeadMotion:
    """How a head is held and what its face does, for a batch of frames.

    Attributes:
        angles: ``[B, 3]``: pitch, yaw, roll in degrees.
        translation: ``[B, 3]``, in the [-1, 1] of the keypoints.
        expression: ``[B, K, 3]``: offsets of the keypoints.

    Raises:
        ValueError: other shapes.
    """

    angles: Tensor
    translation: Tensor
    expression: Tensor

    def __post_init__(self) -> None:
        batch = self.angles.shape[0] if self.angles.dim() else 0
        for name, tensor in (("angles", self.angles), ("translation", self.translation)):
            if tensor.shape != (batch, 3):
                raise ValueError(f"{name} must be [B, 3], got {list(tensor.shape)}")
        if self.expression.dim() != 3 or (self.expression.shape[0], self.expression.shape[2]) != (batch, 3):
            raise ValueError(f"expression must be [{batch}, K, 3], got {list(self.expression.shape)}")

    @classmethod
    def of(cls, pose: PoseExpression) -> HeadMotion:
        """From what the pose expression network says."""
        return cls(pose.angles, pose.translation, pose.expression)

    @property
    def rotation(self) -> Tensor:
        """R, ``[B, 3, 3]``."""
        return rotation_matrix(self.angles)

    def keypoints(self, canonical: Tensor) -> Tensor:
        """``C_k = R c_k + τ + ε_k`` of canonical keypoints ``[B, K, 3]`` or ``[1, K, 3]``."""
        return transform_keypoints(canonical, self.rotation, self.translation, self.expression)

    def on(self, canonical: Tensor, source: HeadMotion) -> KeypointMotion:
        """The absolute motion of canonical keypoints; what the source itself does has no part in it."""
        return KeypointMotion(self.keypoints(canonical), self.rotation)

    def turned(self, *, pitch: float = 0.0, yaw: float = 0.0, roll: float = 0.0) -> HeadMotion:
        """Degrees further about each axis; ``replace(motion, angles=...)`` faces anywhere instead.

        Pitch > 0 lowers the nose, yaw > 0 turns it to the image's left, roll > 0 tilts the head clockwise.
        """
        return replace(self, angles=self.angles + self.angles.new_tensor([pitch, yaw, roll]))

    def scaled(self, *, pose: float = 1.0, expression: float = 1.0, since: HeadMotion | None = None) -> HeadMotion:
        """Pose and expression made weaker or stronger: what departs from `since`, by default from none at all."""

        def scale(name: str, factor: float) -> Tensor:
            value = getattr(self, name)
            start = torch.zeros_like(value) if since is None else getattr(since, name)
            return start + factor * (value - start)

        return HeadMotion(scale("angles", pose), scale("translation", pose), scale("expression", expression))


@dataclass(frozen=True)
class KeypointMotion:
    """Where a portrait's keypoints go: `keypoints` ``[B, K, 3]``, and the head's `rotation` R̄ ``[B, 3, 3]`` there."""

    keypoints: Tensor
    rotation: Tensor


@dataclass(frozen=True)
class RelativeMotion:
    """What driving frames changed since the first one of their clip: the relative form of the module's equation.

    Attributes:
        driving: ``[B]`` frames.
        first: the clip's first frame, batch 1.
        adapt_scale: multiply by s, the ratio of the faces' sizes; else by 1.
    """

    driving: HeadMotion
    first: HeadMotion
    adapt_scale: bool = True

    def on(self, canonical: Tensor, source: HeadMotion) -> KeypointMotion:
        """The same change on the keypoints of a source, ``[1, K, 3]`` and batch 1.

        The head turns by what the driving one turned: ``R̄ = R_driving R_firstᵀ R_source``.
        """
        ours, start = source.keypoints(canonical), self.first.keypoints(canonical)
        moved = self.driving.keypoints(canonical) - start
        if self.adapt_scale:
            moved = hull_scale(ours, start)[:, None, None] * moved
        return KeypointMotion(ours + moved, self.driving.rotation @ self.first.rotation.mT @ source.rotation)

    def scaled(self, *, pose: float = 1.0, expression: float = 1.0) -> RelativeMotion:
        """A weaker or stronger change."""
        return replace(self, driving=self.driving.scaled(pose=pose, expression=expression, since=self.first))


def hull_scale(kp_source: Tensor, kp_driving: Tensor) -> Tensor:
    """``sqrt(hull(source) / hull(driving))``, ``[B]``, of the areas of the convex hulls of (x, y) of ``[B, K, 3]``.

    Raises:
        ValueError: driving keypoints that all lie on a line.
    """
    source, driving = _hull_area(kp_source), _hull_area(kp_driving)
    if not (driving > 0).all():
        raise ValueError("the driving keypoints must span an area, got keypoints on one line")
    return (source / driving).sqrt()


def _hull_area(keypoints: Tensor) -> Tensor:
    import cv2

    points = keypoints[..., :2].detach().float().cpu().numpy()
    areas = [cv2.contourArea(cv2.convexHull(np.ascontiguousarray(each))) for each in points]
    return torch.tensor(areas, dtype=keypoints.dtype, device=keypoints.device)
