"""StyleGAN2's mapping and synthesis networks, and EG3D's super-resolution, with weights that no frame rewrites.

A modulated convolution scales its weights per sample, ``w' = w s_i``, and divides by their norm, ``d_o``. Both commute
with the convolution:

    conv(x, w s) d = d · conv(s · x, w),    d_o = (Σ_i s_i² Σ_k w_oik² + 1e-8)^(-1/2)

so the weights stay as they are stored, whatever the batch, and can be prepared once (`fastface.engine.optimize`).
Maps come out channels_last, as `fastface.ops.render_planes` reads planes.
Sources: StyleGAN2 (arXiv 1912.04958), section 2.2; EG3D (arXiv 2112.07945), section 4.1; PIR's supplement, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import ops

__all__ = [
    "FullyConnected",
    "MappingNetwork",
    "ModulatedConv2d",
    "Noise",
    "SuperResolution",
    "SynthesisBlock",
    "SynthesisConfig",
    "SynthesisLayer",
    "SynthesisNetwork",
    "ToRGB",
    "upsample",
]

Noise = Literal["const", "none", "random"]

_GAIN = math.sqrt(2)  # keeps the variance behind the activation
_SLOPE = 0.2


class FullyConnected(nn.Module):
    """``act(x (gain w)ᵀ + lr b)``, gain = lr / √inputs: stored weights have unit variance, whatever the layer.

    Args:
        lr: the learning rate multiplier.
        leaky: leaky ReLU and its gain √2 behind it.
        bias: initial value.
    """

    def __init__(self, inputs: int, outputs: int, *, lr: float = 1.0, leaky: bool = False, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.weight_gain, self.bias_gain, self.leaky = lr / math.sqrt(inputs), lr, leaky

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x * self.weight_gain, self.weight, self.bias * self.bias_gain)
        return F.leaky_relu(y, _SLOPE) * _GAIN if self.leaky else y


class MappingNetwork(nn.Module):
    """A latent, and a condition, to the style ``[B, style]``; `average` is that of many.

    Args:
        latent, condition: sizes of the inputs; a condition of 0 is none.
        layers: fully connected, with a learning rate of 1/100.
    """

    average: Tensor

    def __init__(self, latent: int, condition: int = 0, style: int = 512, layers: int = 2) -> None:
        super().__init__()
        self.embed = FullyConnected(condition, style) if condition else None
        widths = [latent + (style if condition else 0), *[style] * layers]
        self.layers = nn.ModuleList(
            FullyConnected(inputs, outputs, lr=0.01, leaky=True)
            for inputs, outputs in zip(widths[:-1], widths[1:], strict=True)
        )
        self.latent, self.condition = latent, condition
        self.register_buffer("average", torch.zeros(style))

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """The style.

        Raises:
            ValueError: inputs of another shape, or a condition that is missing or not expected.
        """
        if latent.dim() != 2 or latent.shape[1] != self.latent:
            raise ValueError(f"latent must be [B, {self.latent}], got {list(latent.shape)}")
        x = _unit(latent)
        if (condition is None) != (self.embed is None):
            raise ValueError(f"condition must be {f'[B, {self.condition}]' if self.condition else 'None'}")
        if self.embed is not None and condition is not None:
            if condition.shape != (len(latent), self.condition):
                raise ValueError(f"condition must be [{len(latent)}, {self.condition}], got {list(condition.shape)}")
            x = torch.cat([x, _unit(self.embed(condition))], 1)
        for layer in self.layers:
            x = layer(x)
        return x


def _unit(x: Tensor) -> Tensor:
    """Of mean square 1."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class ModulatedConv2d(nn.Module):
    """A convolution whose input channels a style scales and whose outputs keep their variance.

    With `up`, the map is doubled: a transposed convolution, then the filter [1, 3, 3, 1] in both directions.
    """

    filter: Tensor | None  # [outputs, 1, 4, 4]

    def __init__(self, inputs: int, outputs: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if up:
            self.conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, bias=False)
        else:
            self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.normal_(self.conv.weight)
        self.register_buffer("filter", _filter(outputs) if up else None, persistent=False)

    def energy(self) -> Tensor:
        """``Σ_k w_oik²``, ``[inputs, outputs]``."""
        squares = self.conv.weight.square().sum((2, 3))
        return squares.mT if self.filter is None else squares

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution of the scaled input, and the scales of its outputs ``[B, outputs]`` still to be applied."""
        return _modulate(self.conv, self.filter, x, style, self.energy())

    def optimized(self) -> nn.Module:
        return _PreparedConv2d(self)


class _PreparedConv2d(nn.Module):
    """A `ModulatedConv2d` whose table of squared weights is computed once."""

    filter: Tensor | None
    table: Tensor

    def __init__(self, conv: ModulatedConv2d) -> None:
        super().__init__()
        self.conv = conv.conv
        self.register_buffer("filter", conv.filter, persistent=False)
        self.register_buffer("table", conv.energy().contiguous())

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        return _modulate(self.conv, self.filter, x, style, self.table)


def _modulate(conv: nn.Module, blur: Tensor | None, x: Tensor, style: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    style = style.to(torch.promote_types(style.dtype, torch.float32))
    scale = torch.rsqrt(style.square() @ energy.to(style.dtype) + 1e-8)
    if x.dtype == torch.float16:  # whose range ends at 65504: what goes into the sum of 9 inputs comes out of the scale
        most = style.abs().amax(1, keepdim=True).clamp(min=1e-8) * math.sqrt(9 * style.shape[1])
        style, scale = style / most, scale * most
    y = conv(x * style.to(x.dtype)[:, :, None, None])
    return y if blur is None else F.conv2d(y, blur.to(y.dtype), padding=1, groups=len(blur)), scale


def _filter(channels: int) -> Tensor:
    """[1, 3, 3, 1] in both directions, its sum doubled in each, as every other pixel was a zero."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    return torch.outer(line, line).repeat(channels, 1, 1, 1)


