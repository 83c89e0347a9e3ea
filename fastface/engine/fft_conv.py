"""7x7x7 convolutions by the Fourier transform of tiles, on the CPU.

A tile of m x m outputs sees N x N inputs, N = m + 6. Their discrete Fourier transform times the conjugate of that of
the filter, transformed back, is the circular correlation of the two, of which the first m along each axis are not
reached by what wraps around (overlap-save). Real inputs have N (N/2 + 1) frequencies. At each of these the sum over the
channels and over the 7 depths of the filter is a product of real matrices, with U the conjugate
``[Re V, Im V] [[Re U, Im U], [-Im U, Re U]]``: for m = 16 it takes 4.1 multiplications per output where the definition
takes 49.

A transform over the depth too would multiply less still, but what it would have to keep at once, 100 MB of transformed
inputs for 142 x 16 x 64 x 64, costs more than it saves.

Exact in real arithmetic. In float32 nothing grows, for the transforms are orthogonal but for a factor: white noise of
142 channels keeps within 1e-6 of the largest output, which is closer than the definition, a sum 10 times as long.
Source: Mathieu, Henaff and LeCun, ICLR 2014, arXiv 1312.5851; overlap-save: Oppenheim and Schafer, Discrete-Time Signal
Processing, section 8.7.3.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.engine._tiled_conv import GROUP, TiledConv, define_op, on_cpu, pack, reason_against

__all__ = ["FFTConv3d", "suits_fft"]

_SIZE, _TILE = 7, 16
_SIDE = _TILE + _SIZE - 1
_LEAST = 16  # input channels, below which the transforms cost more than the products save


def suits_fft(conv: nn.Module) -> bool:
    """Whether a module is a 7x7x7 convolution on the CPU in float32 that gains by it."""
    return (
        isinstance(conv, nn.Conv3d)
        and reason_against(conv, _SIZE) is None
        and conv.in_channels >= _LEAST
        and on_cpu(conv)
    )


class FFTConv3d(TiledConv):
    """What a 7x7x7 convolution of padding 3 computes, for inference: ``[B, C, D, H, W]`` to ``[B, K, D, H, W]``.

    The input may have any memory format and is read without a copy where it is contiguous, channels_last_3d or a slice
    of such along the batch, channels, depth or rows; the output is channels_last_3d where the input is, otherwise
    contiguous. An `activation` follows, a leaky ReLU with `slope`.

    An input that requires grad, another dtype or device, or one without batch takes the definition, which is
    differentiable with respect to the input; the filters are constants. Raises ValueError for another convolution.
    """

    op = define_op("fft_conv", lambda _: _TILE)

    def __init__(
        self,
        conv: nn.Conv3d,
        *,
        activation: Literal["relu", "leaky_relu"] | None = None,
        slope: float = 0.01,
    ) -> None:
        if (reason := reason_against(conv, _SIZE)) is not None:
            raise ValueError(reason)
        super().__init__(conv, _transformed(conv.weight.detach()), _TILE, activation, slope)


def _transformed(weight: Tensor) -> Tensor:
    """The spectra of every depth of the filters ``[K, C, 7, 7, 7]``, with the factors of the way back, packed."""
    spectra = torch.fft.rfft2(weight.double(), s=(_SIDE, _SIDE)).conj() / _SIDE**2  # [K, C, 7, N, N/2 + 1]
    spectra[..., 1 : _SIDE // 2] *= 2  # each stands for its conjugate too
    parts = (
        torch.view_as_real(spectra.resolve_conj()).to(weight.dtype).permute(5, 3, 4, 2, 1, 0).flatten(1, 2)
    )  # [2, F, 7, C, K]
    real, imaginary = F.pad(parts, (0, -parts.shape[4] % (GROUP // 2), 0, -parts.shape[3] % GROUP)).unbind()
    rows = torch.stack((torch.cat((real, imaginary), 3), torch.cat((-imaginary, real), 3)), 2)  # [F, 7, 2, C, 2 K]
    matrices = rows.flatten(1, 3)
    return pack(F.pad(matrices, (0, -matrices.shape[2] % GROUP)))
