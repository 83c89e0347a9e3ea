"""What moves a lifted photo: head pose, expression controls, offsets of single landmarks; and motions made from
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# The controls of `Motion.expression`, in order; 0 is the portrait as it is.
EXPRESSIONS = (
    "jaw_open",  # 1: the mouth wide open
    "smile",  # 1: corners out and up; negative: down
    "pucker",  # 1: lips narrowed, as for "oo"
    "brow_raise",  # 1: both brows up; negative: down
    "blink_left",  # 1: the person's left eye closed; negative: wider
    "blink_right",
    "gaze_x",  # 1: the irises to the image's right
    "gaze_y",  # 1: the irises up
)


@dataclass(frozen=True)
class Motion:
    """A batch of motions relative to the portrait.

    Attributes:
        rotation: ``[B, 3]`` yaw, pitch, roll in degrees, seen in the image: yaw > 0 turns the face to the image's
            right, pitch > 0 raises the chin, roll > 0 tilts the head clockwise. ``R = R_roll R_pitch R_yaw`` about a
            point inside the neck.
        translation: ``[B, 3]`` in face widths, x right, y down, z away.
        scale: ``[B]``, 1 keeps the size.
        expression: ``[B, E]``, one value per name in `EXPRESSIONS`.
        offsets: None or ``[B, 468, 3]`` in face widths along the face's own axes (its x, y, z), added to what
            `expression` does.
    """

    rotation: Tensor
    translation: Tensor
    scale: Tensor
    expression: Tensor
    offsets: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rotation.dim() != 2:
            raise ValueError(f"rotation must be [B, 3], got {list(self.rotation.shape)}")
        batch = self.rotation.shape[0]
        expected = {
            "rotation": (batch, 3),
            "translation": (batch, 3),
            "scale": (batch,),
            "expression": (batch, len(EXPRESSIONS)),
            "offsets": (batch, 468, 3),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} must be finite, got {value.detach().flatten()[:8].tolist()}")
        if bool((self.scale <= 0).any()):
            raise ValueError(f"scale must be positive, got {self.scale.tolist()}")

    @property
    def batch(self) -> int:
        return int(self.rotation.shape[0])

    @classmethod
    def of(
        cls,
        *,
        yaw: float = 0.0,
        pitch: float = 0.0,
        roll: float = 0.0,
        translation: tuple[float, float, float] = (0.0, 0.0, 0.0),
        scale: float = 1.0,
        blink: float = 0.0,
        offsets: Tensor | None = None,
        **expression: float,
    ) -> Motion:
        """One motion (batch 1) from numbers; ``blink`` closes both eyes. Raises ValueError for an unknown control."""
        unknown = set(expression) - set(EXPRESSIONS)
        if unknown:
            raise ValueError(f"expression must be among {', '.join(EXPRESSIONS)}, got {', '.join(sorted(unknown))}")
        values = {"blink_left": blink, "blink_right": blink} | expression
        return cls(
            rotation=torch.tensor([[yaw, pitch, roll]], dtype=torch.float32),
            translation=torch.tensor([translation], dtype=torch.float32),
            scale=torch.tensor([scale], dtype=torch.float32),
            expression=torch.tensor([[values.get(name, 0.0) for name in EXPRESSIONS]], dtype=torch.float32),
            offsets=None if offsets is None else offsets.reshape(1, 468, 3).float(),
        )

    @classmethod
    def cat(cls, motions: list[Motion]) -> Motion:
        """Motions one after another in one batch."""
        if not motions:
            raise ValueError("motions must not be empty")
        offsets = None
        if any(motion.offsets is not None for motion in motions):
            offsets = torch.cat(
                [m.offsets if m.offsets is not None else m.rotation.new_zeros(m.batch, 468, 3) for m in motions]
            )
        return cls(
            rotation=torch.cat([m.rotation for m in motions]),
            translation=torch.cat([m.translation for m in motions]),
            scale=torch.cat([m.scale for m in motions]),
            expression=torch.cat([m.expression for m in motions]),
            offsets=offsets,
        )

    def scaled(self, *, pose: float = 1.0, expression: float = 1.0) -> Motion:
        """The same motion, weaker or stronger."""
        return replace(
            self,
            rotation=self.rotation * pose,
            translation=self.translation * pose,
            scale=self.scale**pose,
            expression=self.expression * expression,
            offsets=None if self.offsets is None else self.offsets * expression,
        )


def rotation_matrix(degrees: Tensor) -> Tensor:
    """``[B, 3]`` yaw, pitch, roll in degrees to ``[B, 3, 3]``, acting on (x right, y down, z away); see
    `Motion.rotation`.
    """
    yaw, pitch, roll = torch.deg2rad(degrees.float()).unbind(-1)
    one, zero = torch.ones_like(yaw), torch.zeros_like(yaw)

    def matrix(rows: list[list[Tensor]]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    cy, sy, cp, sp, cr, sr = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin(), roll.cos(), roll.sin()
    # The nose points to -z: yaw > 0 carries it to +x, pitch > 0 to -y.
    about_y = matrix([[cy, zero, -sy], [zero, one, zero], [sy, zero, cy]])
    about_x = matrix([[one, zero, zero], [zero, cp, sp], [zero, -sp, cp]])
    about_z = matrix([[cr, -sr, zero], [sr, cr, zero], [zero, zero, one]])
    return about_z @ about_x @ about_y


def rotation_angles(matrix: Tensor) -> Tensor:
    """The inverse of `rotation_matrix`: ``[..., 3, 3]`` to yaw, pitch, roll ``[..., 3]`` in degrees, |pitch| < 90."""
    # M = Rz Rx Ry: the last row is (cos p sin y, -sin p, cos p cos y), the middle column (-sin r cos p, cos r cos p,
    # -sin p).
    yaw = torch.atan2(matrix[..., 2, 0], matrix[..., 2, 2])
    pitch = torch.asin((-matrix[..., 2, 1]).clamp(-1, 1))
    roll = torch.atan2(-matrix[..., 0, 1], matrix[..., 1, 1])
    return torch.rad2deg(torch.stack([yaw, pitch, roll], -1))


def _blinks(t: float, times: tuple[float, ...], period: float) -> float:
    """Closing in 70 ms, opening in 150 ms, at the given times of a period."""
    amount = 0.0
    for start in times:
        since = (t - start) % period
        if since < 0.07:
            amount = max(amount, since / 0.07)
        elif since < 0.22:
            amount = max(amount, 1 - (since - 0.07) / 0.15)
    return amount * amount * (3 - 2 * amount)


def _wave(t: float, period: float, phase: float = 0.0) -> float:
    return math.sin(2 * math.pi * (t / period) + phase)


def _nod(t: float) -> Motion:
    return Motion.of(pitch=9 * _wave(t, 1.6), yaw=1.5 * _wave(t, 3.2), blink=_blinks(t, (1.5,), 3.2))


def _shake(t: float) -> Motion:
    return Motion.of(yaw=16 * _wave(t, 1.8), roll=2.0 * _wave(t, 1.8, 0.5), blink=_blinks(t, (1.3,), 3.6))


def _tilt(t: float) -> Motion:
    return Motion.of(
        roll=13 * _wave(t, 2.6), yaw=3 * _wave(t, 2.6, 0.6), smile=0.3 - 0.3 * math.cos(2 * math.pi * t / 2.6)
    )


def _blink(t: float) -> Motion:
    return Motion.of(blink=_blinks(t, (0.4, 1.35, 1.7), 2.4), pitch=0.8 * _wave(t, 2.4))


def _talk(t: float) -> Motion:
    # Syllables at about four a second under phrases of a second and a half; incommensurate waves keep it from looping.
    syllables = 0.5 + 0.5 * math.sin(2 * math.pi * 3.7 * t + 1.3 * _wave(t, 0.9))
    phrase = max(0.0, 0.25 + 0.75 * _wave(t, 1.5, -0.4) ** 2)
    ramp = min(1.0, t / 0.2)
    return Motion.of(
        jaw_open=0.55 * syllables * phrase * ramp,
        pucker=ramp * max(0.0, 0.55 * _wave(t, 0.77, 1.0)) * phrase,
        smile=ramp * (0.15 + 0.15 * _wave(t, 2.3)),
        brow_raise=ramp * max(0.0, 0.6 * _wave(t, 1.9, 0.7)),
        yaw=3.5 * _wave(t, 3.1),
        pitch=ramp * 2.5 * _wave(t, 1.5, 0.5),
        roll=1.8 * _wave(t, 4.3),
        blink=_blinks(t, (1.1, 2.9), 4.0),
    )


def _idle(t: float) -> Motion:
    return Motion.of(
        yaw=3.0 * _wave(t, 5.0) + 1.2 * _wave(t, 2.9),
        pitch=1.6 * _wave(t, 4.1),
        roll=1.4 * _wave(t, 6.3),
        translation=(0.0, 0.006 * _wave(t, 3.6), 0.0),
        blink=_blinks(t, (0.9, 3.2, 3.55), 5.0),
        smile=0.2 * max(0.0, _wave(t, 5.5)),
        gaze_x=0.35 * _wave(t, 2.7) * max(0.0, _wave(t, 5.4)),
    )


# Named motions: seconds -> Motion, the portrait itself at 0.
PRESETS: Mapping[str, Callable[[float], Motion]] = {
    "nod": _nod,
    "shake": _shake,
    "tilt": _tilt,
    "talk": _talk,
    "blink": _blink,
    "idle": _idle,
}
