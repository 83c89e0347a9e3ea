"""The `raster` hot path: a head of 50,000 triangles, each backend against the eager reference.

There is no compiled reference: the sizes of its tensors depend on the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from fastface.ops._verify.raster import SHAPES, RasterShape

from .harness import Case, op_contenders

SLUG = "raster"
OPS = ("rasterize",)


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Cases for a device, `cpu` or `cuda`: attributes per triangle and per vertex, then a larger image, culling, batch
    and (on a CPU) threads.
    """
    make = partial(_case, device=device)
    for per in ("triangle", "vertex"):
        yield make("head", per=per)
    if quick:
        return
    yield make("head_512", per="vertex")
    yield make("head", per="vertex", cull="back")
    yield make("head", per="vertex", dtype=torch.float16)
    yield make("head", per="vertex", batch=4)
    if device == "cpu":
        yield make("head", per="vertex", threads=1)


def _case(
    shape: str,
    *,
    device: str,
    per: str,
    cull: str | None = None,
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
    threads: int | None = None,
) -> Case:
    sizes = replace(SHAPES[shape], batch=batch)
    return Case(
        op="rasterize",
        shape=shape,
        variant=f"per {per}" + (f", cull {cull}" if cull else ""),
        dtype=str(dtype)[6:],
        layout="contiguous",
        batch=batch,
        device=device,
        make=partial(op_contenders, "rasterize", sizes, False, device=device, dtype=dtype, per=per, cull=cull),
        bytes=bytes_moved(sizes, dtype, per),
        threads=threads or torch.get_num_threads(),
    )


def bytes_moved(shape: RasterShape, dtype: torch.dtype, per: str) -> int:
    """Every input read once, every output written once."""
    triangles, vertices = 2 * shape.rows * shape.columns, (shape.rows + 1) * shape.columns
    pixels = shape.size[0] * shape.size[1]
    table = (triangles if per == "triangle" else vertices) * shape.attributes * dtype.itemsize
    image = shape.batch * (vertices * 3 * 4 + pixels * (shape.attributes * dtype.itemsize + 8))
    return triangles * 3 * 4 + table + image
