"""The camera of a face: scaled orthographic, seven numbers; and what carries one person's cameras to another's.

Model space is x to the person's left, y up, z out of the face. The image is x right, y down, z away from the viewer
(smaller is nearer), all three in pixels, the centre of the first pixel at (0, 0): what `fastface.ops.rasterize` draws
and what landmark detectors report. A camera maps one to the other by

    image = scale · F · R · x + translation,  F = diag(1, -1, -1)

F turns half round the x axis, so it keeps orientation, and a face that looks straight into the camera has R = 1. R is
given as a rotation vector (axis times angle, radians, in model space). translation_z moves no pixel of an orthographic
image; it keeps depth comparable.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

FLIP = (1.0, -1.0, -1.0)  # from the directions of model space to those of the image
_WINDOW = 15


def _bar_itzhack() -> list[list[float]]:
    """What each of the nine entries of a rotation matrix adds to the 16 of the symmetric matrix of its quaternion."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = range(9)
    sums = (
        ({xx: 1, yy: -1, zz: -1}, {yx: 1, xy: 1}, {zx: 1, xz: 1}, {zy: 1, yz: -1}),
        ({yx: 1, xy: 1}, {yy: 1, xx: -1, zz: -1}, {zy: 1, yz: 1}, {xz: 1, zx: -1}),
        ({zx: 1, xz: 1}, {zy: 1, yz: 1}, {zz: 1, xx: -1, yy: -1}, {yx: 1, xy: -1}),
        ({zy: 1, yz: -1}, {xz: 1, zx: -1}, {yx: 1, xy: -1}, {xx: 1, yy: 1, zz: 1}),
    )
    return [[float(each.get(entry, 0)) for row in sums for each in row] for entry in range(9)]


_BAR_ITZHACK = torch.tensor(_bar_itzhack(), dtype=torch.float64)


@dataclass(frozen=True)
class Camera:
    """A batch, or a sequence, of cameras.

    Attributes:
        scale: ``[B]`` pixels per unit of the model, positive.
        rotation: ``[B, 3]`` rotation vectors, radians.
        translation: ``[B, 3]`` pixels.

    Raises:
        ValueError: other shapes.
    """

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def __post_init__(self) -> None:
        if self.scale.dim() != 1:
            raise ValueError(f"scale must be [B], got {list(self.scale.shape)}")
        for name in ("rotation", "translation"):
            shape = getattr(self, name).shape
            if shape != (len(self.scale), 3):
                raise ValueError(f"{name} must be [{len(self.scale)}, 3], got {list(shape)}")

    def __len__(self) -> int:
        return len(self.scale)

    @property
    def vector(self) -> Tensor:
        """``[B, 7]``: scale, rotation, translation."""
        return torch.cat([self.scale[:, None], self.rotation, self.translation], 1)

    @classmethod
    def of_vector(cls, vector: Tensor) -> Camera:
        """The inverse of `vector`. Raises ValueError for anything but ``[B, 7]``."""
        if vector.dim() != 2 or vector.shape[1] != 7:
            raise ValueError(f"vector must be [B, 7], got {list(vector.shape)}")
        return cls(vector[:, 0], vector[:, 1:4], vector[:, 4:])

    @property
    def angles(self) -> Tensor:
        """``[B, 3]`` yaw, pitch, roll in degrees, seen in the image: yaw > 0 turns the face to the image's right,
        pitch > 0 raises the chin, roll > 0 tilts the head clockwise; ``R = R_roll R_pitch R_yaw``.
        """
        r = rotation_matrix(self.rotation)
        yaw = torch.atan2(-r[:, 2, 0], r[:, 2, 2])
        pitch = -torch.asin(r[:, 2, 1].clamp(-1, 1))
        roll = torch.atan2(r[:, 0, 1], r[:, 1, 1])
        return torch.rad2deg(torch.stack([yaw, pitch, roll], 1))

    def project(self, shape: Tensor) -> Tensor:
        """Points of model space ``[B, V, 3]`` in the image ``[B, V, 3]``; a batch of 1 serves all on either side."""
        rows = rotation_matrix(self.rotation) * self.scale.new_tensor(FLIP)[:, None]
        return self.scale[:, None, None] * (shape @ rows.mT) + self.translation[:, None]


