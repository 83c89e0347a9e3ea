"""The `triplane` hot path in plain PyTorch: the equations as published, and what every kernel is held against.

Source: EG3D (arXiv 2112.07945), sections 4.1 to 4.3, with the semantics of its published renderer; mip-NeRF's midpoint
rule (arXiv 2103.13415); inverse transform sampling as in NeRF (arXiv 2003.08934), section 5.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "AXES",
    "PlaneDecoder",
    "RenderOutput",
    "composite",
    "importance_depths",
    "render_planes",
    "sample_planes",
    "stratified_depths",
]

# Which coordinates run along width, height and (of a trigrid) depth of each plane.
AXES = {
    "xy_xz_yz": ((0, 1, 2), (0, 2, 1), (1, 2, 0)),
    "xy_xz_zy": ((0, 1, 2), (0, 2, 1), (2, 1, 0)),
    "eg3d": ((0, 1, 2), (0, 2, 1), (2, 0, 1)),  # as published: the third plane is the second, transposed
}


class PlaneDecoder(NamedTuple):
    """``softplus(x w1ᵀ + b1) w2ᵀ + b2``: effective weights, gains folded; output 0 is the density, the rest colours."""

    w1: Tensor  # [h, C]
    b1: Tensor  # [h]
    w2: Tensor  # [1+F, h]
    b2: Tensor  # [1+F]


class RenderOutput(NamedTuple):
    """What a batch of rays sees."""

    features: Tensor  # [B, R, F]
    depth: Tensor  # [B, R]
    opacity: Tensor  # [B, R]


def _wide(planes: Tensor) -> torch.dtype:
    return torch.promote_types(planes.dtype, torch.float32)


def sample_planes(
    planes: Tensor, points: Tensor, box: float = 1.0, axes: str = "xy_xz_yz", reduce: str | None = "sum"
) -> Tensor:
    """``[B, N, C]``, or ``[B, 3, N, C]`` where `reduce` is None."""
    sampled = _sample(planes, points, box, axes, reduce)
    if planes.dim() == 6 or planes.is_cuda:  # there grid_sample takes NaN for a point outside
        lost = _lost(points.to(_wide(planes)))
        sampled = sampled + (lost[..., None] if reduce is not None else lost[:, None, :, None]).to(sampled.dtype)
    return sampled


def _lost(points: Tensor) -> Tensor:
    """NaN where a coordinate is not finite, else 0."""
    return (points - points).sum(-1)


def _sample(planes: Tensor, points: Tensor, box: float, axes: str, reduce: str | None) -> Tensor:
    wide = _wide(planes)
    scaled = points.to(wide) * (2 / box)
    batch, _, channels = planes.shape[:3]
    samples = []
    for plane, chosen in zip(planes.to(wide).unbind(1), AXES[axes], strict=True):
        grid = scaled[..., list(chosen[: plane.dim() - 2])]  # [B, N, 2 or 3]
        grid = grid.reshape(batch, *(1,) * (plane.dim() - 3), -1, plane.dim() - 2)
        sample = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        samples.append(sample.reshape(batch, channels, -1))
    stacked = torch.stack(samples, 1).transpose(2, 3)
    if reduce is not None:
        stacked = stacked.sum(1) if reduce == "sum" else stacked.mean(1)
    return stacked.to(planes.dtype)


def stratified_depths(near: Tensor, far: Tensor, jitter: Tensor | None, count: int, disparity: bool) -> Tensor:
    """One depth in each of `count` strata ``[B, R, S]``; the last one reaches beyond `far` by its jitter."""
    steps = torch.arange(count, device=near.device, dtype=near.dtype) / (count - 1)
    offset = 0.5 if jitter is None else jitter.to(near.dtype)
    share = steps + offset / (count - 1)
    near, far = near[..., None], far[..., None]
    if disparity:
        return 1 / ((1 - share) / near + share / far)
    return near + share * (far - near)


def importance_depths(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Depths ``[B, R, I]`` where the coarse weights ``[B, R, S-1]`` are, by the inverse of their distribution.

    Weights are smoothed by a maximum and an average of neighbours first. The histogram is the published one: the weight
    of the interval after depth j lies between the middles before and after depth j.
    """
    padded = F.pad(weights, (1, 1), value=-torch.inf)
    highest = torch.maximum(padded[..., :-1], padded[..., 1:])
    smooth = (highest[..., :-1] + highest[..., 1:]) / 2 + 0.01
    middles = (depths[..., :-1] + depths[..., 1:]) / 2
    share = smooth[..., 1:-1] + 1e-5
    cumulated = F.pad((share / share.sum(-1, keepdim=True)).cumsum(-1), (1, 0))  # [B, R, S-2]
    index = torch.searchsorted(cumulated, u.contiguous(), right=True)
    below, above = (index - 1).clamp(min=0), index.clamp(max=cumulated.shape[-1] - 1)
    low, high = cumulated.gather(-1, below), cumulated.gather(-1, above)
    width = high - low
    width = torch.where(width < 1e-5, 1.0, width)
    start, end = middles.gather(-1, below), middles.gather(-1, above)
    return start + (u - low) / width * (end - start)


