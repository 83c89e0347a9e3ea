"""Modulated instance normalisation: SPADE with maps of gamma and beta, AdaIN with one pair per channel.

``act((1 + gamma) * (x - mean) * rstd + beta) + residual`` with mean and ``rstd = 1 / sqrt(var + eps)`` per image and
channel over H and W, the variance biased.
Source: SPADE, arXiv 1903.07291, equation (1); HeadGAN, arXiv 2012.08261, figure 9. Formulas, costs and tolerances:
kernels/spade/README.md.

Every op takes float32, float16 and bfloat16 (statistics and arithmetic in float32; float64 runs on the reference), any
strides and any sizes; NaN in gives NaN out. Kernels are for inference: when an input requires grad the differentiable
reference runs. Every op raises ValueError or TypeError for bad arguments, naming value and expectation, and
BackendUnavailable where a backend chosen by ``backend=`` or FASTFACE_BACKEND cannot run the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastface.kernels.spade import spade_reference as reference
from fastface.ops import _checks, _memory, _native
from fastface.ops._backends import Implementation, Registry, define_op, register, route

__all__ = ["ACTIVATIONS", "SpadeCall", "instance_stats", "modulated_norm"]

ACTIVATIONS = (None, "relu", "leaky_relu")  # the numbers of `spade::Activation` in kernels/spade/spade.h


@dataclass(frozen=True)
class SpadeCall:
    """One checked call, its outputs allocated: what a backend gets.

    A gamma or beta map has the dtype of `x`. What is per channel, mean and rstd as well, is contiguous and float32
    (float64 beside a float64 `x`).
    """

    op: str
    x: Tensor  # [B, C, H, W]
    out: Tensor | None = None  # [B, C, H, W]; None for instance_stats
    mean: Tensor | None = None  # [B, C]: given to modulated_norm, or None; written by instance_stats
    rstd: Tensor | None = None
    gamma: Tensor | None = None  # [B, C, h, w] or [B, C]
    beta: Tensor | None = None
    residual: Tensor | None = None  # [B, C, H, W]
    eps: float = 1e-5
    activation: str | None = None
    slope: float = 0.2
    scale: int = 0  # s of H = s h: pixels across that share one entry of a map; 0 for one per channel or none


def modulated_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    stats: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float = 0.2,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``act((1 + gamma) * (x - mean) * rstd + beta) + residual``.

    Args:
        x: ``[B, C, H, W]``.
        gamma, beta: either may be None (zero); maps ``[B, C, h, w]`` in the dtype of `x` with H = s h and W = s w for a
            whole s, repeated s by s (nearest); or ``[B, C]`` of any floating dtype. Two halves of one ``[B, 2C, h, w]``
            tensor are read where they lie.
        stats: mean and rstd, ``[B, C]`` each, of any floating dtype; None computes them from `x`.
        eps: added to the variance; unused with `stats`.
        activation: None, "relu" or "leaky_relu" with the negative `slope`.
        residual: ``[B, C, H, W]`` in the dtype of `x`, added last.

    Returns:
        ``[B, C, H, W]`` in the dtype and memory format of `x`.
    """
    mean, rstd = _check_norm(x, gamma, beta, stats, eps, activation, slope, residual)
    backend = route(backend, x, gamma, beta, mean, rstd, residual)
    if backend == "reference":
        return reference.modulated_norm(x, gamma, beta, stats, eps, activation, slope, residual)
    return _modulated_norm(x, gamma, beta, mean, rstd, residual, float(eps), activation or "", float(slope), backend)


