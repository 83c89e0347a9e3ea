"""Modules over `fastface.ops.spade`: instance normalisation, SPADE and AdaIN, each with its activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import ops
from fastface.nn.conv import ActivatedConv, UpsampledConv, merge_convs

__all__ = ["SPADE", "AdaIN", "InstanceNorm", "MergedSPADE", "ModulatedNorm", "UpsampledModulation", "resize_nearest"]


class _Norm(nn.Module):
    def __init__(self, activation: str | None, slope: float, eps: float, backend: str | None) -> None:
        super().__init__()
        self.activation, self.slope, self.eps, self.backend = activation, slope, eps, backend

    def normalize(
        self,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        stats: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return ops.modulated_norm(
            x, gamma, beta, stats=stats,
            eps=self.eps, activation=self.activation, slope=self.slope, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"activation={self.activation}, eps={self.eps}"


class InstanceNorm(_Norm):
    """``act(weight * (x - mean) * rstd + bias)``, ``[B, C, H, W]``, with one weight and bias per channel."""

    def __init__(
        self,
        channels: int,
        *,
        activation: str | None = None,
        slope: float = 0.2,
        eps: float = 1e-5,
        backend: str | None = None,
    ) -> None:
        super().__init__(activation, slope, eps, backend)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[:2]
        return self.normalize(x, (self.weight - 1).expand(shape), self.bias.expand(shape))


class ModulatedNorm(_Norm):
    """`fastface.ops.modulated_norm` with its options held."""

    def __init__(
        self, *, activation: str | None = None, slope: float = 0.2, eps: float = 1e-5, backend: str | None = None
    ) -> None:
        super().__init__(activation, slope, eps, backend)

    @classmethod
    def of(cls, spade: SPADE) -> ModulatedNorm:
        """A `SPADE` behind its convolutions."""
        return cls(activation=spade.activation, slope=spade.slope, eps=spade.eps, backend=spade.backend)

    def forward(
        self,
        x: Tensor,
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
        stats: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return self.normalize(x, gamma, beta, stats)


class SPADE(_Norm):
    """``act((1 + gamma(m)) * (x - mean) * rstd + beta(m))``, the modulation convolved from a map.

    ``h = relu(shared(m))``, gamma and beta 3x3 convolutions of h; the map is resized to `x` by nearest neighbour first.
    Source: arXiv 1903.07291, equation (1) and figure 2.

    Args:
        channels: of `x`.
        map_channels: of the map.
        hidden: of h; 128 as published, 256 in HeadGAN.
    """

    def __init__(
        self,
        channels: int,
        map_channels: int,
        hidden: int = 128,
        *,
        activation: str | None = None,
        slope: float = 0.2,
        eps: float = 1e-5,
        backend: str | None = None,
    ) -> None:
        super().__init__(activation, slope, eps, backend)
        self.shared = nn.Conv2d(map_channels, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        hidden = F.relu(self.shared(resize_nearest(modulation, x.shape[2], x.shape[3])))
        return self.normalize(x, self.gamma(hidden), self.beta(hidden))

    def merged(self) -> MergedSPADE:
        """The same behind the shared convolution, gamma and beta in one."""
        return MergedSPADE(self)

    def optimized(self) -> nn.Module:
        return _SharedAndMerged(self)


class MergedSPADE(_Norm):
    """A `SPADE` from ``h = relu(shared(m))`` on, gamma and beta two halves of one convolution."""

    def __init__(self, spade: SPADE) -> None:
        super().__init__(spade.activation, spade.slope, spade.eps, spade.backend)
        self.modulation = merge_convs(spade.gamma, spade.beta)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        gamma, beta = self.modulation(hidden).chunk(2, dim=1)
        return self.normalize(x, gamma, beta)


class _SharedAndMerged(nn.Module):
    """A `SPADE` of its own, its modulation merged."""

    rewrites = (("gamma|beta merged", ("gamma", "beta"), ("norm.modulation",)),)

    def __init__(self, spade: SPADE) -> None:
        super().__init__()
        self.shared, self.norm = ActivatedConv(spade.shared, "relu"), spade.merged()

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        return self.norm(x, self.shared(resize_nearest(modulation, x.shape[2], x.shape[3])))


class UpsampledModulation(nn.Module):
    """The modulations of several `SPADE` whose common map is upsampled by a whole number, from the map before.

    The owner calls `shared`, takes each norm's part of what it gives, and gives that to its one of `convs`. They are
    together here since a faster form of both may hand on each distinct row of the upsampled map once.

    Args:
        shared: the shared convolutions, merged.
        convs: gamma and beta, merged, of each norm.
        scale: of the map.
    """

    shared: nn.Module

    def __init__(self, shared: nn.Conv2d, convs: list[nn.Conv2d], scale: int) -> None:
        super().__init__()
        self.shared = ActivatedConv(UpsampledConv(shared, (scale, scale)), "relu")
        self.convs = nn.ModuleList(convs)


class AdaIN(_Norm):
    """``act((1 + gamma(s)) * (x - mean) * rstd + beta(s))``, the modulation one linear layer of a style ``[B, S]``.

    Source: arXiv 1703.06868, equation (8), with gamma and beta learnt; HeadGAN, figure 9b.
    """

    def __init__(
        self,
        channels: int,
        style: int,
        *,
        activation: str | None = None,
        slope: float = 0.2,
        eps: float = 1e-5,
        backend: str | None = None,
    ) -> None:
        super().__init__(activation, slope, eps, backend)
        self.affine = nn.Linear(style, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        gamma, beta = self.affine(style).chunk(2, dim=1)
        return self.normalize(x, gamma, beta)


def resize_nearest(image: Tensor, height: int, width: int) -> Tensor:
    """``[B, C, h, w]`` to ``[B, C, H, W]``, pixel (y, x) being (y h // H, x w // W) of the image; a view where H and W
    divide h and w.
    """
    h, w = image.shape[2:]
    if (h, w) == (height, width):
        return image
    if h % height == 0 and w % width == 0:
        return image[:, :, :: h // height, :: w // width]
    rows = torch.arange(height, device=image.device) * h // height
    columns = torch.arange(width, device=image.device) * w // width
    return image[:, :, rows[:, None], columns]
