"""3x3 convolutions with 2.25 times fewer multiplications, by Winograd's F(2x2, 3x3), on the CPU.

A tile of 2x2 outputs sees 4x4 inputs d. With the filter g, ``Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`` takes 16 multiplications
per channel where the definition takes 36; summed over the channels each of the 16 is a matrix product, and the
transforms are additions. Algebraically exact; in float32 it rounds about as the definition does.
Source: Lavin and Gray, CVPR 2016, arXiv 1509.09308, section 4.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.ops import _memory, _native

__all__ = ["WinogradConv2d", "suits_winograd"]

_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_BLOCK = 1 << 20  # values of transformed input and output held at once, 4 MiB: they stay in the caches
_ROWS = 128  # tiles at once at least, so that a matrix product is worth its filters
_LEAST = 64  # channels on either side, below which the transforms cost more than the products save


def suits_winograd(conv: nn.Module) -> bool:
    """Whether a module is a 3x3 convolution on the CPU in float32 that gains by it."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding in ((1, 1), "same")
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= _LEAST
        and conv.weight.dtype == torch.float32
        and conv.weight.device.type == "cpu"
        and _native.reason_missing("cpu") is None
    )


class WinogradConv2d(nn.Module):
    """What a 3x3 convolution computes, for inference: ``[B, C, H, W]`` to ``[B, K, H, W]``, channels_last.

    An input that requires grad, another dtype or device, or one without batch takes the definition, which is
    differentiable with respect to the input; the filters are constants. Raises ValueError for another shape.
    """

    filters: Tensor  # [16, C, K]
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        g = torch.tensor(_G, dtype=torch.float64)
        transformed = torch.einsum("ij,kcjl,ml->imck", g, conv.weight.detach().double(), g)
        self.register_buffer("filters", transformed.flatten(0, 1).to(conv.weight.dtype).contiguous())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            c = self.in_channels
            raise ValueError(f"x must be [B, {c}, H, W] or [{c}, H, W], got {list(x.shape)}")
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if differentiated or x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != 4:
            return _defined(x, self.filters, self.bias)
        return _winograd(x, self.filters, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size=3, padding=1"


def _spatial(filters: Tensor) -> Tensor:
    """The 3x3 filters ``[K, C, 3, 3]`` of transformed ones: the pseudo-inverse of G undoes it."""
    inverse = torch.linalg.pinv(torch.tensor(_G, dtype=torch.float64, device=filters.device))
    square = filters.double().unflatten(0, (4, 4))
    return torch.einsum("ji,imck,lm->kcjl", inverse, square, inverse).to(filters.dtype)


def _defined(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution by its definition, where the transforms are not to be had."""
    return F.conv2d(x, _spatial(filters).to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1)


def _winograd_impl(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    if _native.reason_missing("cpu") is not None:
        return _defined(x, filters, bias).contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    outputs = filters.shape[2]
    out = _memory.empty((batch, outputs, height, width), x, memory_format=torch.channels_last)
    tiles = batch * -(-height // 2) * -(-width // 2)
    rows = max(1, min(tiles, max(_ROWS, _BLOCK // (16 * (channels + outputs)))))  # no tiles in a batch of 0
    given, found = x.new_empty(16, rows, channels), x.new_empty(16, rows, outputs)
    transform, threads = _native.load("cpu").winograd, torch.get_num_threads()

    def run(image: Tensor, tiled: Tensor, first: int, count: int, with_bias: Tensor | None, is_input: bool) -> None:
        stride = image.stride()
        sizes = (batch, height, width, image.shape[1])
        parts = (first, count, rows)
        places = image.data_ptr(), (stride[0], stride[2], stride[3]), tiled.data_ptr(), _native.pointer(with_bias)
        transform(is_input, (sizes, parts, *places), threads)

    for first in range(0, tiles, rows):
        count = min(rows, tiles - first)
        run(x, given, first, count, None, True)
        torch.bmm(given[:, :count], filters, out=found[:, :count])
        run(out, found, first, count, bias, False)
    return out


def _winograd_fake(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    shape = (x.shape[0], filters.shape[2], x.shape[2], x.shape[3])
    return _memory.empty(shape, x, memory_format=torch.channels_last)


torch.library.define("fastface::winograd", "(Tensor x, Tensor filters, Tensor? bias) -> Tensor")
torch.library.impl("fastface::winograd", ("CPU",), _winograd_impl)
torch.library.register_fake("fastface::winograd", _winograd_fake)
_winograd = torch.ops.fastface.winograd.default
