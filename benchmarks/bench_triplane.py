"""The `triplane` hot path at EG3D's shapes: each backend against the eager and the compiled reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fastface.ops._verify.triplane import SHAPES, TriplaneShape

from .harness import Case, op_contenders

SLUG = "triplane"
OPS = ("render_planes", "sample_planes")


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Cases for a device, `cpu` or `cuda`: a frame of 64x64 rays first, then more rays, more and fewer samples (time
    should follow their number), the other dtypes, planes as a generator leaves them, points alone, batch and (on a CPU)
    threads or (on a GPU) planes with a depth, and more channels and colours than its kernels take at once.
    """
    main, other = (torch.float32, torch.float16) if device == "cpu" else (torch.float16, torch.float32)
    make = partial(_case, device=device, compiled=compiled, dtype=main)
    yield make("render_planes", "eg3d_64")
    if quick:
        return
    yield make("render_planes", "eg3d_128")
    for samples in (24, 96):
        yield make("render_planes", "eg3d_64", samples=samples)
    yield make("render_planes", "eg3d_64", dtype=other)
    yield make("render_planes", "eg3d_64", dtype=torch.bfloat16)
    yield make("render_planes", "eg3d_64", layout="contiguous")
    yield make("sample_planes", "points")
    yield make("render_planes", "eg3d_64", batch=2 if device == "cpu" else 8)
    if device == "cpu":
        yield make("render_planes", "eg3d_64", threads=1)
    else:
        yield make("render_planes", "trigrid_64")
        yield make("render_planes", "wide_64")


def _case(
    op: str,
    shape: str,
    *,
    device: str,
    compiled: bool,
    dtype: torch.dtype,
    samples: int = 48,
    layout: str = "channels_last",
    batch: int = 1,
    threads: int | None = None,
) -> Case:
    sizes = replace(SHAPES[shape], batch=batch, coarse=samples, fine=samples)
    # Depths as an application takes them: the same in every frame.
    options: dict[str, Any] = {"random": op == "sample_planes", "dtype": dtype, "device": device, "layout": layout}
    return Case(
        op=op,
        shape=shape,
        variant=f"{samples}+{samples}" if op == "render_planes" else "sum",
        dtype=str(dtype)[6:],
        layout=layout,
        batch=batch,
        device=device,
        make=partial(op_contenders, op, sizes, compiled, **options),
        bytes=bytes_moved(op, sizes, dtype),
        flops=flops(op, sizes),
        threads=threads or torch.get_num_threads(),
    )


def bytes_moved(op: str, shape: TriplaneShape, dtype: torch.dtype) -> int:
    """Planes, points or rays, and decoder read once, outputs written once."""
    planes = shape.batch * 3 * shape.channels * max(1, shape.depth) * shape.height * shape.width * dtype.itemsize
    points = shape.batch * shape.rays
    if op == "sample_planes":
        return planes + points * (3 * 4 + shape.channels * dtype.itemsize)
    decoder = 4 * (shape.hidden * (shape.channels + 1) + (shape.outputs + 1) * (shape.hidden + 1))
    return planes + decoder + points * (8 * 4 + shape.outputs * dtype.itemsize + 2 * 4)


def flops(op: str, shape: TriplaneShape) -> int:
    """The corners of three planes, and the decoder's two layers; functions and compositing are not counted."""
    gather = 2 * (8 if shape.depth else 4) * 3 * shape.channels
    points = shape.batch * shape.rays
    if op == "sample_planes":
        return points * gather
    decoder = 2 * shape.hidden * (shape.channels + 1 + shape.outputs)
    return points * (shape.coarse + shape.fine) * (gather + decoder)
