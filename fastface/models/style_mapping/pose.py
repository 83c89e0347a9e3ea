"""The pose expression network (table 2): where a head looks, where it is, what its face does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.models.style_mapping.blocks import Bottleneck
from fastface.models.style_mapping.keypoints import angles_of_bins, rotation_matrix, transform_keypoints

__all__ = ["PoseConfig", "PoseExpression", "PoseExpressionNetwork"]


@dataclass(frozen=True)
class PoseConfig:
    """Sizes: the stem's channels, the four stages', the bottlenecks of each (the strided first ones not counted)."""

    keypoints: int = 15
    stem: int = 64
    channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    blocks: tuple[int, int, int, int] = (3, 3, 5, 2)
    bins: int = 66


@dataclass(frozen=True)
class PoseExpression:
    """What the network says of a batch of frames.

    Attributes:
        pitch, yaw, roll: ``[B, 66]``, logits of 3-degree bins from -99 degrees.
        translation: ``[B, 3]``.
        expression: ``[B, K, 3]``, offsets of the keypoints.
    """

    pitch: Tensor
    yaw: Tensor
    roll: Tensor
    translation: Tensor
    expression: Tensor

    @property
    def angles(self) -> Tensor:
        """Pitch, yaw, roll in degrees ``[B, 3]``."""
        return torch.stack([angles_of_bins(each, 99.0) for each in (self.pitch, self.yaw, self.roll)], 1)

    @property
    def rotation(self) -> Tensor:
        """``[B, 3, 3]``."""
        return rotation_matrix(self.angles)

    def apply(self, keypoints: Tensor) -> Tensor:
        """Canonical keypoints ``[B, K, 3]`` in this pose, with this expression."""
        return transform_keypoints(keypoints, self.rotation, self.translation, self.expression)


class PoseExpressionNetwork(nn.Module):
    """An image ``[B, 3, H, W]`` in [0, 1] to its `PoseExpression`: a ResNet of bottlenecks with five heads.

    The table prints the bottlenecks of a stage without their number; `PoseConfig` has the published ones.
    """

    def __init__(self, config: PoseConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PoseConfig()
        widths = (config.stem, *config.channels)
        self.stem = nn.Conv2d(3, config.stem, 7, stride=2, padding=3)
        self.stem_norm = nn.BatchNorm2d(config.stem)
        self.widen = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.widen_norm = nn.ModuleList(nn.BatchNorm2d(width) for width in config.channels)
        self.stages = nn.ModuleList(
            nn.ModuleList([Bottleneck(width, 2)] * (stage > 0) + [Bottleneck(width) for _ in range(blocks)])
            for stage, (width, blocks) in enumerate(zip(config.channels, config.blocks, strict=True))
        )
        last = config.channels[-1]
        self.pitch, self.yaw, self.roll = (nn.Linear(last, config.bins) for _ in range(3))
        self.translation = nn.Linear(last, 3)
        self.expression = nn.Linear(last, 3 * config.keypoints)

    def forward(self, image: Tensor) -> PoseExpression:
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[2:]) < 33:
            raise ValueError(f"image must be [B, 3, H, W] of at least 33x33 pixels, got {list(image.shape)}")
        x = F.relu(self.stem_norm(self.stem(image)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for widen, norm, stage in zip(self.widen, self.widen_norm, self.stages, strict=True):
            x = F.relu(norm(widen(x)))
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x)
        x = x.mean((2, 3))
        return PoseExpression(
            self.pitch(x), self.yaw(x), self.roll(x), self.translation(x), self.expression(x).unflatten(1, (-1, 3))
        )