def instance_stats(x: Tensor, eps: float = 1e-5, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """``mean`` and ``rstd = 1 / sqrt(var + eps)`` over H and W, the variance biased.

    Returns:
        Two ``[B, C]`` tensors in float32 (float64 for float64), for the `stats` of `modulated_norm`.
    """
    _check_stats(x, eps)
    backend = route(backend, x)
    if backend == "reference":
        return reference.instance_stats(x, eps)
    return _instance_stats(x, float(eps), backend)


# Checks: all in Python, all before a launch.


def _check_stats(x: Tensor, eps: float) -> None:
    _check_image("x", x)
    if 0 in x.shape:
        raise ValueError(f"x must be [B, C, H, W] with no size 0, got {list(x.shape)}")
    _checks.op_dtype("x", x)
    _checks.positive("eps", eps)


def _check_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    stats: tuple[Tensor, Tensor] | None,
    eps: float,
    activation: str | None,
    slope: float,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Mean and rstd, where they are given."""
    _check_stats(x, eps)
    for name, modulation in (("gamma", gamma), ("beta", beta)):
        if modulation is not None:
            _check_modulation(name, modulation, x)
    if gamma is not None and beta is not None and gamma.shape != beta.shape:
        raise ValueError(f"beta must be {list(gamma.shape)} like gamma, got {list(beta.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None, 'relu' or 'leaky_relu', got {activation!r}")
    _checks.number("slope", slope)
    if residual is not None:
        _check_image("residual", residual)
        if residual.shape != x.shape:
            raise ValueError(f"residual must be {list(x.shape)} like x, got {list(residual.shape)}")
        _checks.same_dtype("residual", residual, "x", x)
        _checks.same_device("residual", residual, "x", x)
    if stats is None:
        return None, None
    if not isinstance(stats, (tuple, list)) or len(stats) != 2:
        raise TypeError(f"stats must be (mean, rstd), got {type(stats).__name__}")
    for name, value in zip(("stats[0], the mean,", "stats[1], the rstd,"), stats, strict=True):
        _checks.dense(name, value)
        if list(value.shape) != list(x.shape[:2]):
            raise ValueError(f"{name} must be [B, C] = {list(x.shape[:2])}, got {list(value.shape)}")
        _checks.floating(name, value)
        _checks.same_device(name, value, "x", x)
    return stats[0], stats[1]


def _check_image(name: str, image: Tensor) -> None:
    _checks.dense(name, image)
    if image.dim() != 4:
        raise ValueError(f"{name} must be [B, C, H, W], got {list(image.shape)}")


def _check_modulation(name: str, modulation: Tensor, x: Tensor) -> None:
    _checks.dense(name, modulation)
    if not _spreads(modulation, x):
        batch, channels, height, width = x.shape
        raise ValueError(
            f"{name} must be [{batch}, {channels}] or [{batch}, {channels}, h, w] with s h = {height} and "
            f"s w = {width} for one whole s, got {list(modulation.shape)}"
        )
    if modulation.dim() == 4:
        _checks.same_dtype(name, modulation, "x", x)
    _checks.floating(name, modulation)
    _checks.same_device(name, modulation, "x", x)


def _spreads(modulation: Tensor, x: Tensor) -> bool:
    """Whether gamma or beta of that shape can be spread over `x`."""
    shape, (batch, channels, height, width) = modulation.shape, x.shape
    if shape == x.shape:
        return True
    if len(shape) not in (2, 4) or shape[0] != batch or shape[1] != channels:
        return False
    if len(shape) == 2:
        return True
    h, w = shape[2:]
    return h >= 1 and w >= 1 and height % h == 0 and width % w == 0 and height // h == width // w


# The registered ops: one node each for torch.compile, torch.export and CUDA graphs.


def _new_image(x: Tensor) -> Tensor:
    return _memory.empty(x.shape, x, memory_format=_memory.memory_format(x))


def _new_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return _memory.empty(x.shape[:2], x, dtype=dtype), _memory.empty(x.shape[:2], x, dtype=dtype)


def _per_channel(value: Tensor | None, x: Tensor) -> Tensor | None:
    """``[B, C]`` as the kernels read it; maps pass as they are."""
    if value is None or value.dim() == 4:
        return value
    return value.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()


def _make_call(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
) -> SpadeCall:
    return SpadeCall(
        "modulated_norm",
        x,
        out=_new_image(x),
        mean=_per_channel(mean, x),
        rstd=_per_channel(rstd, x),
        gamma=_per_channel(gamma, x),
        beta=_per_channel(beta, x),
        residual=residual,
        eps=eps,
        activation=activation,
        slope=slope,
        scale=_scale(x, beta if gamma is None else gamma),
    )


def _scale(x: Tensor, modulation: Tensor | None) -> int:
    return 0 if modulation is None or modulation.dim() == 2 else x.shape[2] // modulation.shape[2]


def _modulated_norm_impl(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    slope: float,
    backend: str,
) -> Tensor:
    call = _make_call(x, gamma, beta, mean, rstd, residual, eps, activation or None, slope)
    registry.run(call, backend)
    assert call.out is not None
    return call.out


def _instance_stats_impl(x: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    mean, rstd = _new_stats(x)
    registry.run(SpadeCall("instance_stats", x, mean=mean, rstd=rstd, eps=eps), backend)
    return mean, rstd


def _modulated_norm_fake(x: Tensor, *_: Any) -> Tensor:
    return _new_image(x)


def _instance_stats_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_stats(x)


_modulated_norm = define_op(
    "modulated_norm",
    "(Tensor x, Tensor? gamma, Tensor? beta, Tensor? mean, Tensor? rstd, Tensor? residual, float eps, str activation, "
    "float slope, str backend) -> Tensor",
    _modulated_norm_impl,
    _modulated_norm_fake,
)
_instance_stats = define_op(
    "instance_stats",
    "(Tensor x, float eps, str backend) -> (Tensor, Tensor)",
    _instance_stats_impl,
    _instance_stats_fake,
)


# The backends.


def _run_reference(call: SpadeCall) -> None:
    if call.op == "instance_stats":
        assert call.mean is not None and call.rstd is not None
        mean, rstd = reference.instance_stats(call.x, call.eps)
        call.mean.copy_(mean)
        call.rstd.copy_(rstd)
        return
    assert call.out is not None
    stats = None if call.mean is None or call.rstd is None else (call.mean, call.rstd)
    call.out.copy_(
        reference.modulated_norm(
            call.x, call.gamma, call.beta, stats, call.eps, call.activation, call.slope, call.residual
        )
    )


def _refuse_cpu(call: SpadeCall) -> str | None:
    return _checks.refuse_kernel("cpu", call.x) or _native.reason_missing("cpu")


def _run_cpu(call: SpadeCall) -> None:
    _native.load("cpu").spade(call.op, _params(call), torch.get_num_threads())


def _refuse_cuda(call: SpadeCall) -> str | None:
    reason = _checks.refuse_kernel("cuda", call.x) or _native.reason_missing("cuda")
    return reason or _native.load("cuda").spade_refuse(call.op, _params(call), call.x.device.index) or None


def _run_cuda(call: SpadeCall) -> None:
    index = call.x.device.index
    module = _native.load("cuda")
    params = _params(call)
    # The statistics of parts of an image, and their sum, where the kernel cannot hold a channel in one block.
    scratch = torch.empty(module.spade_scratch(call.op, params, index), dtype=torch.float32, device=call.x.device)
    module.spade(call.op, params, scratch.data_ptr(), index, torch.cuda.current_stream(index).cuda_stream)


def _params(call: SpadeCall) -> tuple[Any, ...]:
    """`spade::PyParams` of csrc/bind_common.h, which turns it into `spade::Params` of kernels/spade/spade.h."""
    return (
        (*call.x.shape, call.scale),
        _native.view(call.x, 4),
        _native.view(None if call.scale == 0 else call.gamma, 4),
        _native.view(None if call.scale == 0 else call.beta, 4),
        _native.view(call.residual, 4),
        _native.view(call.out, 4),
        _native.pointer(call.gamma if call.scale == 0 else None),
        _native.pointer(call.beta if call.scale == 0 else None),
        _native.pointer(call.mean),
        _native.pointer(call.rstd),
        call.eps,
        ACTIVATIONS.index(call.activation),
        call.slope,
    )


def _refuse_triton(call: SpadeCall) -> str | None:
    try:
        from fastface.kernels.spade import spade_triton
    except ImportError as error:
        return f"triton does not import: {error}"
    return _checks.refuse_kernel("cpu" if spade_triton.INTERPRETED else "cuda", call.x) or spade_triton.refuse(call)


def _run_triton(call: SpadeCall) -> None:
    from fastface.kernels.spade import spade_triton

    spade_triton.run(call)


def _describe(call: SpadeCall) -> tuple[str, torch.device, str]:
    """Shape classes of the measured table: one image, where launches weigh, or a batch, where bytes do."""
    return call.op, call.x.device, "single" if call.x.shape[0] == 1 else "batch"


def _prepare(op: str, given: Mapping[str, Any]) -> SpadeCall:
    x, eps = given["x"], given["eps"]
    if op == "instance_stats":
        _check_stats(x, eps)
        mean, rstd = _new_stats(x)
        return SpadeCall(op, x, mean=mean, rstd=rstd, eps=eps)
    given_mean, given_rstd = _check_norm(**{name: value for name, value in given.items() if name != "backend"})
    rest = {name: given[name] for name in ("gamma", "beta", "residual", "activation", "slope")}
    return _make_call(x, mean=given_mean, rstd=given_rstd, eps=eps, **rest)


registry: Registry[SpadeCall] = register(
    Registry(
        slug="spade",
        ops={"modulated_norm": modulated_norm, "instance_stats": instance_stats},
        references={"modulated_norm": reference.modulated_norm, "instance_stats": reference.instance_stats},
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
