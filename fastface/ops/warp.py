"""Keypoint volume warping: pack the K+1 sparse motions of a volume, and compose them into one warped volume.

Sparse motion k maps a driving voxel p to the source, ``w_k(p) = A_k (p - kp_driving_k) + kp_source_k``; k = 0 is the
background, the identity. A is the identity for ``linear=None``, else given per image or per keypoint (the paper's R
R̄⁻¹). Keypoints are (x, y, z) in [-1, 1], x along W. The voxel grid includes both end points (``2 i / (n - 1) - 1``; 0
on an axis of size 1) and is sampled trilinearly with zeros outside; public checkpoints want ``align_corners=False``
although their grid includes the ends.
Source: arXiv 2303.09799, equations (1) and (2). Formulas, costs and tolerances: kernels/warp/README.md.

Every op takes float32, float16 and bfloat16 (coordinates, softmax and sums in float32; float64 runs on the reference),
any strides and any sizes; NaN in gives NaN out. Kernels are for inference: when an input requires grad the
differentiable reference runs. Every op raises ValueError or TypeError for bad arguments, naming value and expectation,
and BackendUnavailable where a backend chosen by ``backend=`` or FASTFACE_BACKEND cannot run the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastface.kernels.warp import warp_reference as reference
from fastface.ops import _checks, _memory, _native
from fastface.ops._backends import Implementation, Registry, define_op, register, route

__all__ = ["WarpCall", "compose_flow", "compose_volumes", "motion_field", "pack_motions"]


@dataclass(frozen=True)
class WarpCall:
    """One checked call, its output allocated: what a backend gets, keypoints and `linear` contiguous and float32."""

    op: str
    out: Tensor  # [B, (K+1)*(C+1), D, H, W], [B, C, D, H, W], or for motion_field [B, D, H, W, 3] in float32
    kp_source: Tensor  # [B, K, 3]
    kp_driving: Tensor  # [B, K, 3]
    feature: Tensor | None = None  # [B, C, D, H, W]; None for motion_field
    logits: Tensor | None = None  # [B, K+1, D, H, W]; None for pack_motions
    linear: Tensor | None = None  # [B, 3, 3] or [B, K, 3, 3]
    occlusion: Tensor | None = None  # [B, 1, H, W]
    sigma2: float = 0.01
    align_corners: bool = False

    @property
    def volume(self) -> Tensor:
        """The tensor that gives batch, D, H, W and the device."""
        volume = self.feature if self.feature is not None else self.logits
        assert volume is not None
        return volume


def pack_motions(
    feature: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    *,
    linear: Tensor | None = None,
    sigma2: float = 0.01,
    align_corners: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Per motion ``[heatmap, C warped channels]``, background first: the input of the dense motion network.

    ``heatmap_k(p) = exp(-|p - kp_driving_k|² / 2σ²) - exp(-|p - kp_source_k|² / 2σ²)``, zero for the background, and
    ``warped_k(p) = feature(w_k(p))``.

    Args:
        feature: ``[B, C, D, H, W]``.
        kp_source, kp_driving: ``[B, K, 3]``, any floating dtype.
        linear: None, ``[B, 3, 3]`` or ``[B, K, 3, 3]``.
        sigma2: σ², positive, in squared units of the coordinates.
        out: written in place where given, for example a slice of the decoder's concatenation buffer. It must not
            overlap an input.

    Returns:
        ``[B, (K+1)*(C+1), D, H, W]`` in the dtype and memory format of `feature`; channel ``k*(C+1)`` is the heatmap of
        motion k.
    """
    _check_pack(feature, kp_source, kp_driving, linear, sigma2, out)
    backend = route(backend, feature, kp_source, kp_driving, linear, out)
    sigma2, align_corners = float(sigma2), bool(align_corners)
    if backend == "reference":
        packed = reference.pack_motions(feature, kp_source, kp_driving, linear, sigma2, align_corners)
        return packed if out is None else out.copy_(packed)
    if out is None:
        return _pack_motions(feature, kp_source, kp_driving, linear, sigma2, align_corners, backend)
    _pack_motions_out(feature, kp_source, kp_driving, linear, sigma2, align_corners, backend, out)
    return out


