"""3x3 and 3x3x3 convolutions with a quarter of the multiplications, by Winograd's algorithm, on the CPU.

A tile of m x m outputs sees (m+2) x (m+2) inputs d. With the filter g, ``Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`` takes (m+2)²
multiplications per channel where the definition takes 9 m²: 4 times fewer for m = 4, 2.25 times for m = 2. Summed over
the channels each of the (m+2)² is a matrix product. A 3x3x3 convolution is three of these, one per depth of the filter,
added up before Aᵀ.

Algebraically exact. F(4x4) interpolates at 0, ±5/8, ±3/2 and infinity rather than at 0, ±1, ±2: the rows of A, B and G
are nearer to each other in size, so that less is lost where they cancel, and all of A and B is exact in float32. Of the
largest output for white noise of 512 channels F(4x4) loses 5e-6 (7e-6 in 3D), with the usual points it would be four
times that; F(2x2) 1e-6; the definition 3e-7. What `optimize` promises is 1e-4 for a whole network.
Source: Lavin and Gray, CVPR 2016, arXiv 1509.09308, section 4.1; on points: Barabasz et al., arXiv 1803.10986.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.engine._tiled_conv import GROUP, TiledConv, define_op, on_cpu, pack, reason_against

__all__ = ["WinogradConv2d", "WinogradConv3d", "suits_winograd"]

_LEAST = 32  # channels on either side, below which the transforms cost more than the products save
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.625, -0.625, 1.5, -1.5)}  # and infinity


def suits_winograd(conv: nn.Module) -> bool:
    """Whether a module is a 3x3 or 3x3x3 convolution on the CPU in float32 that gains by it."""
    return (
        isinstance(conv, (nn.Conv2d, nn.Conv3d))
        and reason_against(conv, 3) is None
        and min(conv.in_channels, conv.out_channels) >= _LEAST
        and on_cpu(conv)
    )


class _Winograd(TiledConv):
    op = define_op("winograd", lambda filters: math.isqrt(filters.shape[0]) - 2)

    def __init__(
        self,
        conv: nn.Conv2d | nn.Conv3d,
        *,
        tile: Literal[2, 4] = 4,
        activation: Literal["relu", "leaky_relu"] | None = None,
        slope: float = 0.01,
    ) -> None:
        if (reason := reason_against(conv, 3)) is not None:
            raise ValueError(reason)
        if tile not in _POINTS:
            raise ValueError(f"tile must be 2 or 4, got {tile!r}")
        super().__init__(conv, _transformed(conv.weight.detach(), tile), tile, activation, slope)


class WinogradConv2d(_Winograd):
    """What a 3x3 convolution computes, for inference: ``[B, C, H, W]`` to ``[B, K, H, W]``, channels_last.

    The padding is 1 or 0, the input of any memory format, read without a copy where it is contiguous, channels_last or
    a slice of such along the batch, channels or rows. `tile` is the m of F(m x m, 3x3): 4 is faster, 2 closer. An
    `activation` follows, a leaky ReLU with `slope`.

    An input that requires grad, another dtype or device, or one without batch takes the definition, which is
    differentiable with respect to the input; the filters are constants. Raises ValueError for another convolution.
    """


class WinogradConv3d(_Winograd):
    """What a 3x3x3 convolution of padding 1 computes, for inference: ``[B, C, D, H, W]`` to ``[B, K, D, H, W]``.

    The output is channels_last_3d where the input is, otherwise contiguous. Maps of about 4x4 are faster by ``tile=2``:
    reading the filters takes longer than multiplying by them. The rest is as for `WinogradConv2d`.
    """


def _filter_transform(tile: int) -> Tensor:
    """G ``[tile + 2, 3]``: a row of powers of each point over the product of its differences to the others."""
    points = _POINTS[tile]
    rows = []
    for point in points:
        others = math.prod(point - other for other in points if other != point)
        rows.append([point**power / others for power in range(3)])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def _transformed(weight: Tensor, tile: int) -> Tensor:
    """G g Gᵀ of every depth of the filters ``[K, C, (3,) 3, 3]``, packed."""
    g = _filter_transform(tile).to(weight.device)
    spatial = weight.double() if weight.dim() == 5 else weight.double().unsqueeze(2)
    spread = torch.einsum("ij,kctjl,ml->imtck", g, spatial, g).flatten(0, 1)
    spread = F.pad(spread, (0, -spread.shape[3] % GROUP, 0, -spread.shape[2] % GROUP))
    return pack(spread.flatten(1, 2))
