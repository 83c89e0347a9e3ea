"""What convolutions by tiles share: their ops, the filters as csrc/tiled_conv_tier.cpp reads them, and the module.

A tile of the input is transformed, multiplied by transformed filters, summed over the channels (which makes it a matrix
product per frequency) and over the depths of the filter, and transformed back. `winograd` and `fft_conv` say how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.ops import _memory, _native

__all__ = ["GROUP", "TiledConv", "define_op", "on_cpu", "pack", "reason_against"]

GROUP, _PANEL = 16, 32  # channels and columns next to each other in the filters


def on_cpu(conv: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether the native code can take a convolution where and as it is."""
    weight = conv.weight
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and _native.reason_missing("cpu") is None


def reason_against(conv: nn.Conv2d | nn.Conv3d, size: int) -> str | None:
    """What keeps a convolution from being done by tiles: only its filters' `size`, and stride 1 without tricks, can."""
    axes = len(conv.kernel_size)
    if conv.kernel_size != (size,) * axes:
        return f"kernel_size must be {size}, got {conv.kernel_size}"
    if conv.stride != (1,) * axes or conv.dilation != (1,) * axes:
        return f"stride and dilation must be 1, got {conv.stride} and {conv.dilation}"
    if conv.padding not in ((size // 2,) * axes, "same") and (axes == 3 or conv.padding not in ((0, 0), "valid")):
        return f"padding must be {size // 2}{'' if axes == 3 else ' or 0'}, got {conv.padding}"
    if conv.padding_mode != "zeros" or conv.groups != 1:
        return f"padding_mode must be 'zeros' and groups 1, got {conv.padding_mode!r} and {conv.groups}"
    return None


def pack(filters: Tensor) -> Tensor:
    """Matrices ``[F, L, K]``, L and K in whole groups, as ``[F, L K]``: columns in panels of 32, the last maybe of 16.

    The rank is one that no memory format is for, so that `Module.to` leaves them alone.
    """
    return torch.cat([panel.flatten(1) for panel in filters.split(_PANEL, dim=2)], 1)


class TiledConv(nn.Module):
    """A convolution by tiles, with an activation; the filters are constants."""

    op: ClassVar[Callable[..., Tensor]]  # what define_op returned
    weight: Tensor  # as the convolution has it
    filters: Tensor  # transformed and packed
    bias: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d | nn.Conv3d,
        filters: Tensor,
        tile: int,
        activation: Literal["relu", "leaky_relu"] | None,
        slope: float,
    ) -> None:
        super().__init__()
        if activation not in (None, "relu", "leaky_relu"):
            raise ValueError(f"activation must be None, 'relu' or 'leaky_relu', got {activation!r}")
        self.in_channels, self.out_channels, self.kernel_size = conv.in_channels, conv.out_channels, conv.kernel_size
        self.padding = 0 if conv.padding in ((0, 0), "valid") else conv.kernel_size[0] // 2
        self.tile, self.activation = tile, activation
        self.slope = None if activation is None else 0.0 if activation == "relu" else slope
        self.register_buffer("weight", conv.weight.detach().clone())
        self.register_buffer("filters", filters.to(conv.weight.dtype))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of `x` and its activation; raises ValueError for another shape."""
        rank = self.weight.dim()
        if x.dim() not in (rank - 1, rank) or x.shape[1 - rank] != self.in_channels:
            sizes = f"{self.in_channels}, " + ("D, H, W" if rank == 5 else "H, W")
            raise ValueError(f"x must be [B, {sizes}] or [{sizes}], got {list(x.shape)}")
        if min(x.shape[-2:]) + 2 * self.padding < self.kernel_size[-1]:
            raise ValueError(f"x must be as large as the filters, {list(self.kernel_size)}, got {list(x.shape)}")
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if differentiated or x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != rank:
            return _defined(x, self.weight, self.bias, self.padding, self.slope)
        return type(self).op(x, self.weight, self.filters, self.bias, self.padding, self.slope)

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation}"
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, padding={self.padding}"
        return f"{sizes}, tile={self.tile}{activation}"


def _defined(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, slope: float | None) -> Tensor:
    """The convolution by its definition, where the transforms are not to be had."""
    conv = F.conv2d if weight.dim() == 4 else F.conv3d
    y = conv(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)
    if slope is None:
        return y
    return F.relu(y) if slope == 0 else F.leaky_relu(y, slope)


def define_op(name: str, tile_of: Callable[[Tensor], int]) -> Callable[..., Tensor]:
    """The op ``fastface::name(x, weight, filters, bias, padding, slope)``; its filters tell the side of a tile."""

    def impl(x: Tensor, weight: Tensor, filters: Tensor, *rest: Any) -> Tensor:
        return _convolve(x, weight, filters, *rest, tile=tile_of(filters))

    schema = "(Tensor x, Tensor weight, Tensor filters, Tensor? bias, int padding, float? slope) -> Tensor"
    torch.library.define(f"fastface::{name}", schema)
    torch.library.impl(f"fastface::{name}", ("CPU",), impl)
    torch.library.register_fake(f"fastface::{name}", _empty)
    op: Callable[..., Tensor] = getattr(torch.ops.fastface, name).default
    return op


def _convolve(
    x: Tensor, weight: Tensor, filters: Tensor, bias: Tensor | None, padding: int, slope: float | None, *, tile: int
) -> Tensor:
    out = _empty(x, weight, filters, bias, padding, slope)
    if _native.reason_missing("cpu") is not None:
        return out.copy_(_defined(x, weight, bias, padding, slope))
    if out.numel() == 0:
        return out
    if 1 not in (x.stride(1), x.stride(-1)):
        x = x.contiguous()
    # What is not deep takes its batch for the depth: filters of depth 1 keep the images apart.
    image, found, taps = (x, out, weight.shape[2]) if x.dim() == 5 else (_as_depth(x), _as_depth(out), 1)
    batch, channels, *sizes = image.shape
    shapes = (batch, *sizes, channels), (found.shape[1], *found.shape[-2:]), (taps, tile, padding)
    places = image.data_ptr(), image.stride(), found.data_ptr(), found.stride()
    constants = filters.data_ptr(), _native.pointer(bias), slope is not None, slope or 0.0
    _native.load("cpu").tiled_conv((*shapes, *places, *constants), torch.get_num_threads())
    return out


def _as_depth(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` as ``[1, C, B, H, W]``."""
    return x.transpose(0, 1).unsqueeze(0)


def _empty(
    x: Tensor, weight: Tensor, filters: Tensor, bias: Tensor | None, padding: int, slope: float | None
) -> Tensor:
    height, width = (size + 2 * padding - weight.shape[-1] + 1 for size in x.shape[-2:])
    shape = (x.shape[0], weight.shape[0], *x.shape[2:-2], height, width)
    if x.dim() == 4:
        return _memory.empty(shape, x, memory_format=torch.channels_last)
    last = x.stride(1) == 1 and not x.is_contiguous()
    return _memory.empty(shape, x, memory_format=torch.channels_last_3d if last else torch.contiguous_format)