def rotation_matrix(vector: Tensor) -> Tensor:
    """Rotation vectors ``[B, 3]`` to matrices ``[B, 3, 3]`` (Rodrigues)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    angle = torch.linalg.vector_norm(vector, dim=-1)[..., None, None]
    # sinc(a / π) = sin a / a, also at 0; (1 - cos a) / a² = sinc(a / 2π)² / 2.
    linear, quadratic = torch.sinc(angle / torch.pi), 0.5 * torch.sinc(angle / (2 * torch.pi)) ** 2
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + linear * cross + quadratic * (cross @ cross)


def rotation_vector(matrix: Tensor) -> Tensor:
    """The rotation vectors ``[B, 3]`` nearest to matrices ``[B, 3, 3]`` that are about rotations.

    The quaternion is the dominant eigenvector of a symmetric 4x4 matrix (Bar-Itzhack 2000), sound at every angle.
    """
    symmetric = (matrix.flatten(-2) @ _BAR_ITZHACK.to(matrix)).unflatten(-1, (4, 4))
    quaternion = torch.linalg.eigh(symmetric)[1][..., -1]
    quaternion = torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    axis, sine = quaternion[..., :3], torch.linalg.vector_norm(quaternion[..., :3], dim=-1, keepdim=True)
    half = torch.atan2(sine, quaternion[..., 3:])
    return axis * torch.where(sine > 0, 2 * half / sine.clamp(min=1e-30), 2.0)


def adapt_cameras(driving: Camera, reference: Camera, *, window: int = _WINDOW, match_spread: bool = False) -> Camera:
    """Cameras of a driving video, seen as the source's: its size, its place, the driver's turns.

    ``scale · mean(reference scale) / mean(driving scale)``, then a centred box filter over `window` frames (fewer at
    the ends); ``translation - mean(driving) + mean(reference)``. HeadGAN's adaptation, for a whole video at once.

    Args:
        driving: T frames.
        reference: one or more frames of the source.
        window: odd number of frames.
        match_spread: also give the translation the standard deviation of the reference's, which needs several frames
            on both sides.

    Raises:
        ValueError: an even window, no frames, or too few for `match_spread`.
    """
    _check_adaptation(reference, window, match_spread)
    if len(driving) < 1 + match_spread:
        raise ValueError(f"driving must have at least {1 + match_spread} frames, got {len(driving)}")
    scale = driving.scale * (reference.scale.mean() / driving.scale.mean())
    half = window // 2
    padded = torch.nn.functional.pad(torch.stack([scale, torch.ones_like(scale)]), (half, half))
    sums = padded.unfold(1, window, 1).sum(-1)
    moved = driving.translation - driving.translation.mean(0)
    if match_spread:
        moved = moved * _spread_ratio(driving.translation.std(0, correction=0), reference)
    return Camera(sums[0] / sums[1], driving.rotation, moved + reference.translation.mean(0))


class CameraAdapter:
    """`adapt_cameras` for live use: one frame at a time, with the driver's statistics so far and the box filter over
    the last `window` frames. Arguments and errors are those of `adapt_cameras`.

    After T frames it has seen what the offline form sees, so it comes to agree with it but for half a window of delay.
    """

    def __init__(self, reference: Camera, *, window: int = _WINDOW, match_spread: bool = False) -> None:
        _check_adaptation(reference, window, match_spread)
        self._reference, self._match_spread = reference, match_spread
        self._recent: deque[Tensor] = deque(maxlen=window)
        self._count = 0
        self._mean = torch.zeros(4, dtype=torch.float64)  # scale, translation
        self._squares = torch.zeros(4, dtype=torch.float64)  # of the deviations from the mean (Welford)

    def __call__(self, driving: Camera) -> Camera:
        """The next frame. Raises ValueError for a batch of more than one."""
        if len(driving) != 1:
            raise ValueError(f"driving must be one frame, got {len(driving)}")
        value = torch.cat([driving.scale, driving.translation[0]])
        self._count += 1
        deviation = value.double().cpu() - self._mean
        self._mean += deviation / self._count
        self._squares += deviation * (value.double().cpu() - self._mean)
        mean = self._mean.to(value)
        self._recent.append(driving.scale * (self._reference.scale.mean() / mean[0]))
        moved = driving.translation - mean[1:]
        if self._match_spread:
            moved = moved * _spread_ratio((self._squares[1:] / self._count).sqrt().to(value), self._reference)
        scale = torch.stack(list(self._recent)).mean(0)
        return Camera(scale, driving.rotation, moved + self._reference.translation.mean(0))


def _check_adaptation(reference: Camera, window: int, match_spread: bool) -> None:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    if len(reference) < 1 + match_spread:
        raise ValueError(f"reference must have at least {1 + match_spread} frames, got {len(reference)}")


def _spread_ratio(driving: Tensor, reference: Camera) -> Tensor:
    wanted = reference.translation.std(0, correction=0)
    return torch.where(driving > 0, wanted / driving.clamp(min=1e-12), 1.0)
