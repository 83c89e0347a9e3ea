"""Triangles to pixels: which triangle is visible where, how deep it lies, and its attributes.

Orthographic: (x, y) of a vertex are pixels, the centre of the first pixel at (0, 0), y down; z grows away from the
viewer and the nearest triangle wins, of equally near ones that with the lowest index. Corners are rounded to 1/256 of
a pixel and coverage is decided in whole numbers by the top-left rule, so shared edges are watertight and the result
does not depend on the order of execution. Formulas, costs and tolerances: kernels/raster/README.md.

float32, float16 and bfloat16 (arithmetic in float32; float64 runs on the reference). When an input requires grad, what
is visible is found as ever and the differentiable reference interpolates; the gradient knows nothing of silhouettes.
Raises ValueError or TypeError for bad arguments, naming value and expectation, and BackendUnavailable where a backend
chosen by ``backend=`` or FASTFACE_BACKEND cannot run the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastface.kernels.raster import raster_reference as reference
from fastface.ops import _checks, _memory, _native
from fastface.ops._backends import Implementation, Registry, define_op, register, requested, route

__all__ = ["CULL", "RasterCall", "RasterOutput", "rasterize"]

CULL = (None, "back", "front")  # the numbers of `raster::Cull` in kernels/raster/raster.h


class RasterOutput(NamedTuple):
    """What `rasterize` draws."""

    image: Tensor  # [B, A, H, W] in the dtype of the attributes, 0 outside
    triangle: Tensor  # [B, H, W] int32, -1 outside
    depth: Tensor  # [B, H, W] float32 (float64 for float64 vertices), inf outside
    skipped: Tensor  # [B] int32: triangles with a corner that is not finite, or too far off, or does not exist


@dataclass(frozen=True)
class RasterCall:
    """One checked call, its outputs allocated: what a backend gets, everything contiguous, vertices in float32."""

    vertices: Tensor  # [B, V, 3]
    triangles: Tensor  # [T, 3] int32
    attributes: Tensor  # [T, A], or [V, A] with per_vertex
    per_vertex: bool
    cull: str | None
    out: RasterOutput


def rasterize(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    size: tuple[int, int],
    *,
    cull: str | None = None,
    per: str | None = None,
    backend: str | None = None,
) -> RasterOutput:
    """Draw triangles orthographically, nearest first.

    Args:
        vertices: ``[B, V, 3]``, x and y in pixels, of any floating dtype.
        triangles: ``[T, 3]`` int32 or int64 indices of vertices, the same for the whole batch.
        attributes: ``[T, A]``, flat over a triangle, or ``[V, A]``, interpolated linearly.
        size: (H, W) of the image, at most 16384 each.
        cull: None draws both faces; "back" drops those whose corners run clockwise on the screen, "front" the others.
        per: "triangle" or "vertex" for the attributes; only needed where T = V.

    Returns:
        image ``[B, A, H, W]`` in the dtype of the attributes (0 outside), triangle ``[B, H, W]`` int32 (-1 outside),
        depth ``[B, H, W]`` (inf outside) and skipped ``[B]``: how many triangles have a corner that is not finite, lies
        2^20 pixels off or more, or does not exist; they are not drawn.
    """
    per_vertex = _check(vertices, triangles, attributes, size, cull, per)
    wish = route(backend, vertices, attributes)
    if not (torch.is_grad_enabled() and (vertices.requires_grad or attributes.requires_grad)):
        return _draw(vertices, triangles, attributes, per_vertex, size, cull, wish)
    with torch.no_grad():
        drawn = _draw(vertices, triangles, attributes, per_vertex, size, cull, requested(backend))
    image, depth = reference.interpolate(vertices, triangles, attributes, drawn.triangle, per_vertex)
    return RasterOutput(image, drawn.triangle, depth, drawn.skipped)


def _draw(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    per_vertex: bool,
    size: tuple[int, int],
    cull: str | None,
    backend: str,
) -> RasterOutput:
    height, width = int(size[0]), int(size[1])
    return RasterOutput(*_rasterize(vertices, triangles, attributes, per_vertex, height, width, cull or "", backend))


# Checks: all in Python, all before a launch.


def _check(
    vertices: Tensor, triangles: Tensor, attributes: Tensor, size: Any, cull: str | None, per: str | None
) -> bool:
    """Whether the attributes are per vertex."""
    for name, tensor in (("vertices", vertices), ("triangles", triangles), ("attributes", attributes)):
        _checks.dense(name, tensor)
        _checks.same_device(name, tensor, "vertices", vertices)
    if vertices.dim() != 3 or vertices.shape[2] != 3 or 0 in vertices.shape:
        raise ValueError(f"vertices must be [B, V, 3] with no size 0, got {list(vertices.shape)}")
    _checks.op_dtype("vertices", vertices)
    if triangles.dim() != 2 or triangles.shape[1] != 3 or triangles.shape[0] < 1:
        raise ValueError(f"triangles must be [T, 3] with T >= 1, got {list(triangles.shape)}")
    if triangles.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"triangles must be int32 or int64, got {triangles.dtype}")
    counts = {"triangle": triangles.shape[0], "vertex": vertices.shape[1]}
    if attributes.dim() != 2 or attributes.shape[0] not in counts.values() or attributes.shape[1] < 1:
        raise ValueError(
            f"attributes must be [T, A] = [{counts['triangle']}, A] or [V, A] = [{counts['vertex']}, A], "
            f"got {list(attributes.shape)}"
        )
    _checks.op_dtype("attributes", attributes)
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) or not 1 <= n <= 16384 for n in size)
    ):
        raise ValueError(f"size must be (H, W), each from 1 to 16384, got {size!r}")
    if cull not in CULL:
        raise ValueError(f"cull must be None, 'back' or 'front', got {cull!r}")
    if per not in (None, *counts):
        raise ValueError(f"per must be None, 'triangle' or 'vertex', got {per!r}")
    if per is None:
        if counts["triangle"] == counts["vertex"]:
            raise ValueError(
                f"there are {counts['vertex']} triangles and as many vertices: say per='triangle' or per='vertex'"
            )
        return attributes.shape[0] == counts["vertex"]
    if attributes.shape[0] != counts[per]:
        raise ValueError(f"attributes must be [{counts[per]}, A], one per {per}, got {list(attributes.shape)}")
    return per == "vertex"


# The registered op: one node for torch.compile, torch.export and CUDA graphs.


def _new_output(vertices: Tensor, attributes: Tensor, height: int, width: int) -> RasterOutput:
    batch = vertices.shape[0]
    wide = torch.float64 if vertices.dtype == torch.float64 else torch.float32
    return RasterOutput(
        _memory.empty((batch, attributes.shape[1], height, width), attributes),
        _memory.empty((batch, height, width), vertices, dtype=torch.int32),
        _memory.empty((batch, height, width), vertices, dtype=wide),
        _memory.empty((batch,), vertices, dtype=torch.int32),
    )


def _make_call(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    per_vertex: bool,
    height: int,
    width: int,
    cull: str | None,
) -> RasterCall:
    wide = vertices if vertices.dtype == torch.float64 else vertices.float()
    if triangles.dtype == torch.int64:
        # An index out of range stays so: the cast alone would make vertex 2 of 2**32 + 2.
        triangles = triangles.clamp(-1, vertices.shape[1]).int()
    return RasterCall(
        wide.contiguous(),
        triangles.contiguous(),
        attributes.contiguous(),
        per_vertex,
        cull,
        _new_output(vertices, attributes, height, width),
    )


def _rasterize_impl(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    per_vertex: bool,
    height: int,
    width: int,
    cull: str,
    backend: str,
) -> RasterOutput:
    call = _make_call(vertices, triangles, attributes, per_vertex, height, width, cull or None)
    registry.run(call, backend)
    return call.out


def _rasterize_fake(
    vertices: Tensor, triangles: Tensor, attributes: Tensor, per_vertex: bool, height: int, width: int, *_: Any
) -> RasterOutput:
    return _new_output(vertices, attributes, height, width)


_rasterize = define_op(
    "rasterize",
    "(Tensor vertices, Tensor triangles, Tensor attributes, bool per_vertex, SymInt height, SymInt width, str cull, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _rasterize_impl,
    _rasterize_fake,
)


# The backends.


def _run_reference(call: RasterCall) -> None:
    size = call.out.depth.shape[1], call.out.depth.shape[2]
    drawn = reference.rasterize(call.vertices, call.triangles, call.attributes, size, call.cull, call.per_vertex)
    for target, value in zip(call.out, drawn, strict=True):
        target.copy_(value)


def _refuse_cpu(call: RasterCall) -> str | None:
    return _checks.refuse_kernel("cpu", call.vertices, call.attributes) or _native.reason_missing("cpu")


def _run_cpu(call: RasterCall) -> None:
    _native.load("cpu").raster(_params(call), torch.get_num_threads())


def _params(call: RasterCall) -> tuple[Any, ...]:
    """`raster::PyParams` of csrc/bind_common.h, which turns it into `raster::Params` of kernels/raster/raster.h."""
    batch, vertices, _ = call.vertices.shape
    triangles, attributes = len(call.triangles), call.attributes.shape[1]
    return (
        (batch, vertices, triangles, attributes, *call.out.depth.shape[1:]),
        call.vertices.data_ptr(),
        call.triangles.data_ptr(),
        call.attributes.data_ptr(),
        _native.DTYPES[call.attributes.dtype],
        call.per_vertex,
        CULL.index(call.cull),
        [tensor.data_ptr() for tensor in call.out],
    )


def _refuse_triton(call: RasterCall) -> str | None:
    try:
        from fastface.kernels import triton_device
    except ImportError as error:
        return f"triton does not import: {error}"
    needed = "cpu" if triton_device.INTERPRETED else "cuda"
    reason = _checks.refuse_kernel(needed, call.vertices, call.attributes)
    return reason or triton_device.refuse_device(call.vertices.device)


def _run_triton(call: RasterCall) -> None:
    from fastface.kernels.raster import raster_triton

    raster_triton.run(call)


def _refuse_cuda(call: RasterCall) -> str | None:
    return _checks.refuse_kernel("cuda", call.vertices, call.attributes) or "raster runs on GPUs through triton alone"


def _describe(call: RasterCall) -> tuple[str, torch.device, str]:
    """Shape classes of the measured table: one image, or a batch."""
    return "rasterize", call.vertices.device, "single" if call.vertices.shape[0] == 1 else "batch"


def _prepare(op: str, given: Mapping[str, Any]) -> RasterCall:
    arguments = {name: value for name, value in given.items() if name != "backend"}
    per_vertex = _check(**arguments)
    height, width = given["size"]
    return _make_call(
        given["vertices"], given["triangles"], given["attributes"], per_vertex, height, width, given["cull"]
    )


def _reference(
    vertices: Tensor,
    triangles: Tensor,
    attributes: Tensor,
    size: tuple[int, int],
    *,
    cull: str | None = None,
    per: str | None = None,
) -> RasterOutput:
    per_vertex = _check(vertices, triangles, attributes, size, cull, per)
    return RasterOutput(*reference.rasterize(vertices, triangles, attributes, size, cull, per_vertex))


registry: Registry[RasterCall] = register(
    Registry(
        slug="raster",
        ops={"rasterize": rasterize},
        references={"rasterize": _reference},
        implementations={
            "reference": Implementation(refuse=lambda call: None, run=_run_reference),
            "cpu": Implementation(refuse=_refuse_cpu, run=_run_cpu),
            "triton": Implementation(refuse=_refuse_triton, run=_run_triton),
            "cuda": Implementation(refuse=_refuse_cuda, run=lambda call: None),
        },
        describe=_describe,
        prepare=_prepare,
    )
)
