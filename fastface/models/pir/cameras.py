"""Cameras to rays: EG3D's convention and the paper's, and cameras that go round a head.

World space is y up; a camera looks along its own z, x to the right and y down (OpenCV). Rays come row by row, index
``row * width + column``, through the centres of the pixels, with directions of length 1, so depths are distances.
Sources: EG3D (arXiv 2112.07945), section 4.2; PIR (CVPR 2023), supplement, equation (4).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["camera_rays", "camera_vector", "diagonal_fov", "orbit", "projection_rays"]


def camera_rays(cam2world: Tensor, intrinsics: Tensor, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Origins and directions ``[B, H W, 3]`` of the rays of an image.

    Args:
        cam2world: ``[B, 4, 4]`` poses.
        intrinsics: ``[B, 3, 3]``, upper triangular, in sizes of the image: the principal point in its middle is 0.5.
        size: (H, W), or one number for both.

    Raises:
        ValueError: other shapes, or an empty image.
    """
    _check("cam2world", cam2world, 4, len(cam2world))
    _check("intrinsics", intrinsics, 3, len(cam2world))
    height, width = _size(size)
    pixels = _pixels(height, width, cam2world, 1 / height, 1 / width)
    return _rays(cam2world[:, :3, :3], cam2world[:, :3, 3], intrinsics.to(cam2world.dtype), pixels)


def projection_rays(
    intrinsics: Tensor, rotation: Tensor, translation: Tensor, size: int | tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The rays of a camera ``z [u v 1]ᵀ = K [R | t] [x y z 1]ᵀ``: origin ``-Rᵀ t``, direction ``Rᵀ K⁻¹ [u v 1]ᵀ``.

    Args:
        intrinsics: K ``[B, 3, 3]``, upper triangular, in pixels; the centre of the first pixel is (0.5, 0.5).
        rotation, translation: R ``[B, 3, 3]`` and t ``[B, 3]``, world to camera.
        size: (H, W), or one number for both.

    Raises:
        ValueError: other shapes, or an empty image.
    """
    _check("rotation", rotation, 3, len(rotation))
    _check("intrinsics", intrinsics, 3, len(rotation))
    if translation.shape != (len(rotation), 3):
        raise ValueError(f"translation must be [{len(rotation)}, 3], got {list(translation.shape)}")
    height, width = _size(size)
    origin = -(rotation.mT @ translation[..., None]).squeeze(-1)
    return _rays(rotation.mT, origin, intrinsics.to(rotation.dtype), _pixels(height, width, rotation))


def orbit(
    yaw: Tensor | float,
    pitch: Tensor | float = 0.0,
    *,
    radius: float = 2.7,
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.2),
) -> Tensor:
    """Poses ``[B, 4, 4]`` on a sphere about the world's origin, looking at `pivot`, upright.

    Args:
        yaw, pitch: degrees, numbers or ``[B]``; 0 is in front of the face (+z), positive to the person's left (+x) and
            above (+y). A pitch of 90 degrees has no upright view.
        radius: of the sphere, as in EG3D's models of faces.

    Raises:
        ValueError: angles that are not finite, a pitch from 90 degrees on, or a radius that is not positive.
    """
    angles = torch.broadcast_tensors(*(torch.as_tensor(angle, dtype=torch.float32) for angle in (yaw, pitch)))
    across, above = (angle.reshape(-1).deg2rad() for angle in angles)
    if not across.isfinite().all():
        raise ValueError(f"yaw must be finite, got {across.rad2deg().tolist()}")
    if not (above.abs() < math.pi / 2 - 1e-4).all():
        raise ValueError(f"pitch must be between -90 and 90 degrees, got {above.rad2deg().tolist()}")
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    place = radius * torch.stack([above.cos() * across.sin(), above.sin(), above.cos() * across.cos()], 1)
    forward = F.normalize(place.new_tensor(pivot) - place, dim=1)
    up = place.new_tensor([0.0, 1.0, 0.0]).expand_as(forward)
    right = F.normalize(torch.linalg.cross(forward, up), dim=1)
    down = torch.linalg.cross(forward, right)
    pose = torch.eye(4).repeat(len(place), 1, 1)
    pose[:, :3] = torch.stack([right, down, forward, place], 2)
    return pose


def diagonal_fov(degrees: float = 18.837) -> Tensor:
    """Intrinsics ``[1, 3, 3]`` in sizes of the image, from the field of view of its diagonal, as EG3D gives it.

    ``f = 1 / (√2 tan(fov / 2))``. Raises ValueError for an angle outside of 0 to 180.
    """
    if not 0 < degrees < 180:
        raise ValueError(f"the field of view must be between 0 and 180 degrees, got {degrees}")
    focal = 1 / (math.sqrt(2) * math.tan(math.radians(degrees) / 2))
    return torch.tensor([[[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]]])


def camera_vector(cam2world: Tensor, intrinsics: Tensor) -> Tensor:
    """The 25 numbers ``[B, 25]`` that EG3D's generators are conditioned on: the pose, then the intrinsics."""
    _check("cam2world", cam2world, 4, len(cam2world))
    _check("intrinsics", intrinsics, 3, len(cam2world))
    return torch.cat([cam2world.flatten(1), intrinsics.expand(len(cam2world), 3, 3).flatten(1)], 1)


def _check(name: str, matrices: Tensor, side: int, batch: int) -> None:
    if matrices.dim() != 3 or matrices.shape[1:] != (side, side):
        raise ValueError(f"{name} must be [B, {side}, {side}], got {list(matrices.shape)}")
    if len(matrices) not in (1, batch):
        raise ValueError(f"{name} must be [{batch}, {side}, {side}], got {list(matrices.shape)}")


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be at least 1x1, got {height}x{width}")
    return height, width


def _pixels(height: int, width: int, like: Tensor, tall: float = 1.0, wide: float = 1.0) -> Tensor:
    """Centres (x, y) ``[H W, 2]`` of pixels of that size."""
    y, x = (
        (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * side
        for count, side in ((height, tall), (width, wide))
    )
    return torch.cartesian_prod(y, x).flip(1)


def _rays(rotation: Tensor, origin: Tensor, intrinsics: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Through `pixels` ``[N, 2]``, from cameras to the world."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
    # K is upper triangular.
    inside = torch.linalg.solve_triangular(intrinsics, homogeneous.mT.expand(len(intrinsics), 3, -1), upper=True)
    directions = F.normalize((rotation @ inside).mT, dim=-1)
    return origin[:, None].expand(directions.shape), directions
