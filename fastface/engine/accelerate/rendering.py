"""EG3D's volume renderer: planes, a decoder and rays to features in one op, at the depths that it draws itself."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastface.engine.accelerate.fused import (
    Call,
    Candidate,
    Fused,
    Options,
    Unproven,
    difference,
    differentiates,
    fuse,
    release,
    stirred,
    tolerance,
    without_kernels,
)
from fastface.nn.triplane import Rendering, plane_decoder
from fastface.ops.triplane import AXES

__all__ = ["find_renderer"]


@dataclass(frozen=True)
class _Spec:
    decoder: type  # whose formula was compared
    axes: str
    reduce: Literal["mean", "sum"]
    random: bool  # whether depths are drawn anew in every call


class FusedRenderer(Fused):
    """Features ``[B, R, F]``, depth and opacity ``[B, R, 1]`` that rays see of planes and their decoder."""

    def accepts(self, *values: Any) -> bool:
        spec: _Spec = self._fastface_spec
        if len(values) != 5 or type(values[1]) is not spec.decoder or not _is_call(values):
            return False
        planes, decoder, *rays, _ = values
        if any(map(_hooks, decoder.modules())) or differentiates(decoder, planes, *rays):
            return False
        return not torch.is_autocast_enabled(planes.device.type) and _is_known(values)

    def fused(self, *values: Any) -> tuple[Tensor, Tensor, Tensor]:
        planes, decoder, origins, directions, options = values
        spec: _Spec = self._fastface_spec
        rendering = replace(Rendering.of_options(options, axes=spec.axes), reduce=spec.reduce)
        jitter, u = None, None
        if spec.random:  # in the order and the shapes that EG3D draws in, so that a seed gives what it gave
            jitter = torch.rand(*origins.shape[:2], rendering.coarse, device=origins.device)
            if rendering.fine:
                u = torch.rand(origins[..., 0].numel(), rendering.fine, device=origins.device)
                u = u.unflatten(0, origins.shape[:2])
        seen = rendering.render(planes, origins, directions, plane_decoder(decoder), jitter=jitter, u=u)
        return seen.features, seen.depth[..., None], seen.opacity[..., None]

    def detail(self) -> str:
        spec: _Spec = self._fastface_spec
        return f"render_planes, axes {spec.axes}, depths {'drawn anew' if spec.random else 'always the same'}"


def find_renderer(module: nn.Module, _: Options) -> Candidate | None:
    """A module without parameters that is called with planes, a decoder, rays and options."""
    forward = getattr(type(module), "forward", None)  # scripted modules have none
    names = [] if forward is None else list(inspect.signature(forward).parameters)[1:]
    if len(names) != 5 or "origin" not in names[2] or "direction" not in names[3]:
        return None
    if next(module.parameters(), None) is not None:
        return None
    if any(map(_hooks, module.children())):
        raise Unproven("its parts have hooks, which would not run any more")
    return Candidate(FusedRenderer, _specs, ())


def _specs(twin: nn.Module, call: Call, _: Any) -> Iterator[_Spec]:
    """The one form that agrees with a decoder of other weights, too; fresh ones can be zero."""
    values = tuple(inspect.signature(twin.forward).bind(*call.args, **call.kwargs).arguments.values())
    if not _is_call(values):
        raise Unproven("it is not called with float32 planes [B, 3, C, H, W], a decoder, rays and a dict of options")
    planes, decoder, origins, directions, options = values
    try:
        plane_decoder(decoder)
        Rendering.of_options(options)
    except ValueError as error:
        raise Unproven(str(error)) from None
    if (reason := without_kernels(("render_planes",), planes.device)) is not None:
        raise Unproven(reason)
    other = Call((planes, stirred(decoder), origins, directions, options))
    expected = other.of(twin)
    least, limit = math.inf, tolerance(twin)
    for random, axes, reduce in itertools.product((True, False), AXES, ("mean", "sum")):
        spec = _Spec(type(decoder), axes, reduce, random)  # type: ignore[arg-type]  # product widens the literals
        fused = fuse(twin, FusedRenderer, spec)
        away = difference(expected, other.of(fused))
        release(fused)
        if away <= limit:
            yield spec
            return
        least = min(least, away)
    raise Unproven(f"it computes something else: {least:.1e} of the largest value away at best, {limit:g} allowed")


def _is_call(values: tuple) -> bool:
    planes, decoder, *rays, options = values
    return (
        isinstance(planes, Tensor)
        and (planes.dim(), planes.dtype) == (5, torch.float32)
        and planes.shape[1] == 3
        and isinstance(decoder, nn.Module)
        and "forward" not in vars(decoder)
        and all(isinstance(each, Tensor) and each.dim() == 3 and each.shape[2] == 3 for each in rays)
        and isinstance(options, Mapping)
    )


def _is_known(values: tuple) -> bool:
    """Whether options and weights are those of a call that can be fused."""
    try:
        plane_decoder(values[1])
        Rendering.of_options(values[4])
    except ValueError:
        return False
    return True


def _hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
