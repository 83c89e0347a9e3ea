"""The `spade` hot path in plain PyTorch: what every kernel must compute.

``act((1 + gamma) * (x - mean) * rstd + beta) + residual`` with mean and rstd per image and channel over H and W. One
gamma and beta per pixel make it SPADE (Park et al. 2019, arXiv 1903.07291, equation 1; HeadGAN, figure 9a), one per
channel AdaIN (HeadGAN, figure 9b), none instance normalisation.

Everything here is differentiable and traceable. 16-bit inputs are computed in float32 and rounded once, on the way out;
float64 stays float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["instance_stats", "modulated_norm"]


def instance_stats(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """``mean`` and ``rstd = 1 / sqrt(var + eps)`` of ``[B, C, H, W]`` over H and W, ``var`` biased: two ``[B, C]``."""
    wide = _wide(x)
    mean = wide.mean((2, 3))
    # In two passes: E[x²] - E[x]² would lose the variance of a channel whose mean is large.
    variance = (wide - mean[:, :, None, None]).square().mean((2, 3))
    return mean, torch.rsqrt(variance + eps)


def modulated_norm(
    x: Tensor,  # [B, C, H, W]
    gamma: Tensor | None = None,  # [B, C, H, W], [B, C, h, w] with H = s h and W = s w, or [B, C]
    beta: Tensor | None = None,
    stats: tuple[Tensor, Tensor] | None = None,  # mean and rstd, [B, C] each
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float = 0.2,
    residual: Tensor | None = None,  # [B, C, H, W]
) -> Tensor:
    """``act((1 + gamma) * (x - mean) * rstd + beta) + residual``, in the dtype and memory format of `x`."""
    wide = _wide(x)
    mean, rstd = instance_stats(x, eps) if stats is None else (_wide(value) for value in stats)
    result = (wide - mean.to(wide.dtype)[:, :, None, None]) * rstd.to(wide.dtype)[:, :, None, None]
    if gamma is not None:
        result = result * (1 + _spread(gamma, x).to(wide.dtype))
    if beta is not None:
        result = result + _spread(beta, x).to(wide.dtype)
    if activation == "relu":
        result = F.relu(result)
    elif activation == "leaky_relu":
        result = F.leaky_relu(result, slope)
    if residual is not None:
        result = result + residual.to(wide.dtype)
    return result.to(x.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _spread(modulation: Tensor, x: Tensor) -> Tensor:
    """Gamma or beta at every pixel of `x`: repeated s by s (nearest), or one number per channel."""
    if modulation.dim() == 2:
        return modulation[:, :, None, None]
    scale = x.shape[2] // modulation.shape[2]
    if scale == 1:
        return modulation
    batch, channels, height, width = modulation.shape
    repeated = modulation[:, :, :, None, :, None].expand(batch, channels, height, scale, width, scale)
    return repeated.reshape(batch, channels, height * scale, width * scale)
