"""The dense motion network of the face-vid2vid family around its hourglass: the K+1 sparse motions packed at once, and
their flow without a grid per motion.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import ops
from fastface.engine.accelerate.fused import (
    Call,
    Candidate,
    Fused,
    Options,
    Unproven,
    difference,
    learned,
    place,
    tolerance,
)

__all__ = ["find_dense_motion"]

_OPS = ("pack_motions", "motion_field")
_SIGMA2 = (0.01, 0.005, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class _Spec:
    compress: str
    norm: str
    hourglass: str
    mask: str
    occlusion: str | None
    driving_first: bool = True
    sigma2: float = 0.01
    align_corners: bool = False
    keys: tuple[Any, ...] | None = None  # of the dict that is returned; None for a tuple
    values: tuple[str, ...] = ()  # which quantity each of what is returned is


class FusedDenseMotion(Fused):
    """Masks, flow and occlusion of ``(feature, keypoints, keypoints)``, the hourglass and its heads as they are."""

    def accepts(self, *values: Any) -> bool:
        return _is_call(values)

    def fused(self, *values: Any) -> Any:
        spec: _Spec = self._fastface_spec
        feature, source, driving = _roles(spec, values)
        prediction = getattr(self, spec.hourglass)(_packed(self, spec, feature, source, driving))
        logits = getattr(self, spec.mask)(prediction)
        found = [_quantity(name, self, spec, prediction, logits, source, driving) for name in spec.values]
        return tuple(found) if spec.keys is None else dict(zip(spec.keys, found, strict=True))

    def detail(self) -> str:
        spec: _Spec = self._fastface_spec
        order = "driving, source" if spec.driving_first else "source, driving"
        return f"pack_motions and motion_field, keypoints in the order {order}"


def find_dense_motion(module: nn.Module, _: Options) -> Candidate | None:
    """A 1x1x1 convolution with its batch norm, an hourglass over K+1 motions of those channels, an odd convolution to
    K+1 masks, and perhaps a 2D convolution to an occlusion map.
    """
    spec = _structure(module)
    if spec is None:
        return None
    compress, mask = getattr(module, spec.compress), getattr(module, spec.mask)
    depth = 8 if spec.occlusion is None else getattr(module, spec.occlusion).in_channels // mask.in_channels
    device, dtype = place(module)
    generator = torch.Generator().manual_seed(0)
    calls = []
    for batch, height, width in ((2, 32, 32), (1, 32, 64)):
        feature = torch.randn(batch, compress.in_channels, depth, height, width, generator=generator)
        points = 0.6 * torch.randn(2, batch, mask.out_channels - 1, 3, generator=generator)
        feature, a, b = (tensor.to(device, dtype) for tensor in (feature, *points))
        calls += [Call((feature, {"value": a}, {"value": b})), Call((feature, a, b))]
    return Candidate(FusedDenseMotion, lambda twin, call, result: _specs(spec, twin, call, result), calls, ops=_OPS)


def _structure(module: nn.Module) -> _Spec | None:
    children = learned(module)
    volumes = {name: child for name, child in children.items() if isinstance(child, nn.Conv3d)}
    compress = [name for name, conv in volumes.items() if conv.kernel_size == (1, 1, 1)]
    masks = [name for name, conv in volumes.items() if all(k > 1 and k % 2 for k in conv.kernel_size)]
    occlusions = [name for name, child in children.items() if isinstance(child, nn.Conv2d) and child.out_channels == 1]
    norms = [name for name, child in children.items() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    rest = children.keys() - {*compress, *masks, *occlusions, *norms}
    if not len(compress) == len(masks) == len(norms) == len(rest) == 1 or len(occlusions) > 1:
        return None
    (hourglass,) = rest
    reads = next((part.in_channels for part in children[hourglass].modules() if isinstance(part, nn.Conv3d)), None)
    if reads != volumes[masks[0]].out_channels * (volumes[compress[0]].out_channels + 1):
        return None
    return _Spec(compress[0], norms[0], hourglass, masks[0], occlusions[0] if occlusions else None)


def _specs(spec: _Spec, twin: nn.Module, call: Call, result: Any) -> Iterator[_Spec]:
    """The one way of packing that gives the hourglass what it is given, with names for what is returned."""
    values = tuple(inspect.signature(twin.forward).bind(*call.args, **call.kwargs).arguments.values())
    if not _is_call(values):
        raise Unproven("it is not called with a volume and two sets of keypoints alone")
    packed = _hourglass_input(twin, spec, call)
    limit = tolerance(twin)
    for first, align_corners, sigma2 in itertools.product((True, False), (False, True), _SIGMA2):
        spec = replace(spec, driving_first=first, align_corners=align_corners, sigma2=sigma2)
        feature, source, driving = _roles(spec, values)
        if difference(packed, _packed(twin, spec, feature, source, driving).to(packed.dtype)) <= limit:
            break
    else:
        raise Unproven("its hourglass is given something else than [heatmap, warped channels] of every motion")
    prediction = getattr(twin, spec.hourglass)(packed)
    logits = getattr(twin, spec.mask)(prediction)
    if not isinstance(result, (dict, tuple)):
        raise Unproven(f"it returns neither a dict nor a tuple but {type(result).__name__}")
    keys = tuple(result) if isinstance(result, dict) else None
    names = []
    for index, value in enumerate(result.values() if isinstance(result, dict) else result):
        quantities = ((n, _quantity(n, twin, spec, prediction, logits, source, driving)) for n in _QUANTITIES)
        name = next((n for n, quantity in quantities if difference(value, quantity) <= limit), None)
        if name is None:
            raise Unproven(
                f"of what it returns, {keys[index] if keys else index!r} is not one of {', '.join(_QUANTITIES)}"
            )
        names.append(name)
    yield replace(spec, keys=keys, values=tuple(names))


def _hourglass_input(module: nn.Module, spec: _Spec, call: Call) -> Tensor:
    given: list[Tensor] = []
    handle = getattr(module, spec.hourglass).register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    try:
        call.of(module)
    finally:
        handle.remove()
    return given[0]


def _is_call(values: tuple) -> bool:
    if len(values) != 3 or not isinstance(values[0], Tensor) or values[0].dim() != 5:
        return False
    a, b = _points(values[1]), _points(values[2])
    return a is not None and b is not None and a.shape == b.shape and len(a) == len(values[0])


def _points(keypoints: Any) -> Tensor | None:
    """``[B, K, 3]``, or that as the "value" of a dict that has nothing else, such as Jacobians."""
    if isinstance(keypoints, dict):
        others = any(value is not None for key, value in keypoints.items() if key != "value")
        keypoints = None if others else keypoints.get("value")
    return keypoints if isinstance(keypoints, Tensor) and keypoints.dim() == 3 and keypoints.shape[2] == 3 else None


def _roles(spec: _Spec, values: tuple) -> tuple[Tensor, Any, Any]:
    """Feature, source and driving keypoints."""
    feature, a, b = values[0], _points(values[1]), _points(values[2])
    return (feature, b, a) if spec.driving_first else (feature, a, b)


def _packed(module: nn.Module, spec: _Spec, feature: Tensor, source: Tensor, driving: Tensor) -> Tensor:
    compressed = F.relu(getattr(module, spec.norm)(getattr(module, spec.compress)(feature)))
    options: dict[str, Any] = {"sigma2": spec.sigma2, "align_corners": spec.align_corners}
    return ops.pack_motions(compressed, source, driving, **options)


_QUANTITIES = ("mask", "deformation", "occlusion", "logits", "none")


def _quantity(
    name: str, module: nn.Module, spec: _Spec, prediction: Tensor, logits: Tensor, source: Tensor, driving: Tensor
) -> Tensor | None:
    if name == "mask":
        return F.softmax(logits, dim=1)
    if name == "deformation":
        return ops.motion_field(logits, source, driving)
    if name == "occlusion" and spec.occlusion is not None:
        return torch.sigmoid(getattr(module, spec.occlusion)(prediction.flatten(1, 2)))
    return logits if name == "logits" else None
