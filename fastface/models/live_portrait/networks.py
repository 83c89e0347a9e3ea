"""LivePortrait's networks beside those that it shares with face-vid2vid: motion extractor, stitching, retargeting.

Source: LivePortrait (arXiv 2407.03168), sections 3.2 and 3.3; ConvNeXt V2 (arXiv 2301.00808), section 3 and figure 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.models.style_mapping.keypoints import angles_of_bins, axis_rotations

__all__ = [
    "KeypointMLP",
    "MotionConfig",
    "MotionExtractor",
    "MotionParameters",
    "rotation_matrix",
    "transform_keypoints",
]


@dataclass(frozen=True)
class MotionConfig:
    """Sizes of the extractor: ConvNeXt V2 tiny."""

    keypoints: int = 21
    depths: tuple[int, int, int, int] = (3, 3, 9, 3)
    channels: tuple[int, int, int, int] = (96, 192, 384, 768)
    bins: int = 66


@dataclass(frozen=True)
class MotionParameters:
    """What the extractor says of a batch of images.

    Attributes:
        pitch, yaw, roll: ``[B, 66]``, logits of 3-degree bins from -97.5 degrees.
        translation: ``[B, 3]``; the third number has no effect.
        expression: ``[B, K, 3]``, offsets of the keypoints.
        scale: ``[B, 1]``.
        keypoints: canonical, ``[B, K, 3]``.
    """

    pitch: Tensor
    yaw: Tensor
    roll: Tensor
    translation: Tensor
    expression: Tensor
    scale: Tensor
    keypoints: Tensor

    @property
    def angles(self) -> Tensor:
        """Pitch, yaw, roll in degrees ``[B, 3]``."""
        return torch.stack([angles_of_bins(each, 97.5) for each in (self.pitch, self.yaw, self.roll)], 1)

    @property
    def rotation(self) -> Tensor:
        """``[B, 3, 3]``, applied from the right."""
        return rotation_matrix(self.angles)

    @property
    def transformed(self) -> Tensor:
        """The keypoints ``[B, K, 3]`` in this pose, with this expression."""
        return transform_keypoints(self.keypoints, self.rotation, self.expression, self.scale, self.translation)


def rotation_matrix(angles: Tensor) -> Tensor:
    """``(Rz Ry Rx)ᵀ`` ``[B, 3, 3]`` of pitch, yaw, roll ``[B, 3]`` in degrees; keypoints are rows, multiplied from the
    left.
    """
    about_x, about_y, about_z = axis_rotations(angles)
    return (about_z @ about_y @ about_x).mT


def transform_keypoints(
    keypoints: Tensor, rotation: Tensor, expression: Tensor, scale: Tensor, translation: Tensor
) -> Tensor:
    """``s (c R + e) + t`` with the z of t left out: ``[B, K, 3]``."""
    moved = scale[:, :, None] * (keypoints @ rotation + expression)
    return moved + F.pad(translation[:, None, :2], (0, 1))


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``[B, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _GlobalResponseNorm(nn.Module):
    """``gamma x N(|x|) + beta + x``: |x| over the pixels of a channel, N divides by its mean over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, C]
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        response = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * response) + self.beta + x


class _ConvNeXtBlock(nn.Module):
    """7x7 depthwise, layer norm, four times the channels, GELU, response norm, and back; figure 5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = _GlobalResponseNorm(4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).movedim(1, -1))
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))
        return x + y.movedim(-1, 1)


class MotionExtractor(nn.Module):
    """An image ``[B, 3, H, W]`` in [0, 1], 256x256 as trained, to its `MotionParameters`."""

    def __init__(self, config: MotionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MotionConfig()
        widths = config.channels
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), _ChannelNorm(widths[0], eps=1e-6))]
            + [
                nn.Sequential(_ChannelNorm(a, eps=1e-6), nn.Conv2d(a, b, 2, stride=2))
                for a, b in zip(widths, widths[1:], strict=False)
            ]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(_ConvNeXtBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, config.depths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.pitch, self.yaw, self.roll = (nn.Linear(widths[-1], config.bins) for _ in range(3))
        self.translation, self.scale = nn.Linear(widths[-1], 3), nn.Linear(widths[-1], 1)
        self.expression, self.keypoints = (nn.Linear(widths[-1], 3 * config.keypoints) for _ in range(2))

    def forward(self, image: Tensor) -> MotionParameters:
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[2:]) < 32:
            raise ValueError(f"image must be [B, 3, H, W] of at least 32x32 pixels, got {list(image.shape)}")
        x = image
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        x = self.norm(x.mean((2, 3)))
        return MotionParameters(
            pitch=self.pitch(x),
            yaw=self.yaw(x),
            roll=self.roll(x),
            translation=self.translation(x),
            expression=self.expression(x).unflatten(1, (-1, 3)),
            scale=self.scale(x),
            keypoints=self.keypoints(x).unflatten(1, (-1, 3)),
        )


class KeypointMLP(nn.Module):
    """Keypoints and what they shall become, to the change that does it: stitching, lip and eye retargeting.

    Linear layers with ReLU between them; the inputs are flattened and concatenated.

    Args:
        inputs: 126 for the stitching of two sets of keypoints; 65 and 66 for the source's and ratios of lips or eyes.
        outputs: 63 offsets; for stitching two more, of x and y of all keypoints.
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        widths = (inputs, *hidden, outputs)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, *inputs: Tensor) -> Tensor:
        x = torch.cat([each.flatten(1) for each in inputs], dim=1)
        wanted = self.layers[0].in_features
        if x.shape[1] != wanted:
            raise ValueError(f"the inputs must hold {wanted} numbers together, got {x.shape[1]}")
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)

    @staticmethod
    def stitched(keypoints: Tensor, change: Tensor) -> Tensor:
        """The keypoints ``[B, K, 3]`` with the 3 K + 2 numbers of the stitching network added."""
        offsets, shift = change[:, :-2].unflatten(1, (-1, 3)), change[:, -2:]
        return keypoints + offsets + F.pad(shift[:, None], (0, 1))