def upsample(x: Tensor) -> Tensor:
    """Doubled by the filter [1, 3, 3, 1] with zeros around: bilinear, but for the border."""
    return F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[:, :, 2:-2, 2:-2]


class SynthesisLayer(nn.Module):
    """``clamp(√2 lrelu(modulated(x) + noise + bias))``."""

    noise: Tensor

    def __init__(
        self, inputs: int, outputs: int, style: int, size: int, *, up: bool = False, clamp: float | None = None
    ) -> None:
        super().__init__()
        self.affine = FullyConnected(style, inputs, bias=1.0)
        self.modulated = ModulatedConv2d(inputs, outputs, up=up)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(size, size))
        self.clamp = clamp

    def forward(self, x: Tensor, style: Tensor, noise: Noise = "const") -> Tensor:
        y, scale = self.modulated(x, self.affine(style))
        added = None if noise == "none" else (self._noise(y, noise) * (self.noise_strength * _GAIN)).to(y.dtype)
        # The activation is homogeneous, so its gain goes into what comes before it.
        finish = _finish_fused if y.is_cuda and not torch.is_grad_enabled() else _finish
        y = finish(y, scale * _GAIN, self.bias * _GAIN, added)
        return y if self.clamp is None else torch.clamp(y, -self.clamp, self.clamp, out=_free(y))

    def _noise(self, y: Tensor, noise: Noise) -> Tensor:
        if noise == "random":
            return torch.randn_like(y[:, :1])
        if noise != "const":
            raise ValueError(f"noise must be 'const', 'none' or 'random', got {noise!r}")
        if self.noise.shape != y.shape[2:]:
            raise ValueError(f"constant noise is {list(self.noise.shape)}, not {list(y.shape[2:])}: pass noise='none'")
        return self.noise


