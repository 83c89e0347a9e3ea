"""The `warp` hot path at the shapes of LivePortrait and face-vid2vid: each backend against the eager and the compiled
reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from fastface.ops._verify.warp import SHAPES, WarpShape

from .harness import Case, op_contenders

SLUG = "warp"
OPS = ("pack_motions", "compose_flow", "compose_volumes", "motion_field")


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Cases for a device, `cpu` or `cuda`: published shapes first, then 16-bit types, batch and (on a CPU) threads."""
    main = [torch.float32] if device == "cpu" else [torch.float16, torch.float32]
    make = partial(_case, device=device, compiled=compiled)
    for dtype in main:
        for op in OPS:
            for linear in (None, "image"):
                yield make(op, "live_portrait", dtype=dtype, linear=linear)
    if quick:
        return
    for op in OPS[:2]:
        yield make(op, "face_vid2vid", dtype=main[0])
    for op in OPS[:2]:
        yield make(op, "live_portrait", dtype=main[0], layout="channels_last")
    for op in OPS[:3]:
        yield make(op, "live_portrait", dtype=torch.bfloat16)
    for op in OPS:
        yield make(op, "live_portrait", dtype=main[0], batch=4 if device == "cpu" else 16)
    if device == "cpu":
        for op in OPS[:3]:
            yield make(op, "live_portrait", dtype=main[0], threads=1)


def _case(
    op: str,
    shape: str,
    *,
    device: str,
    compiled: bool,
    dtype: torch.dtype,
    linear: str | None = None,
    layout: str = "contiguous",
    batch: int = 1,
    threads: int | None = None,
) -> Case:
    sizes = replace(SHAPES[shape], batch=batch)
    return Case(
        op=op,
        shape=shape,
        variant="translation" if linear is None else "linear",
        dtype=str(dtype)[6:],
        layout=layout,
        batch=batch,
        device=device,
        make=partial(op_contenders, op, sizes, compiled, device=device, dtype=dtype, layout=layout, linear=linear),
        bytes=bytes_moved(op, sizes, dtype),
        threads=threads or torch.get_num_threads(),
    )


def bytes_moved(op: str, shape: WarpShape, dtype: torch.dtype) -> int:
    """Every input read once, every output written once; the keypoints are too few to count."""
    d, h, w = shape.size
    voxels, motions = shape.batch * d * h * w, shape.keypoints + 1
    if op == "pack_motions":
        return voxels * (shape.packed + motions * (shape.packed + 1)) * dtype.itemsize
    if op == "motion_field":
        return voxels * (motions * dtype.itemsize + 3 * 4)
    return voxels * (2 * shape.channels + motions) * dtype.itemsize
