"""Convolutions of unusual shapes by way of usual ones, where PyTorch's own are slow on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FoldedConv2d", "SlicedConv3d", "suits_folding", "suits_slicing"]

_COLUMNS = 64  # outputs times taps, up to which a matrix product and a fold beat a convolution
_WIDE = 256  # the same of depth taps: from there on a 3D convolution has outputs enough of its own


def suits_folding(conv: nn.Module) -> bool:
    """Whether a convolution has so few outputs that a product for every tap beats it."""
    return (
        isinstance(conv, nn.Conv2d)
        and _is_same(conv)
        and 1 < conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels <= _COLUMNS
        and conv.in_channels > 4 * _COLUMNS
        and conv.weight.device.type == "cpu"
    )


class FoldedConv2d(nn.Module):
    """What a "same" convolution of many inputs and few outputs computes: one matrix product gives every pixel's share
    in each of its neighbours, and `torch.nn.functional.fold` sums what arrives at a pixel, in float32 at least.

    Products and shapes are those of the convolution; ``[B, C, H, W]`` to ``[B, K, H, W]``.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size = conv.kernel_size
        # A pixel gives its upper neighbour what that one's kernel takes from below: the taps are mirrored.
        weight = conv.weight.detach().flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.weight @ x.flatten(2)
        wide = torch.promote_types(x.dtype, torch.float32)
        padding = tuple(k // 2 for k in self.kernel_size)
        out = F.fold(shares.to(wide), x.shape[2:], self.kernel_size, padding=padding).to(x.dtype)
        return out if self.bias is None else out.add_(self.bias[:, None, None])

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"


def suits_slicing(conv: nn.Module) -> bool:
    """Whether a 3D convolution has a deep kernel and few outputs."""
    return (
        isinstance(conv, nn.Conv3d)
        and _is_same(conv)
        and conv.kernel_size[0] >= 5
        and conv.kernel_size[0] * conv.out_channels <= _WIDE
        and conv.weight.device.type == "cpu"
    )


class SlicedConv3d(nn.Module):
    """What a "same" 3D convolution computes, by a 2D convolution of the slices that has an output for each tap of the
    depth, and a sum over the slices that a tap comes from, in float32 at least.

    As many products, in a shape that fills the matrix units: 7 x 22 outputs instead of 22. ``[B, C, D, H, W]`` to
    ``[B, K, D, H, W]``, best from channels_last_3d, whose slices are images in channels_last.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.taps, self.out_channels = conv.kernel_size[0], conv.out_channels
        self.slices = nn.utils.skip_init(
            nn.Conv2d, conv.in_channels, self.taps * conv.out_channels, conv.kernel_size[1:],
            padding="same", bias=False, device=conv.weight.device, dtype=conv.weight.dtype,
        ).requires_grad_(False)  # fmt: skip
        self.slices.weight.copy_(conv.weight.detach().movedim(2, 0).flatten(0, 1))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        depth = x.shape[2]
        found = self.slices(x.movedim(2, 1).flatten(0, 1)).unflatten(0, (x.shape[0], depth))  # [B, D, taps K, H, W]
        wide = torch.promote_types(x.dtype, torch.float32)
        out = found.new_zeros(x.shape[0], depth, self.out_channels, *found.shape[3:], dtype=wide)
        if self.bias is not None:
            out += self.bias[:, None, None]
        for tap, part in enumerate(found.split(self.out_channels, dim=2)):
            shift = tap - self.taps // 2  # slice d of the output takes this tap from slice d + shift
            inside = depth - abs(shift)
            if inside > 0:
                out.narrow(1, max(0, -shift), inside).add_(part.narrow(1, max(0, shift), inside))
        return out.movedim(1, 2).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.slices.in_channels}, {self.out_channels}, taps={self.taps}"


def _is_same(conv: nn.Conv2d | nn.Conv3d) -> bool:
    """Stride 1 and as many zeros around as keep the size."""
    same = conv.padding == "same" or conv.padding == tuple(k // 2 for k in conv.kernel_size)
    odd = all(k % 2 for k in conv.kernel_size)
    return same and odd and conv.groups == 1 and {*conv.stride, *conv.dilation} == {1} and conv.padding_mode == "zeros"