def _finish(y: Tensor, scale: Tensor, bias: Tensor, noise: Tensor | None) -> Tensor:
    """``lrelu(y scale + bias + noise)`` in the memory of `y`: going over it three times takes less than a new map."""
    y = torch.addcmul(bias.to(y.dtype)[:, None, None], y, scale.to(y.dtype)[:, :, None, None], out=_free(y))
    if noise is not None:
        y += noise
    return F.leaky_relu_(y, _SLOPE)


def _finish_fused(y: Tensor, scale: Tensor, bias: Tensor, noise: Tensor | None) -> Tensor:
    """The same in one launch, as a normalisation by known statistics: ``y scale + bias = (y + bias / scale) scale``."""
    shift = None if noise is None else noise.expand_as(y)
    return ops.modulated_norm(y, None, shift, stats=(-bias / scale, scale), activation="leaky_relu", slope=_SLOPE)


def _free(y: Tensor) -> Tensor | None:
    """`y` to be written to, where autograd does not want it."""
    return None if torch.is_grad_enabled() else y


class ToRGB(nn.Module):
    """A modulated 1x1 convolution without normalisation, added to an image.

    Here the weights are what is scaled: they are few, and the product with the map, the bias and the sum are one call.
    """

    def __init__(self, inputs: int, outputs: int, style: int, *, clamp: float | None = None) -> None:
        super().__init__()
        self.affine = FullyConnected(style, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.clamp, self.gain = clamp, 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, style: Tensor, image: Tensor | None = None) -> Tensor:
        weight = (self.weight * (self.affine(style) * self.gain)[:, None]).to(x.dtype)  # [B, outputs, inputs]
        bias = self.bias.to(x.dtype)
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        if image is None or self.clamp is not None:
            y = torch.baddbmm(bias, pixels, weight.mT)
        else:
            below = (image + bias[:, None, None]).permute(0, 2, 3, 1).reshape(batch, height * width, -1)
            y = below.baddbmm_(pixels, weight.mT)
        y = y.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        if self.clamp is None:
            return y
        y = y.clamp(-self.clamp, self.clamp)
        return y if image is None else y + image


