"""Canonical keypoints of a face (table 1), and the algebra that moves them by a head's pose and expression.

Coordinates are (x, y, z) in [-1, 1]: x right, y down, z inward.
Source: Style Mapping (arXiv 2303.09799), table 1 and the keypoint equations; face-vid2vid (arXiv 2011.15126), section
3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.models.style_mapping.blocks import DownBlock2d, UpBlock3d

__all__ = [
    "KeypointConfig",
    "KeypointDetector",
    "angles_of_bins",
    "axis_rotations",
    "rotation_matrix",
    "transform_keypoints",
]

BIN_DEGREES = 3.0  # the pose heads' 66 bins


@dataclass(frozen=True)
class KeypointConfig:
    """Sizes of the detector.

    Attributes:
        keypoints: K.
        channels: of the widest to the narrowest map of the decoder, the narrowest last.
        depth: of the volume.
        shrink: the image is shrunk by this first, behind a Gaussian; 1 is not at all (an older public variant).
        temperature: of the softmax over the volume.
    """

    keypoints: int = 15
    channels: tuple[int, ...] = (1024, 512, 256, 128, 64, 32)
    depth: int = 16
    shrink: int = 4
    temperature: float = 0.1


class AntiAliasShrink(nn.Module):
    """A Gaussian of sigma = (s - 1) / 2 over 2 round(4 sigma) + 1 pixels, zeros around, then every s-th pixel."""

    weight: Tensor

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        sigma = (factor - 1) / 2
        reach = round(4 * sigma)
        line = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
        plane = line[:, None] * line
        self.register_buffer("weight", (plane / plane.sum()).expand(channels, 1, -1, -1).clone())
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        # Only the pixels that are kept are computed.
        return F.conv2d(
            image, self.weight, stride=self.factor, padding=self.weight.shape[-1] // 2, groups=self.weight.shape[0]
        )


class KeypointDetector(nn.Module):
    """The keypoint extractor: an image ``[B, 3, H, W]`` in [0, 1] to canonical keypoints ``[B, K, 3]``."""

    def __init__(self, config: KeypointConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or KeypointConfig()
        widths = config.channels
        downs = (3, *reversed(widths[:-1]))
        self.shrink = AntiAliasShrink(3, config.shrink) if config.shrink > 1 else nn.Identity()
        self.encoder = nn.ModuleList(DownBlock2d(a, b) for a, b in zip(downs, downs[1:], strict=False))
        self.lift = nn.Conv2d(widths[0], widths[0] * config.depth, 1)
        self.decoder = nn.ModuleList(UpBlock3d(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.to_heatmaps = nn.Conv3d(widths[-1], config.keypoints, 3, padding=1)

    def heatmaps(self, image: Tensor) -> Tensor:
        """``[B, K, D, h, w]`` before the softmax."""
        step = self.config.shrink * 2 ** len(self.encoder)
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % step or image.shape[3] % step:
            raise ValueError(f"image must be [B, 3, H, W] with H and W multiples of {step}, got {list(image.shape)}")
        x = self.shrink(image)
        for block in self.encoder:
            x = block(x)
        x = self.lift(x).unflatten(1, (-1, self.config.depth))
        for block in self.decoder:
            x = block(x)
        return self.to_heatmaps(x)

    def forward(self, image: Tensor) -> Tensor:
        return _expected_position(self.heatmaps(image), self.config.temperature)


def _expected_position(heatmaps: Tensor, temperature: float) -> Tensor:
    """The mean position ``[B, K, 3]`` under ``softmax(heatmap / temperature)``, voxels at 2i/(n-1) - 1."""
    weight = F.softmax(heatmaps.flatten(2).float() / temperature, dim=2).unflatten(2, heatmaps.shape[2:])
    sums = weight.sum((2, 3)), weight.sum((2, 4)), weight.sum((3, 4))  # over all but x, y, z
    return torch.stack([marginal @ _line(marginal) for marginal in sums], dim=2).to(heatmaps.dtype)


def _line(like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, like.shape[-1], device=like.device, dtype=like.dtype)


def angles_of_bins(logits: Tensor, offset: float) -> Tensor:
    """Degrees ``[B]`` of 3-degree bins ``[B, N]``: ``3 Σ i softmax(logits)_i - offset``.

    `offset` is 99 in face-vid2vid, 97.5 in LivePortrait.
    """
    bins = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float32)
    return F.softmax(logits.float(), dim=1) @ bins * BIN_DEGREES - offset


def axis_rotations(angles: Tensor, pi: float = math.pi) -> tuple[Tensor, Tensor, Tensor]:
    """Right-handed rotations about x, y and z, ``[B, 3, 3]`` each, of pitch, yaw, roll ``[B, 3]`` in degrees."""
    pitch, yaw, roll = (angles.float() * (pi / 180)).unbind(1)
    zero, one = torch.zeros_like(pitch), torch.ones_like(pitch)

    def matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, 1) for row in rows], 1)

    c, s = pitch.cos(), pitch.sin()
    about_x = matrix((one, zero, zero), (zero, c, -s), (zero, s, c))
    c, s = yaw.cos(), yaw.sin()
    about_y = matrix((c, zero, s), (zero, one, zero), (-s, zero, c))
    c, s = roll.cos(), roll.sin()
    about_z = matrix((c, -s, zero), (s, c, zero), (zero, zero, one))
    return about_x, about_y, about_z


def rotation_matrix(angles: Tensor) -> Tensor:
    """``R = Rx(pitch) Ry(yaw) Rz(roll)`` of columns, ``[B, 3, 3]``; the public weights know pi as 3.14."""
    about_x, about_y, about_z = axis_rotations(angles, pi=3.14)
    return about_x @ about_y @ about_z


def transform_keypoints(keypoints: Tensor, rotation: Tensor, translation: Tensor, expression: Tensor) -> Tensor:
    """``R c_k + t + e_k``: keypoints ``[B, K, 3]`` under a pose and an expression."""
    return keypoints @ rotation.mT + translation[:, None] + expression
