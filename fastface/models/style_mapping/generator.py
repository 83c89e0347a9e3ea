"""The intermediate generator (table 4): a portrait to its feature volume, warped features to a frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.models.style_mapping.blocks import DownBlock2d, ResBlock2d, ResBlock3d, SameBlock2d, UpBlock2d
from fastface.models.style_mapping.optimized import OptimizedDecoder
from fastface.models.style_mapping.warping import WarpingNetwork, WarpingSource
from fastface.nn import SPADE

__all__ = [
    "AppearanceConfig",
    "AppearanceEncoder",
    "DecoderConfig",
    "IntermediateGenerator",
    "ResidualDecoder",
    "SPADEDecoder",
    "SPADEResnetBlock",
]


@dataclass(frozen=True)
class AppearanceConfig:
    """Sizes of the encoder: 64 channels, doubled at each of `downs` halvings, to a volume of `channels` x `depth`.

    kernel: of the first convolution; 7 in the family's oldest public variant.
    """

    block: int = 64
    downs: int = 2
    channels: int = 32
    depth: int = 16
    blocks: int = 6
    kernel: int = 3


class AppearanceEncoder(nn.Module):
    """An image ``[B, 3, H, W]`` in [0, 1] to a volume ``[B, 32, 16, H/4, W/4]``; once per portrait."""

    def __init__(self, config: AppearanceConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AppearanceConfig()
        widths = [config.block * 2**i for i in range(config.downs + 1)]
        self.first = SameBlock2d(3, widths[0], config.kernel)
        self.down_blocks = nn.ModuleList(DownBlock2d(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.second = nn.Conv2d(widths[-1], config.channels * config.depth, 1)
        self.blocks = nn.ModuleList(ResBlock3d(config.channels) for _ in range(config.blocks))

    def forward(self, image: Tensor) -> Tensor:
        step = 2**self.config.downs
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % step or image.shape[3] % step:
            raise ValueError(f"image must be [B, 3, H, W] with H and W multiples of {step}, got {list(image.shape)}")
        x = self.first(image)
        for block in self.down_blocks:
            x = block(x)
        x = self.second(x).unflatten(1, (self.config.channels, self.config.depth))
        for block in self.blocks:
            x = block(x)
        return x


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the SPADE decoder.

    Attributes:
        features: channels of what it is given.
        channels: of the six blocks at its size, of the block at twice the size, and at four times.
        blocks: at its size.
        hidden: of SPADE's shared convolution.
        upscale: of the last step, by pixel shuffle: 2 in LivePortrait.
    """

    features: int = 256
    channels: tuple[int, int, int] = (512, 256, 64)
    blocks: int = 6
    hidden: int = 128
    upscale: int = 1


class SPADEResnetBlock(nn.Module):
    """``skip(x) + conv_1(lrelu(norm_1(conv_0(lrelu(norm_0(x))))))``, every norm modulated by the map.

    Where the number of channels changes, the skip is ``conv_s(norm_s(x))``, without an activation.
    """

    def __init__(self, inputs: int, outputs: int, map_channels: int, hidden: int) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.norm_0 = SPADE(inputs, map_channels, hidden, activation="leaky_relu")
        self.conv_0 = nn.Conv2d(inputs, middle, 3, padding=1)
        self.norm_1 = SPADE(middle, map_channels, hidden, activation="leaky_relu")
        self.conv_1 = nn.Conv2d(middle, outputs, 3, padding=1)
        learned = inputs != outputs
        self.norm_s = SPADE(inputs, map_channels, hidden) if learned else None
        self.conv_s = nn.Conv2d(inputs, outputs, 1, bias=False) if learned else None

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        skip = x
        if self.norm_s is not None and self.conv_s is not None:
            skip = self.conv_s(self.norm_s(x, modulation))
        y = self.conv_0(self.norm_0(x, modulation))
        return skip + self.conv_1(self.norm_1(y, modulation))


class SPADEDecoder(nn.Module):
    """Warped features ``[B, 256, h, w]`` to a frame ``[B, 3, 4 s h, 4 s w]`` in [0, 1], s being `upscale`."""

    def __init__(self, config: DecoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DecoderConfig()
        wide, middle, narrow = config.channels

        def block(inputs: int, outputs: int) -> SPADEResnetBlock:
            return SPADEResnetBlock(inputs, outputs, config.features, config.hidden)

        self.fc = nn.Conv2d(config.features, wide, 3, padding=1)
        self.middle = nn.ModuleList(block(wide, wide) for _ in range(config.blocks))
        self.up_0 = block(wide, middle)
        self.up_1 = block(middle, narrow)
        self.to_image = nn.Conv2d(narrow, 3 * config.upscale**2, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.config.features:
            raise ValueError(f"features must be [B, {self.config.features}, h, w], got {list(features.shape)}")
        x = self.fc(features)
        for block in self.middle:
            x = block(x, features)
        x = self.up_0(F.interpolate(x, scale_factor=2.0), features)
        x = self.up_1(F.interpolate(x, scale_factor=2.0), features)
        x = self.to_image(F.leaky_relu(x, 0.2))
        return torch.sigmoid(F.pixel_shuffle(x, self.config.upscale))

    def optimized(self) -> nn.Module:
        return OptimizedDecoder(self)


class ResidualDecoder(nn.Module):
    """The decoder of the paper's text, six residual blocks and two upsamplings, as in the family's older weights."""

    def __init__(self, features: int = 256, blocks: int = 6, ups: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock2d(features) for _ in range(blocks))
        widths = [features // 2**i for i in range(ups + 1)]
        self.up_blocks = nn.ModuleList(UpBlock2d(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.to_image = nn.Conv2d(widths[-1], 3, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for block in (*self.blocks, *self.up_blocks):
            x = block(x)
        return torch.sigmoid(self.to_image(x))


class IntermediateGenerator(nn.Module):
    """Encoder, warping network and decoder: what one public checkpoint of the family holds as its generator."""

    def __init__(
        self, encoder: AppearanceEncoder, warping: WarpingNetwork, decoder: SPADEDecoder | ResidualDecoder
    ) -> None:
        super().__init__()
        self.encoder, self.warping, self.decoder = encoder, warping, decoder

    def prepare(self, image: Tensor) -> WarpingSource:
        """What depends on the portrait ``[B, 3, H, W]`` alone; H and W multiples of 128."""
        return self.warping.prepare(self.encoder(image))

    def forward(
        self, source: WarpingSource, kp_source: Tensor, kp_driving: Tensor, *, linear: Tensor | None = None
    ) -> Tensor:
        """The frame ``[B, 3, H, W]`` in [0, 1]."""
        return self.decoder(self.warping(source, kp_source, kp_driving, linear=linear).features)
