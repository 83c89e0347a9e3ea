"""Shapes, inputs and selftest cases of the `triplane` ops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastface.kernels.triplane.triplane_reference import PlaneDecoder
from fastface.ops._verify import Inputs, arrange

__all__ = ["SHAPES", "TriplaneShape", "inputs", "selftest"]


@dataclass(frozen=True)
class TriplaneShape:
    """Sizes of a `triplane` call: planes ``[B, 3, C, H, W]``, with a `depth` ``[B, 3, C, D, H, W]``; for
    `sample_planes` the rays are the points.
    """

    batch: int
    channels: int
    height: int
    width: int
    rays: int
    coarse: int = 48
    fine: int = 48
    hidden: int = 64
    outputs: int = 32
    depth: int = 0


SHAPES = {
    "eg3d_64": TriplaneShape(1, 32, 256, 256, 64 * 64),
    "eg3d_128": TriplaneShape(1, 32, 256, 256, 128 * 128),
    "trigrid_64": TriplaneShape(1, 32, 256, 256, 64 * 64, depth=3),
    "wide_64": TriplaneShape(1, 96, 256, 256, 64 * 64, outputs=96),
    "points": TriplaneShape(1, 32, 256, 256, 196_608),
    "odd": TriplaneShape(2, 5, 13, 9, 37, 11, 7, 17, 6),
    "trigrid": TriplaneShape(1, 6, 11, 8, 23, 8, 9, 12, 3, depth=3),
    "tiles": TriplaneShape(2, 33, 20, 20, 64, 50, 37, 65, 41),  # two images of 8x8 rays, and more than a block of all
    "coarse_only": TriplaneShape(1, 4, 8, 8, 19, 9, 0, 8, 3),
    "tiny": TriplaneShape(1, 1, 1, 1, 50, 4, 1, 1, 1),  # one ray would be no yardstick
}


def inputs(
    op: str,
    shape: TriplaneShape,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    layout: str = "channels_last",
    axes: str = "xy_xz_yz",
    reduce: str | None = "sum",
    random: bool = True,
    white_back: bool = False,
    disparity: bool = False,
    seed: int = 0,
) -> Inputs:
    """Random arguments for `op`: rays of a camera 2.7 in front of the box, a few of which miss it. A square number of
    rays is an image, its rows one behind the other; so what neighbours share is in the caches, as it is in use.

    `layout` is that of the planes: contiguous, sliced or channels_last (channels next to each other); `random` gives
    jitter and u, without it the depths are the deterministic ones.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator)

    batch, rays = shape.batch, shape.rays
    size = (shape.depth, shape.height, shape.width) if shape.depth else (shape.height, shape.width)
    planes = _lay(normal(batch, 3, shape.channels, *size).to(device, dtype), layout)
    if op == "sample_planes":
        points = (1.4 * (uniform(batch, rays, 3) - 0.5)).to(device)
        return Inputs(op, ((planes, points), {"axes": axes, "reduce": reduce}), dtype)
    origins = torch.tensor([0.3, -0.2, 2.7]) + 0.01 * normal(batch, rays, 3)
    targets = 0.9 * (uniform(batch, rays, 3) - 0.5)
    side = math.isqrt(rays)
    if side**2 == rays > 1:
        at = torch.linspace(-0.55, 0.55, side)
        targets[..., 0], targets[..., 1], targets[..., 2] = at.repeat(side), at.repeat_interleave(side), 0.0
    directions = F.normalize(targets - origins, dim=-1)
    decoder = PlaneDecoder(
        normal(shape.hidden, shape.channels) / shape.channels**0.5,
        0.2 * normal(shape.hidden),
        normal(1 + shape.outputs, shape.hidden) / shape.hidden**0.5,
        normal(1 + shape.outputs),
    )
    kwargs: dict[str, Any] = {
        "near": (2.2 + 0.1 * uniform(batch, rays)).to(device),
        "far": (3.2 + 0.1 * uniform(batch, rays)).to(device),
        "coarse": shape.coarse,
        "fine": shape.fine,
        "axes": axes,
        "reduce": reduce or "sum",
        "white_back": white_back,
        "disparity": disparity,
    }
    if random:
        kwargs["jitter"] = uniform(batch, rays, shape.coarse).to(device)
        kwargs["u"] = uniform(batch, rays, shape.fine).to(device) if shape.fine else None
    decoder = PlaneDecoder(*(each.to(device) for each in decoder))
    return Inputs(op, ((planes, origins.to(device), directions.to(device), decoder), kwargs), dtype)


def _lay(planes: Tensor, layout: str) -> Tensor:
    """`arrange`, but channels_last means that the third dimension is the innermost."""
    if layout == "channels_last":
        return planes.movedim(2, -1).contiguous().movedim(-1, 2)
    return arrange(planes, layout)


def selftest(op: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Shape and options of each case."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    layouts = ("contiguous", "sliced", "channels_last")
    for dtype, layout in itertools.product(dtypes, layouts):
        for axes, reduce in (("xy_xz_yz", "sum"), ("eg3d", "mean"), ("xy_xz_zy", None)):
            yield "odd", {"dtype": dtype, "layout": layout, "axes": axes, "reduce": reduce}
        yield "trigrid", {"dtype": dtype, "layout": layout}
    yield "tiny", {}
    yield "tiles", {}
    if op == "render_planes":
        for options in ({"random": False}, {"white_back": True}, {"disparity": True}):
            yield "odd", options
        yield "coarse_only", {}
