"""HeadGAN's discriminators: D on (face render, image), D_m on (audio, mouth crop).

Source: HeadGAN (arXiv 2012.08261), appendix C.2, which points to the discriminator of SPADE (arXiv 1903.07291): it
judges patches, at several scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.nn import InstanceNorm

__all__ = ["Discriminator", "DiscriminatorConfig", "audio_and_mouth"]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes: `inputs` is 6 for D (render and image), 303 for D_m (audio and mouth)."""

    inputs: int = 6
    channels: int = 64  # of the first layer
    layers: int = 4  # with features, before the one that judges
    scales: int = 2

    def __post_init__(self) -> None:
        if min(self.inputs, self.channels, self.layers, self.scales) < 1:
            raise ValueError(f"sizes must be positive, got {self}")


class _Layer(nn.Module):
    """Convolution 4x4, instance norm except in the first and the last, LeakyReLU except in the last."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: bool, last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=stride, padding=2, bias=not norm)
        self.norm = InstanceNorm(outputs, activation="leaky_relu") if norm else None
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            return self.norm(x)
        return x if self.last else F.leaky_relu(x, 0.2)


class _Scale(nn.Module):
    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [min(config.channels * 2**i, 512) for i in range(config.layers)]
        layers = [_Layer(config.inputs, widths[0], stride=2, norm=False)]
        for i in range(1, config.layers):
            stride = 1 if i == config.layers - 1 else 2
            layers.append(_Layer(widths[i - 1], widths[i], stride=stride, norm=True))
        layers.append(_Layer(widths[-1], 1, stride=1, norm=False, last=True))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class Discriminator(nn.Module):
    """Patch discriminators on an image and on its halves: per scale the feature maps, the judgement last."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config or DiscriminatorConfig()
        self.scales = nn.ModuleList(_Scale(self.config) for _ in range(self.config.scales))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """Feature maps of ``[B, inputs, H, W]``, full size first. Raises ValueError for another number of channels."""
        if x.dim() != 4 or x.shape[1] != self.config.inputs:
            raise ValueError(f"x must be [B, {self.config.inputs}, H, W], got {list(x.shape)}")
        results = []
        for index, scale in enumerate(self.scales):
            if index:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            results.append(scale(x))
        return results


def audio_and_mouth(audio: Tensor, mouth: Tensor) -> Tensor:
    """The input of D_m: the audio vector ``[B, 300]``, repeated over space, and the mouth crop ``[B, 3, 64, 64]``."""
    return torch.cat([audio[:, :, None, None].expand(-1, -1, *mouth.shape[2:]), mouth], dim=1)