def composite(depths: Tensor, density: Tensor) -> Tensor:
    """Weights of the intervals ``[B, R, S-1]``: opacity of each times what reaches it; density ``[B, R, S]`` is raw."""
    middle = F.softplus((density[..., :-1] + density[..., 1:]) / 2 - 1)
    alpha = 1 - torch.exp(-middle * (depths[..., 1:] - depths[..., :-1]))
    through = F.pad(torch.cumprod(1 - alpha + 1e-10, -1)[..., :-1], (1, 0), value=1.0)
    return alpha * through


def render_planes(
    planes: Tensor,
    origins: Tensor,
    directions: Tensor,
    decoder: PlaneDecoder,
    near: Tensor,  # [B, R]
    far: Tensor,
    coarse: int = 48,
    fine: int = 48,
    box: float = 1.0,
    axes: str = "xy_xz_yz",
    reduce: str = "sum",
    white_back: bool = False,
    jitter: Tensor | None = None,
    u: Tensor | None = None,
    disparity: bool = False,
) -> RenderOutput:
    """The equations of `fastface.ops.render_planes`; gradients reach planes and decoder, not depths."""
    wide = _wide(planes)
    origins, directions = origins.to(wide), directions.to(wide)
    w1, b1, w2, b2 = (each.to(wide) for each in decoder)
    near, far = near.to(wide), far.to(wide)

    def look(depths: Tensor) -> tuple[Tensor, Tensor]:
        """Raw density ``[B, R, S]`` and colour ``[B, R, S, F]`` there."""
        points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
        sampled = _sample(planes.to(wide), points.flatten(1, 2), box, axes, reduce)
        with torch.autocast(planes.device.type, enabled=False):  # the precision of `wide` is part of the op
            raw = F.linear(F.softplus(F.linear(sampled, w1, b1)), w2, b2).unflatten(1, depths.shape[1:])
        return raw[..., 0], torch.sigmoid(raw[..., 1:]) * 1.002 - 0.001

    depths = stratified_depths(near, far, jitter, coarse, disparity)
    density, colour = look(depths)
    if fine:
        if u is None:
            u = (torch.arange(fine, device=planes.device, dtype=wide) + 0.5) / fine
        with torch.no_grad():
            chosen = importance_depths(depths, composite(depths, density), u.to(wide).expand(*near.shape, fine))
        new_density, new_colour = look(chosen)
        depths, order = torch.sort(torch.cat([depths, chosen], -1), -1)
        density = torch.cat([density, new_density], -1).gather(-1, order)
        colour = torch.cat([colour, new_colour], 2)
        colour = colour.gather(2, order[..., None].expand(*order.shape, colour.shape[-1]))
    weights = composite(depths, density)
    opacity = weights.sum(-1)
    features = (weights[..., None] * (colour[:, :, :-1] + colour[:, :, 1:]) / 2).sum(2)
    depth = (weights * (depths[..., :-1] + depths[..., 1:]) / 2).sum(-1) / opacity
    depth = torch.where(opacity == 0, depths[..., -1], depth)
    if white_back:
        features = features + (1 - opacity[..., None])
    lost = _lost(origins) + _lost(directions)
    return RenderOutput((2 * features - 1 + lost[..., None]).to(planes.dtype), depth + lost, opacity + lost)