class SynthesisBlock(nn.Module):
    """Doubles the map by two layers, and the image by a filter; the first block of a network starts from a constant.

    Args:
        inputs: channels of the map before; 0 starts from a constant.
        image: channels of the image.
        size: of what comes out.
        up: False leaves both at their size.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        image: int,
        style: int,
        size: int,
        *,
        up: bool = True,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.up = up
        self.const = None if inputs else nn.Parameter(torch.randn(outputs, size, size))
        self.layer0 = SynthesisLayer(inputs, outputs, style, size, up=up, clamp=clamp) if inputs else None
        self.layer1 = SynthesisLayer(outputs, outputs, style, size, clamp=clamp)
        self.to_rgb = ToRGB(outputs, image, style, clamp=clamp)

    def forward(
        self, x: Tensor | None, image: Tensor | None, styles: Tensor, noise: Noise = "const"
    ) -> tuple[Tensor, Tensor]:
        """Map and image, from those before and the styles ``[B, 2 or 3, style]``: of each layer, then of the image."""
        if self.layer0 is None:
            assert self.const is not None
            x = self.const.expand(len(styles), -1, -1, -1)
        else:
            assert x is not None
            x = self.layer0(x, styles[:, 0], noise)
        x = self.layer1(x, styles[:, -2], noise)
        if image is not None and self.up:
            image = upsample(image)
        return x, self.to_rgb(x, styles[:, -1], image)


@dataclass(frozen=True)
class SynthesisConfig:
    """Sizes of the backbone.

    Attributes:
        outputs: channels of the image: three planes of 32.
        size: of the image, a power of 2 from 8 on.
        style: length of a style.
        base, most: a block of size s has min(base / s, most) channels.
        clamp: of activations; None is none, as published for the backbone.
    """

    outputs: int = 96
    size: int = 256
    style: int = 512
    base: int = 32768
    most: int = 512
    clamp: float | None = None

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise ValueError(f"size must be a power of 2 from 8 on, got {self.size}")
        if min(self.outputs, self.style, self.most) < 1 or self.base < self.size:
            raise ValueError(f"channels and style must be positive, got {self}")

    @property
    def sizes(self) -> list[int]:
        return [2**power for power in range(2, self.size.bit_length())]

    def channels(self, size: int) -> int:
        return min(self.base // size, self.most)


class SynthesisNetwork(nn.Module):
    """Styles to an image, ``[B, outputs, size, size]`` channels_last: blocks of 4, 8, ... up to its size."""

    def __init__(self, config: SynthesisConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SynthesisConfig()
        widths = [0] + [config.channels(size) for size in config.sizes]
        self.blocks = nn.ModuleList(
            SynthesisBlock(inputs, outputs, config.outputs, config.style, size, clamp=config.clamp)
            for inputs, outputs, size in zip(widths[:-1], widths[1:], config.sizes, strict=True)
        )

    @property
    def styles(self) -> int:
        """One for each layer, and one for the last image: 14 at 256."""
        return 2 * len(self.blocks)

    def forward(self, styles: Tensor, noise: Noise = "const") -> Tensor:
        """From ``[B, style]``, the same for every layer, or ``[B, styles, style]``."""
        if styles.dim() == 2:
            styles = styles[:, None].expand(-1, self.styles, -1)
        if styles.shape[1:] != (self.styles, self.config.style):
            raise ValueError(f"styles must be [B, {self.styles}, {self.config.style}], got {list(styles.shape)}")
        x: Tensor | None = None
        image: Tensor | None = None
        for index, block in enumerate(self.blocks):
            # The first block has one layer; an image shares its style with the next block's first layer.
            first, last = max(0, 2 * index - 1), 2 * index + 2
            x, image = block(x, image, styles[:, first:last], noise)
        assert image is not None
        return image


class SuperResolution(nn.Module):
    """Rendered features to an image, as EG3D does it: resized, then two blocks.

    Args:
        features: channels of the map, of which the first three are the image.
        channels: of the two blocks.
        size: of the result.
        doublings: 2, or 1 where the first block keeps the size, as in EG3D's generators of 128x128 and 256x256; the map
            is resized to what they start from, with antialiasing.
    """

    def __init__(
        self,
        features: int = 32,
        channels: tuple[int, int] = (256, 128),
        style: int = 512,
        size: int = 512,
        clamp: float | None = 256.0,
        doublings: int = 2,
    ) -> None:
        super().__init__()
        if features < 3 or size % 4:
            raise ValueError(f"features must be at least 3 and size a multiple of 4, got {features} and {size}")
        if doublings not in (1, 2):
            raise ValueError(f"doublings must be 1 or 2, got {doublings}")
        self.start = size // 2**doublings
        self.blocks = nn.ModuleList(
            [
                SynthesisBlock(features, channels[0], 3, style, size // 2, up=doublings == 2, clamp=clamp),
                SynthesisBlock(channels[0], channels[1], 3, style, size, clamp=clamp),
            ]
        )

    def forward(self, features: Tensor, style: Tensor, image: Tensor | None = None, noise: Noise = "none") -> Tensor:
        """``[B, features, h, w]`` and the style ``[B, style]`` to ``[B, 3, size, size]``, in about [-1, 1].

        `image` ``[B, 3, h, w]`` is what the result is added to, by default the first three features.
        """
        if image is None:
            image = features[:, :3]
        x, image = (self._resize(each) for each in (features, image))
        styles = style[:, None].expand(-1, 3, -1)
        for block in self.blocks:
            x, image = block(x, image, styles, noise)
        return image

    def _resize(self, x: Tensor) -> Tensor:
        side = self.start
        if x.shape[2:] != (side, side):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))  # CPUs have no antialiasing in 16 bits
            x = F.interpolate(wide, (side, side), mode="bilinear", antialias=True).to(x.dtype)
        return x.contiguous(memory_format=torch.channels_last)
