"""Convolution, batch norm and activation: the blocks that the family's networks are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Bottleneck",
    "DownBlock2d",
    "DownBlock3d",
    "ResBlock2d",
    "ResBlock3d",
    "SameBlock2d",
    "UpBlock2d",
    "UpBlock3d",
]


class _Block2d(nn.Module):
    """``relu(norm(conv(x)))``; with a `slope`, leaky."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, slope: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(outputs)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), self.slope)


class SameBlock2d(_Block2d):
    """Keeps the size."""


class DownBlock2d(_Block2d):
    """Halves height and width by an average behind the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class UpBlock2d(_Block2d):
    """Doubles height and width, nearest, before the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0))


class _Block3d(nn.Module):
    """``relu(norm(conv(x)))`` of a volume."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class DownBlock3d(_Block3d):
    """Halves height and width, not depth, by an average behind the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(super().forward(x), (1, 2, 2))


class UpBlock3d(_Block3d):
    """Doubles height and width, not depth, nearest, before the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0)))


class ResBlock2d(nn.Module):
    """``x + conv2(relu(norm2(conv1(relu(norm1(x))))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class ResBlock3d(nn.Module):
    """``x + conv2(relu(norm2(conv1(relu(norm1(x))))))`` of a volume."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm3d(channels), nn.BatchNorm3d(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class Bottleneck(nn.Module):
    """ResNet's: 1x1 to a quarter of the channels, 3x3, 1x1 back, each normalised, and the skip.

    With a `stride` the skip is a 1x1 convolution and a norm. Source: arXiv 1512.03385, figure 5.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1, self.norm1 = nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1), nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels)
        self.skip = nn.Conv2d(channels, channels, 1, stride=stride) if stride > 1 else None
        self.skip_norm = nn.BatchNorm2d(channels) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.skip is not None and self.skip_norm is not None:
            x = self.skip_norm(self.skip(x))
        return F.relu(y + x)
