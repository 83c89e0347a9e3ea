"""Shapes, inputs, the comparison and the selftest cases of the `raster` op."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastface.ops._verify import Inputs, Verdict, compare
from fastface.ops.raster import RasterOutput

__all__ = ["SHAPES", "RasterShape", "inputs", "judge", "selftest"]

_BAND = 1e-4  # of the pixels: where two triangles are equally near but for rounding


@dataclass(frozen=True)
class RasterShape:
    """Sizes of a `rasterize` call: a dented ball of ``2 rows columns`` triangles, or as many strewn about."""

    batch: int
    rows: int
    columns: int
    size: tuple[int, int]
    attributes: int = 3
    strewn: bool = False


SHAPES = {
    "head": RasterShape(1, 125, 200, (256, 256)),
    "head_512": RasterShape(1, 125, 200, (512, 512)),
    "strewn": RasterShape(2, 7, 11, (37, 53), 2, strewn=True),
    "odd": RasterShape(2, 9, 14, (41, 35), 5),
    "tiny": RasterShape(1, 2, 3, (7, 5), 1),
}


def inputs(
    op: str,
    shape: RasterShape,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    layout: str = "contiguous",
    per: str = "triangle",
    cull: str | None = None,
    seed: int = 0,
) -> Inputs:
    """Random arguments: a ball that reaches over the border of the image, or triangles of all sizes and places, some
    degenerate, one with a corner that is NaN. `layout` contiguous or sliced is that of the vertices.
    """
    generator = torch.Generator().manual_seed(seed)
    build = _strewn if shape.strewn else _ball
    vertices, triangles = build(shape, generator)
    count = len(triangles) if per == "triangle" else vertices.shape[1]
    attributes = torch.rand(count, shape.attributes, generator=generator).to(device, dtype)
    vertices = vertices.to(device)
    if layout == "sliced":
        vertices = torch.cat([vertices, vertices], 2)[:, :, :3]
    return Inputs(
        op, ((vertices, triangles.to(device), attributes, shape.size), {"cull": cull, "per": per}), dtype, judge
    )


def _ball(shape: RasterShape, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``[B, V, 3]`` and ``[T, 3]``, corners counter-clockwise as seen from outside."""
    rows, columns = shape.rows, shape.columns
    latitude = torch.linspace(-1, 1, rows + 1)[:, None] * (math.pi / 2)
    longitude = torch.arange(columns) * (2 * math.pi / columns)
    unit = torch.stack(
        torch.broadcast_tensors(
            torch.cos(latitude) * torch.sin(longitude), torch.sin(latitude), -torch.cos(latitude) * torch.cos(longitude)
        ),
        -1,
    ).reshape(-1, 3)
    dents = 1 + 0.05 * torch.randn(shape.batch, len(unit), 1, generator=generator)
    height, width = shape.size
    radius = torch.tensor([0.55 * width, 0.45 * height, 0.5 * width])
    centre = torch.tensor([0.5 * width, 0.5 * height, 0.0]) + torch.randn(shape.batch, 1, 3, generator=generator)
    index = torch.arange((rows + 1) * columns).view(rows + 1, columns)
    a, b = index[:-1], index[1:]
    c, d = a.roll(-1, 1), b.roll(-1, 1)
    triangles = torch.cat([torch.stack([a, b, c], -1).view(-1, 3), torch.stack([c, b, d], -1).view(-1, 3)])
    return unit * dents * radius + centre, triangles.int()


def _strewn(shape: RasterShape, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    count = 2 * shape.rows * shape.columns
    height, width = shape.size
    extent = torch.tensor([float(width), float(height), 10.0])
    centre = (1.4 * torch.rand(shape.batch, count, 1, 3, generator=generator) - 0.2) * extent
    reach = 2.0 ** (6 * torch.rand(shape.batch, count, 1, 1, generator=generator) - 1)
    vertices = centre + reach * torch.randn(shape.batch, count, 3, 3, generator=generator)
    vertices[:, 0, 1] = vertices[:, 0, 0]  # without area
    vertices[:, 1, 2, 1] = float("nan")
    vertices[:, 2, 0, 0] = 1e9  # too far off
    return vertices.reshape(shape.batch, -1, 3), torch.arange(3 * count, dtype=torch.int32).view(-1, 3)


def judge(
    result: RasterOutput, truth: RasterOutput, yardstick: RasterOutput, lost: float | Sequence[float] = 0.0
) -> Verdict:
    """As `compare`; besides, what is covered must be equal, and which triangle covers it but for a counted few."""
    for name in ("triangle", "skipped"):
        if not torch.equal(_as_mask(getattr(result, name)), _as_mask(getattr(truth, name))):
            return Verdict(math.inf, 0.0, False, f"other {'pixels are covered' if name == 'triangle' else name}")
    same = (result.triangle == truth.triangle) & (yardstick.triangle == truth.triangle)
    wrong, allowed = int((result.triangle != truth.triangle).sum()), math.ceil(_BAND * truth.triangle.numel())
    if wrong > allowed:
        return Verdict(float(wrong), float(allowed), False, f"{wrong} pixels show another triangle, {allowed} may")
    few = same[:, None]

    def agreed(output: RasterOutput) -> tuple[Tensor, Tensor]:
        covered = same & (truth.triangle >= 0)
        return torch.where(few, output.image, 0), torch.where(covered, output.depth, 0)

    if not bool(result.depth[truth.triangle < 0].isposinf().all()):
        return Verdict(math.inf, 0.0, False, "the depth outside is not inf")
    known = lost if isinstance(lost, float) else (lost[0], lost[2])  # of image and depth
    return compare(agreed(result), agreed(truth), agreed(yardstick), known)


def _as_mask(values: Tensor) -> Tensor:
    """Which pixels are covered; counts as they are."""
    return values >= 0 if values.dim() == 3 else values


def selftest(op: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Shape and options of each case."""
    for dtype, per in itertools.product((torch.float32, torch.float16, torch.bfloat16), ("triangle", "vertex")):
        yield "odd", {"dtype": dtype, "per": per}
        yield "strewn", {"dtype": dtype, "per": per, "layout": "sliced"}
    for cull in ("back", "front"):
        yield "odd", {"cull": cull}
    yield "tiny", {}
    yield "head", {}
