"""Painting a face into a masked frame, coarse to fine, and the masks.

At half size the frame is brought down to the size of the rendered features, both go through residual blocks and up
again; at full size the result is added to the frame's own features and goes on to the image. The paper names the
blocks and their numbers; widths and kernels are pix2pixHD's (arXiv 1711.11585, section 3.1 and appendix).
Source: PIR (CVPR 2023), supplement, section 3 and figure 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fastface.nn import InstanceNorm

__all__ = ["InpaintingConfig", "InpaintingGenerator", "Region", "face_mask"]

Region = Literal["lower", "face"]

_BROW, _NOSE, _CHIN = 168, 1, 152  # of MediaPipe's points: between the eyes, the tip of the nose, the chin


@dataclass(frozen=True)
class InpaintingConfig:
    """Sizes of the inpainting generator.

    Attributes:
        features: channels of the rendered map.
        channels: of the coarse part's first layer; half as many are the fine part's.
        coarse_blocks, fine_blocks: residual blocks of either part.
    """

    features: int = 32
    channels: int = 64
    coarse_blocks: int = 4
    fine_blocks: int = 3

    def __post_init__(self) -> None:
        if self.features < 1 or self.channels < 2 or self.channels % 2:
            raise ValueError(f"features must be positive and channels even, got {self}")


def _seven(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 7, padding=3, padding_mode="reflect")


def _first(outputs: int) -> nn.Sequential:
    return nn.Sequential(_seven(3, outputs), InstanceNorm(outputs, activation="relu"))


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), InstanceNorm(outputs, activation="relu"))


def _up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
        InstanceNorm(outputs, activation="relu"),
    )


class _Residual(nn.Module):
    """``x + norm(conv(relu(norm(conv(x)))))``, reflected at the border."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0, self.conv1 = (nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect") for _ in range(2))
        self.norm0, self.norm1 = InstanceNorm(channels, activation="relu"), InstanceNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm1(self.conv1(self.norm0(self.conv0(x))))


class InpaintingGenerator(nn.Module):
    """A masked frame and the rendered features of the face that belongs there, to the frame."""

    def __init__(self, config: InpaintingConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or InpaintingConfig()
        width = config.channels
        joined = 4 * width + config.features
        self.coarse = nn.Sequential(_first(width), _down(width, 2 * width), _down(2 * width, 4 * width))
        self.coarse_blocks = nn.Sequential(
            *(_Residual(joined) for _ in range(config.coarse_blocks)), _up(joined, 2 * width), _up(2 * width, width)
        )
        self.fine = nn.Sequential(_first(width // 2), _down(width // 2, width))
        self.fine_blocks = nn.Sequential(
            *(_Residual(width) for _ in range(config.fine_blocks)), _up(width, width // 2), _seven(width // 2, 3)
        )

    def forward(self, masked: Tensor, features: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1].

        Args:
            masked: ``[B, 3, H, W]`` in [-1, 1], 0 where the face shall be; H and W multiples of 8, 64 or more.
            features: ``[B, F, H/8, W/8]``.

        Raises:
            ValueError: other shapes.
        """
        if (
            masked.dim() != 4
            or masked.shape[1] != 3
            or min(masked.shape[2:]) < 64
            or any(s % 8 for s in masked.shape[2:])
        ):
            raise ValueError(f"masked must be [B, 3, H, W], H and W multiples of 8 from 64, got {list(masked.shape)}")
        batch, _, height, width = masked.shape
        wanted = [batch, self.config.features, height // 8, width // 8]
        if list(features.shape) != wanted:
            raise ValueError(f"features must be {wanted}, got {list(features.shape)}")
        coarse = self.coarse(F.avg_pool2d(masked, 2))
        coarse = self.coarse_blocks(torch.cat([coarse, features], 1))
        return torch.tanh(self.fine_blocks(coarse + self.fine(masked)))


def face_mask(points: ArrayLike, size: tuple[int, int], region: Region = "lower", margin: float = 0.05) -> Tensor:
    """Where the face is, ``[1, H, W]``, 1 inside and 0 outside.

    Args:
        points: ``[N, 2 or 3]``, MediaPipe's 468 landmarks in pixels of the image.
        size: (H, W) of the image.
        region: "face", the hull of all points; "lower", the part of it below the middle of the nose.
        margin: how far beyond the points it reaches, as a share of the face's height.

    Raises:
        ValueError: other points or no such region.
    """
    import cv2

    array = np.asarray(points, dtype=np.float32)
    if array.ndim != 2 or array.shape[0] < 468 or array.shape[1] not in (2, 3):
        raise ValueError(f"points must be [N, 2 or 3] with N >= 468, got {list(array.shape)}")
    if region not in ("lower", "face"):
        raise ValueError(f"region must be 'lower' or 'face', got {region!r}")
    array = np.ascontiguousarray(array[:468, :2])
    brow, nose, chin = array[_BROW], array[_NOSE], array[_CHIN]
    down = (chin - brow) / max(float(np.linalg.norm(chin - brow)), 1e-6)
    hull = cv2.convexHull(array)[:, 0]
    centre = hull.mean(0)
    height = float(np.ptp(array @ down))
    away = hull - centre
    hull = hull + margin * height * away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
    mask = np.zeros(size, np.uint8)
    cv2.fillConvexPoly(mask, np.round(hull).astype(np.int32), 1)
    if region == "lower":
        rows, columns = np.indices(size, dtype=np.float32)
        line = (brow + nose) / 2
        mask[(columns - line[0]) * down[0] + (rows - line[1]) * down[1] < 0] = 0
    return torch.from_numpy(mask).float()[None]
