"""Tri-planes: three feature maps that stand for a volume, sampled at points and rendered along rays.

A point p is read from each plane at the coordinates that `axes` names, bilinear, zeros outside; a small network turns
the sum (or mean) into a density and colours; along a ray they are composited, after a second look where the first one
saw something. Source: EG3D (arXiv 2112.07945), sections 4.1 to 4.3. Formulas, costs and tolerances:
kernels/triplane/README.md.

Every op takes float32, float16 and bfloat16 planes (coordinates and arithmetic in float32; float64 runs on the
reference), any strides and any sizes; NaN in the planes gives NaN where it is seen. Kernels are for inference: when an
input requires grad the differentiable reference runs (depths have no gradient). Every op raises ValueError or TypeError
for bad arguments, naming value and expectation, and BackendUnavailable where a backend chosen by ``backend=`` or
FASTFACE_BACKEND cannot run the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastface.kernels.triplane import triplane_reference as reference
from fastface.kernels.triplane.triplane_reference import AXES, PlaneDecoder, RenderOutput
from fastface.ops import _checks, _memory, _native
from fastface.ops._backends import Implementation, Registry, define_op, register, route

__all__ = ["AXES", "REDUCTIONS", "PlaneDecoder", "RenderOutput", "TriplaneCall", "render_planes", "sample_planes"]

REDUCTIONS = ("sum", "mean", None)  # the numbers of `triplane::Reduce` in kernels/triplane/triplane.h
MOST = 4096  # samples of a ray in either pass


@dataclass(frozen=True)
class TriplaneCall:
    """One checked call, its outputs allocated: what a backend gets.

    Points, rays, depths and the decoder are float32 and contiguous (float64 beside float64 planes); planes have any
    strides, ``[B, 3, C, H, W]`` or of a trigrid ``[B, 3, C, D, H, W]``.
    """

    op: str
    planes: Tensor
    points: Tensor | None = None  # [B, N, 3], of sample_planes
    origins: Tensor | None = None  # [B, R, 3]
    directions: Tensor | None = None  # [B, R, 3]
    decoder: PlaneDecoder | None = None
    near: Tensor | None = None  # [B, R]
    far: Tensor | None = None  # [B, R]
    jitter: Tensor | None = None  # [B, R, coarse]
    u: Tensor | None = None  # [B, R, fine]
    features: Tensor | None = None  # [B, R, F], or what sample_planes returns; in the dtype of the planes
    depth: Tensor | None = None  # [B, R]
    opacity: Tensor | None = None  # [B, R]
    coarse: int = 0
    fine: int = 0
    box: float = 1.0
    axes: str = "xy_xz_yz"
    reduce: str | None = "sum"
    white_back: bool = False
    disparity: bool = False


def sample_planes(
    planes: Tensor,
    points: Tensor,
    *,
    box: float = 1.0,
    axes: str = "xy_xz_yz",
    reduce: Literal["sum", "mean"] | None = "sum",
    backend: str | None = None,
) -> Tensor:
    """What the planes hold at points.

    Args:
        planes: ``[B, 3, C, H, W]``, or ``[B, 3, C, D, H, W]``, a trigrid. Each spans [-box/2, box/2]; pixels have their
            centres half a pixel inside, and what lies outside is zero.
        points: ``[B, N, 3]``, x, y, z.
        box: side of the cube that the planes span.
        axes: which coordinates run along width, height (and depth) of the planes: "xy_xz_yz", "xy_xz_zy", or "eg3d", as
            published, whose third plane is read at z, x.
        reduce: "sum" or "mean" over the planes, or None for each of them.

    Returns:
        ``[B, N, C]``, or ``[B, 3, N, C]`` where `reduce` is None, in the dtype of the planes.
    """
    _check_sample(planes, points, box, axes, reduce)
    backend = route(backend, planes, points)
    if backend == "reference":
        return reference.sample_planes(planes, points, box, axes, reduce)
    return _sample_planes(planes, points, float(box), axes, reduce or "", backend)


def render_planes(
    planes: Tensor,
    origins: Tensor,
    directions: Tensor,
    decoder: PlaneDecoder,
    *,
    near: float | Tensor | Literal["auto"],
    far: float | Tensor | Literal["auto"],
    coarse: int = 48,
    fine: int = 48,
    box: float = 1.0,
    axes: str = "xy_xz_yz",
    reduce: Literal["sum", "mean"] = "sum",
    white_back: bool = False,
    jitter: Tensor | None = None,
    u: Tensor | None = None,
    disparity: bool = False,
    backend: str | None = None,
) -> RenderOutput:
    """What rays see: a coarse pass for the density, a fine one where it is, both composited.

        z_k = near + (k + jitter_k) (far - near) / (coarse - 1)
        σ, c = decoder(planes at origin + z direction);   c = 1.002 sigmoid(.) - 0.001
        w_i = T_i (1 - exp(-softplus((σ_i + σ_{i+1}) / 2 - 1) (z_{i+1} - z_i))),   T_i = Π_{j<i} (1 - α_j)
        features = 2 Σ w_i (c_i + c_{i+1}) / 2 - 1;   depth = Σ w_i (z_i + z_{i+1}) / 2 / Σ w_i;   opacity = Σ w_i

    Args:
        planes: as in `sample_planes`.
        origins, directions: ``[B, R, 3]``; depths are in lengths of the direction.
        decoder: effective weights, gains folded; output 0 is the density.
        near, far: numbers, ``[B, R]`` tensors, or both "auto": where a ray enters and leaves the box. A ray that misses
            it starts at the nearest entry and ends at the furthest entry of all rays of the call, as published; where
            all miss, it runs from 0 to the side of the box.
        coarse: depths of the first pass, from 2, with a fine pass from 4.
        fine: depths of the second pass; 0 is none.
        white_back: what is not opaque is white (1) instead of -1.
        jitter: ``[B, R, coarse]`` in [0, 1); None is 0.5, which makes images that do not flicker.
        u: ``[B, R, fine]`` in [0, 1), in any order; None is the middle of `fine` equal parts.
        disparity: strata of equal 1/z.

    Returns:
        Features in the dtype of the planes, depth and opacity in float32. Where a ray meets no density at all, its
        depth is that of its last sample.
    """
    _check_render(planes, origins, directions, decoder, coarse, fine, box, axes, reduce, white_back, jitter, u)
    near, far = _limits(near, far, origins, directions, box, disparity, _wide(planes))
    backend = route(backend, planes, origins, directions, *decoder, near, far, jitter, u)
    if backend == "reference":
        return reference.render_planes(
            planes, origins, directions, decoder, near, far, coarse, fine, box, axes, reduce, white_back, jitter, u,
            disparity,
        )  # fmt: skip
    return RenderOutput(
        *_render_planes(
            planes,
            origins,
            directions,
            *decoder,
            near,
            far,
            jitter,
            u,
            coarse,
            fine,
            float(box),
            axes,
            reduce,
            white_back,
            disparity,
            backend,
        )  # fmt: skip
    )


# Checks: all in Python, all before a launch.


def _check_sample(planes: Tensor, points: Tensor, box: float, axes: str, reduce: str | None) -> None:
    _check_planes(planes, box, axes)
    _check_points("points", points, planes)
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be 'sum', 'mean' or None, got {reduce!r}")


def _check_render(
    planes: Tensor,
    origins: Tensor,
    directions: Tensor,
    decoder: PlaneDecoder,
    coarse: int,
    fine: int,
    box: float,
    axes: str,
    reduce: str,
    white_back: bool,
    jitter: Tensor | None,
    u: Tensor | None,
) -> None:
    _check_planes(planes, box, axes)
    _check_points("origins", origins, planes)
    _check_points("directions", directions, planes)
    if origins.shape != directions.shape:
        raise ValueError(f"directions must be {list(origins.shape)} like origins, got {list(directions.shape)}")
    _check_decoder(decoder, planes)
    check_counts(coarse, fine)
    if reduce not in REDUCTIONS[:2]:
        raise ValueError(f"reduce must be 'sum' or 'mean', got {reduce!r}")
    if not isinstance(white_back, bool):
        raise TypeError(f"white_back must be a bool, got {type(white_back).__name__}")
    for name, numbers, count in (("jitter", jitter, coarse), ("u", u, fine)):
        _check_ray_numbers(name, numbers, origins, count)


def _check_planes(planes: Tensor, box: float, axes: str) -> None:
    _checks.dense("planes", planes)
    if planes.dim() not in (5, 6) or planes.shape[1] != 3 or 0 in planes.shape:
        raise ValueError(
            f"planes must be [B, 3, C, H, W] or [B, 3, C, D, H, W] with no size 0, got {list(planes.shape)}"
        )
    _checks.op_dtype("planes", planes)
    _checks.positive("box", box)
    if not isinstance(axes, str) or axes not in AXES:
        raise ValueError(f"axes must be one of {', '.join(AXES)}, got {axes!r}")


def _check_points(name: str, points: Tensor, planes: Tensor) -> None:
    _checks.dense(name, points)
    if points.dim() != 3 or points.shape[0] != planes.shape[0] or points.shape[2] != 3 or not points.shape[1]:
        raise ValueError(f"{name} must be [{planes.shape[0]}, N, 3] with at least one point, got {list(points.shape)}")
    _checks.floating(name, points)
    _checks.same_device(name, points, "planes", planes)


def _check_decoder(decoder: PlaneDecoder, planes: Tensor) -> None:
    if not isinstance(decoder, PlaneDecoder):
        raise TypeError(f"decoder must be a PlaneDecoder, got {type(decoder).__name__}")
    for name, value in decoder._asdict().items():
        _checks.dense(f"decoder.{name}", value)
        _checks.floating(f"decoder.{name}", value)
        _checks.same_device(f"decoder.{name}", value, "planes", planes)
    hidden = decoder.b1.shape[0] if decoder.b1.dim() == 1 else 0
    outputs = decoder.b2.shape[0] if decoder.b2.dim() == 1 else 0
    wanted = {"w1": (hidden, planes.shape[2]), "w2": (outputs, hidden)}
    if hidden < 1 or outputs < 2 or any(getattr(decoder, name).shape != shape for name, shape in wanted.items()):
        found = ", ".join(f"{name} {list(value.shape)}" for name, value in decoder._asdict().items())
        raise ValueError(
            f"decoder must be w1 [h, {planes.shape[2]}], b1 [h], w2 [1+F, h], b2 [1+F] with h and F at least 1, "
            f"got {found}"
        )


def check_counts(coarse: int, fine: int) -> None:
    """Refuse numbers of samples that `render_planes` does not take."""
    for name, value in (("coarse", coarse), ("fine", fine)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    least = 4 if fine else 2  # the published histogram leaves out the first and the last interval
    if not least <= coarse <= MOST:
        raise ValueError(f"coarse must be from {least} to {MOST}{' with a fine pass' if fine else ''}, got {coarse}")
    if not 0 <= fine <= MOST:
        raise ValueError(f"fine must be from 0 to {MOST}, got {fine}")


def _check_ray_numbers(name: str, value: Tensor | None, origins: Tensor, count: int) -> None:
    if value is None:
        return
    _checks.dense(name, value)
    _checks.floating(name, value)
    if list(value.shape) != [*origins.shape[:2], count]:
        raise ValueError(f"{name} must be {[*origins.shape[:2], count]}, got {list(value.shape)}")
    _checks.same_device(name, value, "origins", origins)


def _limits(
    near: Any, far: Any, origins: Tensor, directions: Tensor, box: float, disparity: bool, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both as ``[B, R]`` tensors, without waiting for the device."""
    if "auto" in (near, far) if isinstance(near, str) or isinstance(far, str) else False:
        if near != far:
            raise ValueError(f"near and far must both be 'auto', or neither, got {near!r} and {far!r}")
        if disparity:
            raise ValueError("disparity needs near and far as numbers: a ray may start at 0 with 'auto'")
        return _box_limits(origins.detach().to(wide), directions.detach().to(wide), box)
    limits = []
    for name, value in (("near", near), ("far", far)):
        if isinstance(value, Tensor):
            if value.shape != origins.shape[:2]:
                raise ValueError(f"{name} must be a number or {list(origins.shape[:2])}, got {list(value.shape)}")
            _checks.floating(name, value)
            _checks.same_device(name, value, "origins", origins)
            limits.append(value)
        else:
            _checks.number(name, value)
            limits.append(torch.full(origins.shape[:2], float(value), dtype=wide, device=origins.device))
    if not isinstance(near, Tensor) and not isinstance(far, Tensor) and not near < far:
        raise ValueError(f"near must be below far, got {near} and {far}")
    if disparity and not isinstance(near, Tensor) and not near > 0:
        raise ValueError(f"near must be positive with disparity, got {near}")
    return limits[0], limits[1]


