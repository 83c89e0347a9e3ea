"""Convolutions with what stands right before or behind them, as one module: what `fastface.engine` computes at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ActivatedConv", "SlicePool", "UpsampledConv", "activate_", "merge_convs"]


class ActivatedConv(nn.Module):
    """``act(conv(x))``; act is "relu" or "leaky_relu" with `slope`, written over the convolution's output.

    Raises:
        ValueError: another activation.
    """

    conv: nn.Module

    def __init__(self, conv: nn.Module, activation: str, slope: float = 0.01) -> None:
        super().__init__()
        if activation not in ("relu", "leaky_relu"):
            raise ValueError(f"activation must be 'relu' or 'leaky_relu', got {activation!r}")
        self.conv, self.activation, self.slope = conv, activation, slope

    def forward(self, x: Tensor) -> Tensor:
        return activate_(self.conv(x), self.activation, self.slope)

    def extra_repr(self) -> str:
        return f"activation={self.activation}" + (f", slope={self.slope}" if self.activation == "leaky_relu" else "")


def activate_(x: Tensor, activation: str | None, slope: float = 0.0) -> Tensor:
    """`x`, overwritten by its activation."""
    if activation is None:
        return x
    return F.relu_(x) if activation == "relu" else F.leaky_relu_(x, slope)


class UpsampledConv(nn.Module):
    """A convolution over a map upsampled to the nearest, ``conv(upsample(x))``.

    Args:
        conv: a Conv2d or Conv3d of stride 1 with an odd kernel, as many zeros around as keep the size, and no groups.
        scale: of every axis, (s_y, s_x) or (s_z, s_y, s_x).

    Raises:
        ValueError, TypeError: another convolution.
    """

    conv: nn.Module

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, scale: Sequence[int]) -> None:
        super().__init__()
        _check_upsampled(conv, scale)
        self.conv, self.scale = conv, tuple(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=[float(s) for s in self.scale], mode="nearest"))

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class SlicePool(nn.Module):
    """``avg_pool3d(x, (1, k, k))`` of ``[B, C, D, H, W]`` as a pooling of images.

    PyTorch on CPUs has none for bfloat16, and copies channels_last_3d to and fro.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous():
            return F.avg_pool2d(x.flatten(1, 2), self.size).unflatten(1, x.shape[1:3])
        slices = x.movedim(2, 1)
        return F.avg_pool2d(slices.flatten(0, 1), self.size).unflatten(0, slices.shape[:2]).movedim(1, 2)

    def extra_repr(self) -> str:
        return f"{self.size}"


def _check_upsampled(conv: nn.Module, scale: Sequence[int]) -> None:
    if not isinstance(conv, (nn.Conv2d, nn.Conv3d)):
        raise TypeError(f"conv must be a Conv2d or Conv3d, got {type(conv).__name__}")
    same = conv.padding == "same" or conv.padding == tuple(k // 2 for k in conv.kernel_size)
    odd = all(k % 2 for k in conv.kernel_size)
    plain = conv.groups == 1 and set(conv.stride) == set(conv.dilation) == {1} and conv.padding_mode == "zeros"
    if not (same and odd and plain):
        raise ValueError(
            f"conv must have stride 1, an odd kernel and as many zeros around as keep the size, got {conv}"
        )
    if len(scale) != len(conv.kernel_size) or any(not isinstance(s, int) or s < 1 for s in scale):
        raise ValueError(f"scale must be {len(conv.kernel_size)} whole numbers of at least 1, got {tuple(scale)}")


def merge_convs(*convs: nn.Conv2d) -> nn.Conv2d:
    """One convolution that computes several of the same input, their outputs one after the other.

    Raises:
        ValueError: convolutions that differ in more than their number of outputs.
    """
    first = convs[0]
    kinds = {(c.in_channels, c.kernel_size, c.stride, c.padding, c.dilation, c.groups, c.padding_mode) for c in convs}
    if len(kinds) > 1 or first.groups != 1 or any(c.bias is None for c in convs):
        raise ValueError(f"convolutions must differ in their outputs alone, got {sorted(map(str, kinds))}")
    merged = nn.utils.skip_init(
        nn.Conv2d,
        first.in_channels,
        sum(c.out_channels for c in convs),
        first.kernel_size,
        stride=first.stride,
        padding=first.padding,
        dilation=first.dilation,
        padding_mode=first.padding_mode,
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    with torch.no_grad():
        merged.weight.copy_(torch.cat([c.weight for c in convs]))
        merged.bias.copy_(torch.cat([c.bias for c in convs if c.bias is not None]))
    return merged
