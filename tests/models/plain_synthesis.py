"""StyleGAN2's synthesis as its paper writes it: weights scaled and normalised per sample, then grouped convolutions.

What `fastface.models.pir.synthesis` is held against, and timed against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.models.pir.synthesis import SynthesisBlock, SynthesisLayer, SynthesisNetwork

FILTER = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def modulated_conv(x: Tensor, weight: Tensor, style: Tensor, *, up: bool = False, demodulate: bool = True) -> Tensor:
    """Equations (1) to (3) of arXiv 1912.04958; weight ``[O, I, k, k]``."""
    batch, channels, height, width = x.shape
    scaled = weight * style[:, None, :, None, None]  # [B, O, I, k, k]
    if demodulate:
        scaled = scaled * torch.rsqrt(scaled.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, batch * channels, height, width)
    if up:
        y = F.conv_transpose2d(x, scaled.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
        outputs = y.shape[1]
        y = F.conv2d(y, 4 * FILTER.to(y).expand(outputs, 1, 4, 4), padding=1, groups=outputs)
    else:
        y = F.conv2d(x, scaled.flatten(0, 1), padding=weight.shape[2] // 2, groups=batch)
    return y.unflatten(1, (batch, -1)).squeeze(0)


def upsample(x: Tensor) -> Tensor:
    """Zeros between the pixels, then the filter."""
    channels = x.shape[1]
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = x
    return F.conv2d(F.pad(spread, (2, 1, 2, 1)), 4 * FILTER.to(x).expand(channels, 1, 4, 4), groups=channels)


def layer(module: SynthesisLayer, x: Tensor, style: Tensor) -> Tensor:
    conv = module.modulated
    up = isinstance(conv.conv, nn.ConvTranspose2d)
    weight = conv.conv.weight.transpose(0, 1) if up else conv.conv.weight
    y = modulated_conv(x, weight, module.affine(style), up=up)
    y = y + module.noise * module.noise_strength + module.bias[:, None, None]
    y = F.leaky_relu(y, 0.2) * 2**0.5
    return y if module.clamp is None else y.clamp(-module.clamp, module.clamp)


def block(module: SynthesisBlock, x: Tensor | None, image: Tensor | None, styles: Tensor) -> tuple[Tensor, Tensor]:
    start = module.layer0 is None
    x = module.const.expand(len(styles), -1, -1, -1) if start else layer(module.layer0, x, styles[:, 0])
    x = layer(module.layer1, x, styles[:, -2])
    rgb = module.to_rgb
    style = rgb.affine(styles[:, -1]) * rgb.gain
    y = modulated_conv(x, rgb.weight[:, :, None, None], style, demodulate=False) + rgb.bias[:, None, None]
    if rgb.clamp is not None:
        y = y.clamp(-rgb.clamp, rgb.clamp)
    return x, y if image is None else upsample(image) + y


def synthesis(network: SynthesisNetwork, styles: Tensor) -> Tensor:
    x, image, first = None, None, 0
    for module in network.blocks:
        layers = 1 if module.layer0 is None else 2
        x, image = block(module, x, image, styles[:, first : first + layers + 1])
        first += layers
    return image