def _box_limits(origins: Tensor, directions: Tensor, box: float) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the box; entries behind the origin become 0."""
    first, second = (-box / 2 - origins) / directions, (box / 2 - origins) / directions
    enter, leave = torch.minimum(first, second).amax(-1), torch.maximum(first, second).amin(-1)
    enter = enter.clamp(min=0)
    hit = leave > enter
    entries = torch.where(hit, enter, torch.inf).amin(), torch.where(hit, enter, -torch.inf).amax()
    some = hit.any()
    near_missed, far_missed = torch.where(some, entries[0], 0.0), torch.where(some, entries[1], box)
    return torch.where(hit, enter, near_missed), torch.where(hit, leave, far_missed)


# The registered ops: one node each for torch.compile, torch.export and CUDA graphs.


def _wide(planes: Tensor) -> torch.dtype:
    return torch.float64 if planes.dtype == torch.float64 else torch.float32


def _plain(value: Tensor | None, planes: Tensor) -> Tensor | None:
    """As the kernels read it."""
    return None if value is None else value.to(_wide(planes)).contiguous()


def _new_samples(planes: Tensor, points: Tensor, reduce: str | None) -> Tensor:
    batch, _, channels = planes.shape[:3]
    shape = (batch, points.shape[1], channels) if reduce else (batch, 3, points.shape[1], channels)
    return _memory.empty(shape, planes)


def _new_render(planes: Tensor, origins: Tensor, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = tuple(origins.shape[:2])
    dtype = _wide(planes)
    return (
        _memory.empty((*shape, outputs - 1), planes),
        _memory.empty(shape, planes, dtype=dtype),
        _memory.empty(shape, planes, dtype=dtype),
    )


def _sample_call(planes: Tensor, points: Tensor, box: float, axes: str, reduce: str | None) -> TriplaneCall:
    out = _new_samples(planes, points, reduce)
    points = points.to(_wide(planes)).contiguous()
    return TriplaneCall("sample_planes", planes, points=points, features=out, box=box, axes=axes, reduce=reduce)


def _render_call(
    planes: Tensor,
    origins: Tensor,
    directions: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor | None,
    u: Tensor | None,
    coarse: int,
    fine: int,
    box: float,
    axes: str,
    reduce: str,
    white_back: bool,
    disparity: bool,
) -> TriplaneCall:
    features, depth, opacity = _new_render(planes, origins, len(b2))
    return TriplaneCall(
        "render_planes",
        planes,
        origins=_plain(origins, planes),
        directions=_plain(directions, planes),
        decoder=PlaneDecoder(*(each.to(_wide(planes)).contiguous() for each in (w1, b1, w2, b2))),
        near=_plain(near, planes),
        far=_plain(far, planes),
        jitter=_plain(jitter, planes),
        u=_plain(u, planes) if fine else None,
        features=features,
        depth=depth,
        opacity=opacity,
        coarse=coarse,
        fine=fine,
        box=box,
        axes=axes,
        reduce=reduce,
        white_back=white_back,
        disparity=disparity,
    )


def _sample_planes_impl(planes: Tensor, points: Tensor, box: float, axes: str, reduce: str, backend: str) -> Tensor:
    call = _sample_call(planes, points, box, axes, reduce or None)
    registry.run(call, backend)
    assert call.features is not None
    return call.features


def _render_planes_impl(planes: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *rest, backend = arguments
    call = _render_call(planes, *rest)
    registry.run(call, backend)
    assert call.features is not None and call.depth is not None and call.opacity is not None
    return call.features, call.depth, call.opacity


def _sample_planes_fake(planes: Tensor, points: Tensor, box: float, axes: str, reduce: str, backend: str) -> Tensor:
    return _new_samples(planes, points, reduce or None)


def _render_planes_fake(planes: Tensor, origins: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _new_render(planes, origins, arguments[4].shape[0])


_sample_planes = define_op(
    "sample_planes",
    "(Tensor planes, Tensor points, float box, str axes, str reduce, str backend) -> Tensor",
    _sample_planes_impl,
    _sample_planes_fake,
)
_render_planes = define_op(
    "render_planes",
    "(Tensor planes, Tensor origins, Tensor directions, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor near, "
    "Tensor far, Tensor? jitter, Tensor? u, int coarse, int fine, float box, str axes, str reduce, "
    "bool white_back, bool disparity, str backend) -> (Tensor, Tensor, Tensor)",
    _render_planes_impl,
    _render_planes_fake,
)


# The backends.


def _run_reference(call: TriplaneCall) -> None:
    assert call.features is not None
    if call.op == "sample_planes":
        assert call.points is not None
        call.features.copy_(reference.sample_planes(call.planes, call.points, call.box, call.axes, call.reduce))
        return
    result = reference.render_planes(
        call.planes, call.origins, call.directions, call.decoder, call.near, call.far, call.coarse, call.fine, call.box,
        call.axes, call.reduce, call.white_back, call.jitter, call.u, call.disparity,
    )  # fmt: skip
    for out, value in zip((call.features, call.depth, call.opacity), result, strict=True):
        assert out is not None
        out.copy_(value)


def _refuse_cpu(call: TriplaneCall) -> str | None:
    return _checks.refuse_kernel("cpu", call.planes) or _native.reason_missing("cpu")


def _run_cpu(call: TriplaneCall) -> None:
    planes = _channels_last(call.planes)
    _native.load("cpu").triplane(call.op, _params(call, planes), torch.get_num_threads())


def _channels_last(planes: Tensor) -> Tensor:
    """Planes whose channels are neighbours, with a copy only where they are not."""
    if planes.stride(2) == 1:
        return planes
    return planes.movedim(2, -1).contiguous().movedim(-1, 2)


def _refuse_cuda(call: TriplaneCall) -> str | None:
    reason = _checks.refuse_kernel("cuda", call.planes) or _native.reason_missing("cuda")
    return reason or _native.load("cuda").triplane_refuse(call.op, _params(call, call.planes), call.planes.device.index)


def _run_cuda(call: TriplaneCall) -> None:
    index = call.planes.device.index
    planes = _channels_last(call.planes)
    stream = torch.cuda.current_stream(index).cuda_stream
    _native.load("cuda").triplane(call.op, _params(call, planes), index, stream)


def _params(call: TriplaneCall, planes: Tensor) -> tuple[Any, ...]:
    """`triplane::PyParams` of csrc/bind_common.h, which turns it into `triplane::Params` of
    kernels/triplane/triplane.h.
    """
    assert call.features is not None
    grid = planes if planes.dim() == 6 else planes.unsqueeze(3)  # a plane is a trigrid of depth 1
    rays = call.points if call.op == "sample_planes" else call.origins
    assert rays is not None
    hidden, outputs = (len(call.decoder.b1), len(call.decoder.b2)) if call.decoder else (0, 0)
    return (
        (*grid.shape[:1], *grid.shape[2:], rays.shape[1], hidden, outputs, call.coarse, call.fine),
        _native.view(grid, 6),
        [index for plane in AXES[call.axes] for index in plane],
        planes.dim() == 6,
        [_native.pointer(each) for each in (rays, call.directions, *(call.decoder or (None,) * 4))],
        [_native.pointer(each) for each in (call.near, call.far, call.jitter, call.u)],
        [_native.pointer(each) for each in (call.features, call.depth, call.opacity)],
        call.box,
        REDUCTIONS.index(call.reduce),
        call.white_back,
        call.disparity,
    )


def _refuse_triton(call: TriplaneCall) -> str | None:
    try:
        from fastface.kernels.triplane import triplane_triton
    except ImportError as error:
        return f"triton does not import: {error}"
    device = "cpu" if triplane_triton.INTERPRETED else "cuda"
    return _checks.refuse_kernel(device, call.planes) or triplane_triton.refuse(call)


def _run_triton(call: TriplaneCall) -> None:
    from fastface.kernels.triplane import triplane_triton

    triplane_triton.run(replace(call, planes=_channels_last(call.planes)))


def _describe(call: TriplaneCall) -> tuple[str, torch.device, str]:
    """Shape classes of the measured table: one image, where launches weigh, or a batch, where samples do."""
    return call.op, call.planes.device, "single" if call.planes.shape[0] == 1 else "batch"


def _prepare(op: str, given: Mapping[str, Any]) -> TriplaneCall:
    """What the public functions do before they launch."""
    planes = given["planes"]
    checked = {name: value for name, value in given.items() if name not in ("near", "far", "disparity", "backend")}
    if op == "sample_planes":
        _check_sample(**checked)
        return _sample_call(planes, given["points"], float(given["box"]), given["axes"], given["reduce"])
    _check_render(**checked)
    limits = {name: given[name] for name in ("near", "far", "origins", "directions", "box", "disparity")}
    near, far = _limits(**limits, wide=_wide(planes))
    names = ("coarse", "fine", "box", "axes", "reduce", "white_back", "disparity")
    rays = (given["origins"], given["directions"], *given["decoder"], near, far, given["jitter"], given["u"])
    return _render_call(planes, *rays, **{name: given[name] for name in names})


registry: Registry[TriplaneCall] = register(
    Registry(
        slug="triplane",
        ops={"sample_planes": sample_planes, "render_planes": render_planes},
        references={"sample_planes": reference.sample_planes, "render_planes": reference.render_planes},
        implementations={
            "reference": Implementation(refuse=lambda call: None, run=_run_reference),
            "cpu": Implementation(refuse=_refuse_cpu, run=_run_cpu),
            "triton": Implementation(refuse=_refuse_triton, run=_run_triton),
            "cuda": Implementation(refuse=_refuse_cuda, run=_run_cuda),
        },
        describe=_describe,
        prepare=_prepare,
    )
)
