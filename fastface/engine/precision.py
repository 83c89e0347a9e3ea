"""16-bit convolutions, where a device has them, and a probe that says which layer they do not fit.

Convolutions and linear layers are computed in the 16-bit type and hand on its numbers; keypoints, coordinates, softmax
and statistics stay float32, as `fastface.ops` have it inside and as arguments come.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from fastface.engine._tiled_conv import TiledConv
from fastface.engine._trees import map_tensors, tensors
from fastface.engine.convs import FoldedConv2d
from fastface.engine.lowering import as_defined, lower
from fastface.engine.polyphase import PolyphaseConv
from fastface.engine.structure import rewrite_structure

__all__ = ["LayerProbe", "ProbeReport", "probe", "reduce_convs"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_CONVS = (nn.modules.conv._ConvNd, nn.Linear, PolyphaseConv, FoldedConv2d, TiledConv)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def reduce_convs(module: ModuleT, dtype: torch.dtype = torch.bfloat16, *, keep: Sequence[str] = ()) -> ModuleT:
    """A copy of `module`, plain or optimised, for inference with convolutions and linear layers in `dtype`.

    What the copy returns is float32 again. Winograd's and Fourier's forms, which are for float32, become convolutions
    again, their weights in channels_last; on a CPU without matrix units for the type that is slower than float32.

    Args:
        dtype: torch.bfloat16 or torch.float16.
        keep: layers that stay float32, by the names that `probe` gives, or patterns of them (``"decoder.*"``).

    Raises:
        ValueError: another dtype, or an entry of `keep` that no layer has.
    """
    result, _ = lower(as_defined(_traceable(module)), polyphase=True, winograd=False, fft=False)
    _cast(result, dtype, _kept(result, dtype, keep))
    return cast(ModuleT, result)


def _traceable(module: nn.Module) -> nn.Module:
    """A copy without what 16-bit types lack on some device."""
    return rewrite_structure(copy.deepcopy(module).eval().requires_grad_(False))[0]


def _kept(module: nn.Module, dtype: torch.dtype, keep: Sequence[str]) -> list[str]:
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, got {dtype}")
    names = [name for name, _ in module.named_modules()]
    for pattern in keep:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"keep must name layers of the module, got {pattern!r}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in keep)]


def _cast(module: nn.Module, dtype: torch.dtype, kept: Sequence[str]) -> None:
    """In place: the parameters' dtypes, and hooks that bring each layer its input in its own."""
    for name, part in module.named_modules():
        if isinstance(part, _CONVS) and not any(name == each or name.startswith(f"{each}.") for each in kept):
            part.to(dtype)
            for parameter in part.parameters():
                memory_format = _FORMATS.get(parameter.dim(), torch.contiguous_format)
                parameter.data = parameter.data.contiguous(memory_format=memory_format)
        if isinstance(part, (*_CONVS, *_NORMS)):
            part.register_forward_pre_hook(_take_own_dtype)
    module.register_forward_hook(_return_float32)


def _take_own_dtype(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    own = next((each.dtype for each in (*module.parameters(), *module.buffers())), torch.float32)
    return tuple(x.to(own) if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments)


def _return_float32(_: nn.Module, __: Any, output: Any) -> Any:
    return map_tensors(lambda x: x.float() if x.is_floating_point() else x, output)


@dataclass(frozen=True)
class LayerProbe:
    """A leaf of the module: the largest magnitude that it gave in float32, and how far off it was in the 16-bit type,
    as a share of that; infinite where something was not finite.
    """

    name: str
    largest: float
    error: float


@dataclass(frozen=True)
class ProbeReport:
    """What `probe` found. `advice` is one line; `first` is the layer that it is about, None where all is well."""

    dtype: torch.dtype
    first: str | None
    advice: str
    layers: list[LayerProbe] = field(repr=False)

    def __str__(self) -> str:
        return self.advice


def probe(
    module: nn.Module, *args: Any, dtype: torch.dtype = torch.float16, keep: Sequence[str] = (), **kwargs: Any
) -> ProbeReport:
    """Run `module` in float32 and with its convolutions in `dtype`, and find the first layer that `dtype` cannot hold.

    Args:
        args, kwargs: of ``forward``; on the device that is meant, as real as possible.
        keep: layers that stay float32, as for `reduce_convs`.

    Raises:
        ValueError: as `reduce_convs`.
    """
    wide = _traceable(module)
    narrow = copy.deepcopy(wide)
    _cast(narrow, dtype, _kept(narrow, dtype, keep))
    truth: list[Tensor] = []
    _watch(wide, lambda _, output: truth.append(output.float().clone()), args, kwargs)  # later layers write over it
    broken: list[str] = []
    layers: list[LayerProbe] = []

    def compare(name: str, output: Tensor) -> None:
        expected = truth[len(layers)]
        if not expected.isfinite().all():
            broken.append(name)
        largest, error = (float(x.abs().max()) if x.numel() else 0.0 for x in (expected, output.float() - expected))
        error = error / max(largest, torch.finfo(torch.float32).tiny)
        layers.append(LayerProbe(name, largest, error if error == error else float("inf")))

    _watch(narrow, compare, args, kwargs)
    return _judge(dtype, layers, broken)


def _watch(
    module: nn.Module, note: Callable[[str, Tensor], None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Run `module` and note what its leaves give, in their order, and then what it gives itself."""

    def note_all(name: str, output: Any) -> None:
        for tensor in tensors(output):
            if tensor.is_floating_point():
                note(name, tensor)

    for name, part in module.named_modules():
        if name and not any(part.children()):
            part.register_forward_hook(lambda _, __, output, name=name: note_all(name, output))
    with torch.no_grad():
        note_all("the output", module(*args, **kwargs))


def _judge(dtype: torch.dtype, layers: list[LayerProbe], broken: list[str]) -> ProbeReport:
    kind, limit = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
    if broken:
        advice = f"layer {broken[0]} gives NaN or infinity in float32 already: look at its input and its weights"
        return ProbeReport(dtype, broken[0], advice, layers)
    bad = next((layer for layer in layers if layer.error == float("inf")), None)
    if bad is None:
        worst = max(layers, key=lambda layer: layer.error)
        advice = (
            f"{kind} holds everything: the largest error is {worst.error:.1e} of its layer's range, in {worst.name}"
        )
        return ProbeReport(dtype, None, advice, layers)
    other = " or use bfloat16" if dtype == torch.float16 else ""
    told = f"overflows {kind} (largest {bad.largest:.1e} > {limit:.0f})"
    if bad.largest <= limit:
        told = f"gives NaN or infinity in {kind} (largest in float32 {bad.largest:.1e})"
    advice = f"layer {bad.name} {told}: keep it in float32 with keep=[{bad.name!r}]{other}"
    return ProbeReport(dtype, bad.name, advice, layers)
