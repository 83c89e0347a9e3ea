"""The `warp` hot path at the shapes of LivePortrait and face-vid2vid: each backend against the eager and the compiled
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastface.ops import _verify
from fastface.ops._backends import BACKENDS, registries

from .harness import Case

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
    sizes = replace(_verify.SHAPES[shape], batch=batch)
    return Case(
        op=op,
        shape=shape,
        variant="translation" if linear is None else "linear",
        dtype=str(dtype)[6:],
        layout=layout,
        batch=batch,
        device=device,
        make=partial(_make, op, sizes, device, dtype, linear, layout, compiled),
        bytes=bytes_moved(op, sizes, dtype),
        threads=threads or torch.get_num_threads(),
    )


def bytes_moved(op: str, shape: _verify.WarpShape, dtype: torch.dtype) -> int:
    """Every input read once, every output written once; the keypoints are too few to count."""
    d, h, w = shape.size
    voxels, motions = shape.batch * d * h * w, shape.keypoints + 1
    if op == "pack_motions":
        return voxels * (shape.packed + motions * (shape.packed + 1)) * dtype.itemsize
    if op == "motion_field":
        return voxels * (motions * dtype.itemsize + 3 * 4)
    return voxels * (2 * shape.channels + motions) * dtype.itemsize


def _make(
    op: str,
    shape: _verify.WarpShape,
    device: str,
    dtype: torch.dtype,
    linear: str | None,
    layout: str,
    compiled: bool,
) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], _verify.Verdict]]]:
    inputs = _verify.inputs(op, shape, dtype=dtype, device=device, layout=layout, linear=linear)
    args, kwargs = inputs.arguments
    truth, yardstick = inputs.truth(), inputs.reference()
    contenders: dict[str, Callable[[], object]] = {"eager": inputs.reference}
    checks: dict[str, Callable[[], _verify.Verdict]] = {}
    if compiled:
        torch.compiler.reset()
        reference = torch.compile(inputs.reference, dynamic=False)
        contenders["compile"] = reference
        checks["compile"] = lambda: _verify.compare(reference(), truth, yardstick)
    call = registries[op].build(op, *args, **kwargs)
    for backend in BACKENDS[1:]:
        # The interpreter of Triton checks numbers; its speed says nothing.
        if (backend == "triton" and device == "cpu") or registries[op].implementations[backend].refuse(call):
            continue
        contenders[backend] = partial(inputs.run, backend)
        checks[backend] = partial(_check, inputs, backend, truth, yardstick)
    return contenders, checks


def _check(inputs: _verify.Inputs, backend: str, truth: Tensor, yardstick: Tensor) -> _verify.Verdict:
    return _verify.compare(inputs.run(backend), truth, yardstick)