def compose_flow(
    feature: Tensor,
    logits: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    *,
    linear: Tensor | None = None,
    occlusion: Tensor | None = None,
    align_corners: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Blend the flows and sample once, as published: ``occlusion * feature(Σ_k softmax(logits)_k w_k(p))``.

    Args:
        feature: ``[B, C, D, H, W]``.
        logits: ``[B, K+1, D, H, W]``, background first, of any supported dtype; -inf switches a motion off.
        kp_source, kp_driving: ``[B, K, 3]``, any floating dtype.
        linear: None, ``[B, 3, 3]`` or ``[B, K, 3, 3]``.
        occlusion: None or ``[B, 1, H, W]`` in the dtype of `feature`, multiplied onto every channel and depth.

    Returns:
        ``[B, C, D, H, W]`` in the dtype and memory format of `feature`.
    """
    return _compose("compose_flow", feature, logits, kp_source, kp_driving, linear, occlusion, align_corners, backend)


def compose_volumes(
    feature: Tensor,
    logits: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    *,
    linear: Tensor | None = None,
    occlusion: Tensor | None = None,
    align_corners: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Blend the warped volumes, equation (2) as printed: ``occlusion * Σ_k softmax(logits)_k feature(w_k(p))``.

    Arguments and result as in `compose_flow`.
    """
    return _compose(
        "compose_volumes", feature, logits, kp_source, kp_driving, linear, occlusion, align_corners, backend
    )


def motion_field(
    logits: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    *,
    linear: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The flow that `compose_flow` samples at, ``Σ_k softmax(logits)_k w_k(p)``, in coordinates of the source.

    Returns:
        ``[B, D, H, W, 3]`` contiguous float32 (float64 for float64 logits), (x, y, z) in [-1, 1] inside the source.
    """
    _check_field(logits, kp_source, kp_driving, linear)
    backend = route(backend, logits, kp_source, kp_driving, linear)
    if backend == "reference":
        return reference.motion_field(logits, kp_source, kp_driving, linear)
    return _motion_field(logits, kp_source, kp_driving, linear, backend)


def _compose(
    op: str,
    feature: Tensor,
    logits: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    linear: Tensor | None,
    occlusion: Tensor | None,
    align_corners: bool,
    backend: str | None,
) -> Tensor:
    _check_compose(feature, logits, kp_source, kp_driving, linear, occlusion)
    backend = route(backend, feature, logits, kp_source, kp_driving, linear, occlusion)
    align_corners = bool(align_corners)
    if backend == "reference":
        compose = reference.compose_flow if op == "compose_flow" else reference.compose_volumes
        return compose(feature, logits, kp_source, kp_driving, linear, occlusion, align_corners)
    overload = _compose_flow if op == "compose_flow" else _compose_volumes
    return overload(feature, logits, kp_source, kp_driving, linear, occlusion, align_corners, backend)


# Checks: all in Python, all before a launch.


def _check_pack(
    feature: Tensor, kp_source: Tensor, kp_driving: Tensor, linear: Tensor | None, sigma2: float, out: Tensor | None
) -> None:
    _check_keypoints(feature, "feature", kp_source, kp_driving, linear)
    _checks.positive("sigma2", sigma2)
    if out is None:
        return
    _checks.dense("out", out)
    expected = _pack_shape(feature, kp_source)
    if list(out.shape) != expected:
        raise ValueError(f"out must be [B, (K+1)*(C+1), D, H, W] = {expected}, got {list(out.shape)}")
    _checks.same_dtype("out", out, "feature", feature)
    _checks.same_device("out", out, "feature", feature)
    _checks.writable("out", out, feature=feature, kp_source=kp_source, kp_driving=kp_driving, linear=linear)


def _check_compose(
    feature: Tensor,
    logits: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    linear: Tensor | None,
    occlusion: Tensor | None,
) -> None:
    _check_keypoints(feature, "feature", kp_source, kp_driving, linear)
    _check_logits(logits, feature, kp_source)
    if occlusion is None:
        return
    _checks.dense("occlusion", occlusion)
    expected = [feature.shape[0], 1, *feature.shape[3:]]
    if list(occlusion.shape) != expected:
        raise ValueError(f"occlusion must be [B, 1, H, W] = {expected}, got {list(occlusion.shape)}")
    _checks.same_dtype("occlusion", occlusion, "feature", feature)
    _checks.same_device("occlusion", occlusion, "feature", feature)


def _check_field(logits: Tensor, kp_source: Tensor, kp_driving: Tensor, linear: Tensor | None) -> None:
    _check_keypoints(logits, "logits", kp_source, kp_driving, linear)
    _check_logits(logits, logits, kp_source)


def _check_volume(volume: Tensor, name: str) -> None:
    _checks.dense(name, volume)
    if volume.dim() != 5 or 0 in volume.shape:
        channels = "C" if name == "feature" else "K+1"
        raise ValueError(f"{name} must be [B, {channels}, D, H, W] with no size 0, got {list(volume.shape)}")
    _checks.op_dtype(name, volume)


def _check_keypoints(volume: Tensor, name: str, kp_source: Tensor, kp_driving: Tensor, linear: Tensor | None) -> None:
    _check_volume(volume, name)
    points = {"kp_source": kp_source, "kp_driving": kp_driving} | ({} if linear is None else {"linear": linear})
    for label, tensor in points.items():
        _checks.dense(label, tensor)
        _checks.floating(label, tensor)
    batch = volume.shape[0]
    if kp_source.dim() != 3 or kp_source.shape[0] != batch or kp_source.shape[1] < 1 or kp_source.shape[2] != 3:
        raise ValueError(f"kp_source must be [B, K, 3] with B = {batch} and K >= 1, got {list(kp_source.shape)}")
    if kp_driving.shape != kp_source.shape:
        raise ValueError(f"kp_driving must be {list(kp_source.shape)} like kp_source, got {list(kp_driving.shape)}")
    if linear is not None:
        per_image, per_keypoint = (batch, 3, 3), (batch, kp_source.shape[1], 3, 3)
        if tuple(linear.shape) not in (per_image, per_keypoint):
            raise ValueError(f"linear must be {list(per_image)} or {list(per_keypoint)}, got {list(linear.shape)}")
    for label, tensor in points.items():
        _checks.same_device(label, tensor, name, volume)


def _check_logits(logits: Tensor, volume: Tensor, kp_source: Tensor) -> None:
    _check_volume(logits, "logits")
    expected = [volume.shape[0], kp_source.shape[1] + 1, *volume.shape[2:]]
    if list(logits.shape) != expected:
        raise ValueError(f"logits must be [B, K+1, D, H, W] = {expected}, got {list(logits.shape)}")
    _checks.same_device("logits", logits, "feature", volume)


# The registered ops: one node each for torch.compile, torch.export and CUDA graphs.


def _pack_shape(feature: Tensor, kp_source: Tensor) -> list[int]:
    return [feature.shape[0], (kp_source.shape[1] + 1) * (feature.shape[1] + 1), *feature.shape[2:]]


def _new_volume(feature: Tensor, shape: list[int]) -> Tensor:
    return _memory.empty(shape, feature, memory_format=_memory.memory_format(feature))


def _new_field(logits: Tensor) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return _memory.empty([logits.shape[0], *logits.shape[2:], 3], logits, dtype=dtype)


def _make_call(
    op: str, out: Tensor, kp_source: Tensor, kp_driving: Tensor, linear: Tensor | None, **rest: Any
) -> WarpCall:
    if out.dtype != torch.float64:
        kp_source, kp_driving = kp_source.float().contiguous(), kp_driving.float().contiguous()
        linear = None if linear is None else linear.float().contiguous()
    return WarpCall(op, out, kp_source, kp_driving, linear=linear, **rest)


def _pack_motions_impl(
    feature: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    linear: Tensor | None,
    sigma2: float,
    align_corners: bool,
    backend: str,
) -> Tensor:
    out = _new_volume(feature, _pack_shape(feature, kp_source))
    _pack_motions_out_impl(feature, kp_source, kp_driving, linear, sigma2, align_corners, backend, out)
    return out


def _pack_motions_out_impl(
    feature: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    linear: Tensor | None,
    sigma2: float,
    align_corners: bool,
    backend: str,
    out: Tensor,
) -> None:
    rest = {"feature": feature, "sigma2": sigma2, "align_corners": align_corners}
    registry.run(_make_call("pack_motions", out, kp_source, kp_driving, linear, **rest), backend)


def _compose_impl(
    op: str,
    feature: Tensor,
    logits: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    linear: Tensor | None,
    occlusion: Tensor | None,
    align_corners: bool,
    backend: str,
) -> Tensor:
    out = _new_volume(feature, list(feature.shape))
    rest = {"feature": feature, "logits": logits, "occlusion": occlusion, "align_corners": align_corners}
    registry.run(_make_call(op, out, kp_source, kp_driving, linear, **rest), backend)
    return out


def _compose_flow_impl(*args: Any) -> Tensor:
    return _compose_impl("compose_flow", *args)


def _compose_volumes_impl(*args: Any) -> Tensor:
    return _compose_impl("compose_volumes", *args)


def _motion_field_impl(
    logits: Tensor, kp_source: Tensor, kp_driving: Tensor, linear: Tensor | None, backend: str
) -> Tensor:
    out = _new_field(logits)
    registry.run(_make_call("motion_field", out, kp_source, kp_driving, linear, logits=logits), backend)
    return out


def _pack_motions_fake(feature: Tensor, kp_source: Tensor, *_: Any) -> Tensor:
    return _new_volume(feature, _pack_shape(feature, kp_source))


def _pack_motions_out_fake(*_: Any) -> None:
    return None


def _compose_fake(feature: Tensor, *_: Any) -> Tensor:
    return _new_volume(feature, list(feature.shape))


def _motion_field_fake(logits: Tensor, *_: Any) -> Tensor:
    return _new_field(logits)


_KEYPOINTS = "Tensor kp_source, Tensor kp_driving, Tensor? linear"
_PACK = f"Tensor feature, {_KEYPOINTS}, float sigma2, bool align_corners, str backend"
_COMPOSE = f"Tensor feature, Tensor logits, {_KEYPOINTS}, Tensor? occlusion, bool align_corners, str backend"
_pack_motions = define_op("pack_motions", f"({_PACK}) -> Tensor", _pack_motions_impl, _pack_motions_fake)
_pack_motions_out = define_op(
    "pack_motions_out", f"({_PACK}, Tensor(a!) out) -> ()", _pack_motions_out_impl, _pack_motions_out_fake
)
_compose_flow = define_op("compose_flow", f"({_COMPOSE}) -> Tensor", _compose_flow_impl, _compose_fake)
_compose_volumes = define_op("compose_volumes", f"({_COMPOSE}) -> Tensor", _compose_volumes_impl, _compose_fake)
_motion_field = define_op(
    "motion_field", f"(Tensor logits, {_KEYPOINTS}, str backend) -> Tensor", _motion_field_impl, _motion_field_fake
)


# The backends.


def _run_reference(call: WarpCall) -> None:
    if call.op == "pack_motions":
        result = reference.pack_motions(
            call.feature, call.kp_source, call.kp_driving, call.linear, call.sigma2, call.align_corners
        )
    elif call.op == "motion_field":
        result = reference.motion_field(call.logits, call.kp_source, call.kp_driving, call.linear)
    else:
        compose = reference.compose_flow if call.op == "compose_flow" else reference.compose_volumes
        result = compose(
            call.feature, call.logits, call.kp_source, call.kp_driving, call.linear, call.occlusion, call.align_corners
        )
    call.out.copy_(result)


def _refuse_cpu(call: WarpCall) -> str | None:
    return _checks.refuse_kernel("cpu", call.feature, call.logits) or _native.reason_missing("cpu")


def _run_cpu(call: WarpCall) -> None:
    _native.load("cpu").warp(call.op, _params(call), torch.get_num_threads())


def _refuse_cuda(call: WarpCall) -> str | None:
    reason = _checks.refuse_kernel("cuda", call.feature, call.logits) or _native.reason_missing("cuda")
    return reason or _native.load("cuda").warp_refuse(call.op, _params(call), call.volume.device.index) or None


def _run_cuda(call: WarpCall) -> None:
    index = call.volume.device.index
    stream = torch.cuda.current_stream(index).cuda_stream
    _native.load("cuda").warp(call.op, _params(call), index, stream)


def _params(call: WarpCall) -> tuple[Any, ...]:
    """`warp::PyParams` of csrc/bind_common.h, which turns it into `warp::Params` of kernels/warp/warp.h."""
    volume = call.volume
    out = call.out.movedim(-1, 1) if call.op == "motion_field" else call.out
    channels = 1 if call.feature is None else call.feature.shape[1]
    return (
        (volume.shape[0], channels, call.kp_source.shape[1], *volume.shape[2:]),
        _native.view(call.feature, 5),
        _native.view(call.logits, 5),
        _native.view(call.occlusion, 4),
        _native.view(out, 5),
        _native.pointer(call.kp_source),
        _native.pointer(call.kp_driving),
        _native.pointer(call.linear),
        call.linear is not None and call.linear.dim() == 4,
        call.align_corners,
        call.sigma2,
    )


def _refuse_triton(call: WarpCall) -> str | None:
    try:
        from fastface.kernels.warp import warp_triton
    except ImportError as error:
        return f"triton does not import: {error}"
    interpreted = warp_triton.INTERPRETED
    return _checks.refuse_kernel("cpu" if interpreted else "cuda", call.feature, call.logits) or warp_triton.refuse(
        call
    )


def _run_triton(call: WarpCall) -> None:
    from fastface.kernels.warp import warp_triton

    warp_triton.run(call)


def _describe(call: WarpCall) -> tuple[str, torch.device, str]:
    """Shape classes of the measured table: one image, where launches weigh, or a batch, where bytes do."""
    return call.op, call.volume.device, "single" if call.volume.shape[0] == 1 else "batch"


def _prepare(op: str, given: Mapping[str, Any]) -> WarpCall:
    motion = given["kp_source"], given["kp_driving"], given["linear"]
    if op == "motion_field":
        logits = given["logits"]
        _check_field(logits, *motion)
        return _make_call(op, _new_field(logits), *motion, logits=logits)
    feature = given["feature"]
    rest = {"feature": feature, "align_corners": given["align_corners"]}
    if op == "pack_motions":
        out = given["out"]
        _check_pack(feature, *motion, given["sigma2"], out)
        out = _new_volume(feature, _pack_shape(feature, given["kp_source"])) if out is None else out
        return _make_call(op, out, *motion, sigma2=given["sigma2"], **rest)
    logits, occlusion = given["logits"], given["occlusion"]
    _check_compose(feature, logits, *motion, occlusion)
    return _make_call(
        op, _new_volume(feature, list(feature.shape)), *motion, logits=logits, occlusion=occlusion, **rest
    )


registry: Registry[WarpCall] = register(
    Registry(
        slug="warp",
        ops={
            "pack_motions": pack_motions,
            "compose_flow": compose_flow,
            "compose_volumes": compose_volumes,
            "motion_field": motion_field,
        },
        references={
            "pack_motions": reference.pack_motions,
            "compose_flow": reference.compose_flow,
            "compose_volumes": reference.compose_volumes,
            "motion_field": reference.motion_field,
        },
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
